"""Stand-ins until conv2d, add and pooling are there. Exact integers through float64."""

import copy
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from .formats import IntWeight
from types import SimpleNamespace


def fold_batch_norm(m):
    m = copy.deepcopy(m)
    for s in m.modules():
        if isinstance(s, nn.Sequential) and hasattr(s, "norm"):
            c, b = s.conv, s.norm
            if not isinstance(b, nn.BatchNorm2d):
                continue
            g = b.weight / torch.sqrt(b.running_var + b.eps)
            c.weight = nn.Parameter(c.weight.detach() * g[:, None, None, None], requires_grad=False)
            c.bias = nn.Parameter((b.bias - b.running_mean * g).detach(), requires_grad=False)
            s.norm = nn.Identity()
    return m


def _requant(acc, r, lo, hi, dims):
    m = torch.from_numpy(r.multiplier.astype(np.int64))
    t = torch.from_numpy(31 + r.shift.astype(np.int64))
    if dims == 4:
        m, t = m[:, None, None], t[:, None, None]
    y = (acc * m + ((torch.ones_like(t) << t) >> 1)) >> t
    return (y + r.zero_point).clamp(lo, hi).to(torch.uint8)


def conv2d_requant(
    xq, w, requant, bias, x_zero_point, activation, stride, padding, dilation, groups, out_dtype
):
    t, b, l, r = padding
    x = F.pad(xq.double() - x_zero_point, (l, r, t, b))
    c = w.codes().view(w.shape[0], -1).double() - (0 if w.zero_point is None else w.zero_point.double())
    acc = F.conv2d(x, c.view(w.shape), None, stride, 0, dilation, groups).long()
    acc = acc if bias is None else acc + bias[:, None, None]
    lo, hi = requant.limits(activation, np.uint8)
    return _requant(acc, requant, lo, hi, 4)


def add_requant(aq, bq, a, b, y, activation):
    v = (aq.long() - a.zero_point) * int(round(a.scale / y.scale * 2**20)) + (bq.long() - b.zero_point) * int(
        round(b.scale / y.scale * 2**20)
    )
    v = (v + 2**19) >> 20
    return (v + y.zero_point).clamp(0, 255).to(torch.uint8)


def global_avg_pool(xq, x, y):
    n = xq.shape[2] * xq.shape[3]
    v = (xq.long() - x.zero_point).sum((2, 3), keepdim=True)
    v = (v * int(round(x.scale / y.scale / n * 2**24)) + 2**23) >> 24
    return (v + y.zero_point).clamp(0, 255).to(torch.uint8)
