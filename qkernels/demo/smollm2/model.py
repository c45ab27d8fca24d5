"""SmolLM2: a Llama network for one sequence at a time, its keys and values kept in a cache.

Query, key and value are one linear layer, gate and up another, and the weights keep the order of the gguf file, in
which a rotary position turns neighbouring numbers: a complex product. A float32 step of one token is eight calls a
layer: its four linear layers, and qkernels' ``rms_norm``, ``decode_attention`` and ``swiglu`` between them; where the
linear layers are qkernels' too, they are recorded once and run as one (``Step``).
Every variant that the demo measures runs this module; they differ in their linear layers.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ... import Program, decode_attention, rms_norm, swiglu
from ...nn import Linear
from . import data


class Config(NamedTuple):
    """Sizes of the network; ``heads`` query heads share ``kv_heads`` heads of keys and values."""

    vocabulary: int
    hidden: int
    inner: int
    depth: int
    heads: int
    kv_heads: int
    rope_base: float
    eps: float

    @property
    def head(self):
        return self.hidden // self.heads

    @classmethod
    def of(cls, metadata):
        """Out of the metadata of a gguf file of architecture "llama"."""
        keys = (
            *("vocab_size", "embedding_length", "feed_forward_length", "block_count", "attention.head_count"),
            *("attention.head_count_kv", "rope.freq_base", "attention.layer_norm_rms_epsilon"),
        )
        return cls(*(metadata[f"llama.{key}"] for key in keys))


def rotations(config, length):
    """float32 (length, heads + 2 * kv_heads, head / 2, 2): the complex number that turns each pair of a head's numbers.

    exp(i * position * base**(-2 j / head)) for pair j (Su et al. 2021); 1 for values, so that one product does all.
    """
    frequency = config.rope_base ** (-torch.arange(0, config.head, 2, dtype=torch.float64) / config.head)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle)[:, None].repeat(
        1, config.heads + 2 * config.kv_heads, 1
    )
    turn[:, config.heads + config.kv_heads :] = 1
    return torch.view_as_real(turn).float()


def rotate(x, turn):
    """(T, H, head), its neighbours as complex numbers, times ``turn``; computed in float32."""
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # inductor writes no code for complex numbers
        (a, b), (c, s) = pairs.unbind(-1), turn.unbind(-1)
        return torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2).to(x.dtype)
    product = torch.view_as_complex(pairs) * torch.view_as_complex(turn)
    return torch.view_as_real(product).view(x.shape).to(x.dtype)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis of (T, hidden)."""

    def __init__(self, hidden, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(hidden)), eps

    def forward(self, x):
        if len(x) > 1 or torch.compiler.is_compiling():
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        v = x[0].float()  # one token: torch's own calls five operators
        return (x * self.weight).mul_(1 / math.sqrt(torch.dot(v, v).item() / len(v) + self.eps))


class Layer(nn.Module):
    """One transformer layer, pre-norm: attention with shared keys and values, and SwiGLU."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.shared, self.head = c.heads, c.heads // c.kv_heads, c.head
        self.norm1, self.norm2 = RMSNorm(c.hidden, c.eps), RMSNorm(c.hidden, c.eps)
        self.qkv = nn.Linear(c.hidden, c.hidden + 2 * c.kv_heads * c.head, bias=False)
        self.out = nn.Linear(c.hidden, c.hidden, bias=False)
        self.gate_up = nn.Linear(c.hidden, 2 * c.inner, bias=False)
        self.down = nn.Linear(c.inner, c.hidden, bias=False)

    def forward(self, x, turn, store, start, mask=None):
        """(T, hidden) -> (T, hidden) for the tokens from position ``start`` on.

        store  (2 * kv_heads, length, head): keys, then values, of which ``start`` positions are there; gets T more.
        mask   with ``start`` as a tensor (1,), of one token: which positions of the store to look at, bool (1, length).
        """
        turned = rotate(self.qkv(self.norm1(x)).view(len(x), -1, self.head), turn)
        q, new = turned[:, : self.heads], turned[:, self.heads :].transpose(0, 1)
        if mask is None:
            store = store[:, : start + len(x)]
            store[:, start:] = new
        else:
            store.index_copy_(1, start, new)
        x = x + self.out(self._attend(q, store, start, mask))
        gate, up = self.gate_up(self.norm2(x)).view(len(x), 2, -1).unbind(1)
        return x + self.down(F.silu(gate) * up)

    def step(self, x, added, turn, store, position):
        """``forward`` of one float32 token: x (1, hidden) is changed, ``added`` (or None) is first added to it.

        turn  (heads + 2 * kv_heads, head / 2, 2). Returns what is yet to be added to x.
        """
        qkv = self.qkv.forward(rms_norm(x, self.norm1.weight, self.norm1.eps, added))
        y = self.out.forward(decode_attention(qkv, turn, store, position))
        y = self.gate_up.forward(rms_norm(x, self.norm2.weight, self.norm2.eps, y))
        return self.down.forward(swiglu(y))

    def record(self, program, x, added, turns, store):
        """``step`` into a qkernels.Program, for every position that ``turns`` has; its linear layers are qkernels'."""
        h = program.rms_norm(x, self.norm1.weight, self.norm1.eps, added)
        y = program.decode_attention(_linear(program, h, self.qkv), turns, store)
        h = program.rms_norm(x, self.norm2.weight, self.norm2.eps, _linear(program, y, self.out))
        return _linear(program, program.swiglu(_linear(program, h, self.gate_up)), self.down)

    def _attend(self, q, store, start, mask):
        """(T, heads, head) over the store -> (T, hidden)."""
        k, v = store.view(2, 1, -1, *store.shape[1:]).unbind(0)
        if len(q) == 1:  # the heads that share keys are as rows of one head
            q = q.view(1, -1, self.shared, self.head)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).view(1, -1)
        if start:
            mask = torch.ones(len(q), k.shape[2], dtype=torch.bool).tril(start)
        q, causal = q.transpose(0, 1)[None], mask is None
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
        return y[0].transpose(0, 1).flatten(1)


def _linear(program, x, m):
    return program.linear(x, m.weight, m.bias, m.activation, m.input_quant)


class Step:
    """A network's step of one token on one cache, recorded: ``step(token, position)`` -> logits (1, vocabulary).

    The logits are written anew by each call. All linear layers are qkernels' and the cache is float32.
    """

    def __init__(self, model, cache):
        self.program, self.embed = Program(), model.embed
        self.x, added = torch.empty(1, model.config.hidden), None
        for layer, store in zip(model.layers, cache.unbind()):
            added = layer.record(self.program, self.x, added, model.turns, store)
        h = self.program.rms_norm(self.x, model.norm.weight, model.norm.eps, added)
        self.logits = _linear(self.program, h, model.head)

    @classmethod
    def of(cls, model, cache):
        """None where the model has other layers or another dtype."""
        ours = all(isinstance(m, Linear) for m in linear_layers(model).values())
        return cls(model, cache) if ours and cache.dtype == torch.float32 else None

    def __call__(self, token, position):
        self.x.copy_(self.embed(token))
        self.program.run(position)
        return self.logits

    def clock(self, token, position):
        """The logits, and what ``Program.clock`` says of the step."""
        self.x.copy_(self.embed(token))
        return self.logits, self.program.clock(position)


class Rows(nn.Module):
    """An embedding as the gguf file stores it (Q8_0): int8 codes, a scale for each 32 of them; float32 out, exact."""

    def __init__(self, blocks):
        super().__init__()
        parts = blocks.rows.reshape(len(blocks.rows), -1, 34)
        self.register_buffer("scale", torch.from_numpy(parts[..., :2].copy()).view(torch.float16))
        self.register_buffer("codes", torch.from_numpy(parts[..., 2:].copy()).view(torch.int8))

    def forward(self, ids):
        return (self.codes[ids] * self.scale[ids].float()).flatten(-2)


class LanguageModel(nn.Module):
    """Token ids of one sequence -> logits of the next token.

    The head multiplies by the matrix that the embedding reads: in float both are one tensor.
    """

    def __init__(self, config, longest=2048):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.hidden, config.eps)
        self.head = nn.Linear(config.hidden, config.vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self.turns = rotations(config, longest)  # no buffer: float32 in a bfloat16 model too

    @classmethod
    def load(cls, file):
        """The network of a gguf_file.File in float32, eval mode; what the file rounded is dequantized."""
        with torch.device("meta"):
            model = cls(Config.of(file.metadata), 0)
        model.turns = rotations(model.config, 2048)
        saved = {f"{name}.weight": b.dense() for name, b in data.matrices(file).items()}
        norms = {"norm": "output_norm"}
        for i in range(model.config.depth):
            norms |= {f"layers.{i}.norm1": f"blk.{i}.attn_norm", f"layers.{i}.norm2": f"blk.{i}.ffn_norm"}
        saved |= {f"{ours}.weight": file.tensors[f"{n}.weight"].dense()[0] for ours, n in norms.items()}
        tensors = {name: torch.from_numpy(a if a.flags.writeable else a.copy()) for name, a in saved.items()}
        model.load_state_dict(tensors | {"embed.weight": tensors["head.weight"]}, assign=True)
        model.head.weight = model.embed.weight
        return model.eval().requires_grad_(False)

    def cache(self, length):
        """Keys and values of ``length`` positions, (layers, 2 * kv_heads, length, head), of the norms' dtype."""
        c = self.config
        return torch.zeros(c.depth, 2 * c.kv_heads, length, c.head, dtype=self.norm.weight.dtype)

    def forward(self, ids, cache=None, start=0, tail=None):
        """Logits (tail, vocabulary) of the last ``tail`` of the tokens ``ids`` (T,), of all by default.

        cache  what ``cache()`` made, filled up to position ``start``; None for a sequence read once.
        """
        cache = self.cache(len(ids)) if cache is None else cache
        turn, x = self.turns[start : start + len(ids)], self.embed(ids)
        if len(ids) == 1 and cache.dtype == x.dtype == torch.float32 and not torch.compiler.is_compiling():
            return self._one(x, cache, start)
        for layer, store in zip(self.layers, cache.unbind()):
            x = layer(x, turn, store, start)
        return self.head(self.norm(x if tail is None else x[-tail:]))

    def _one(self, x, cache, position):
        """The step of one float32 token: x, its embedding, is changed."""
        turn, added = self.turns[position], None
        for layer, store in zip(self.layers, cache.unbind()):
            added = layer.step(x, added, turn, store, position)
        return self.head.forward(rms_norm(x, self.norm.weight, self.norm.eps, added))

    def step(self, ids, cache, start):
        """``forward`` of one token at position ``start``, a tensor (1,): a graph of one shape for torch.compile."""
        turn, x = self.turns.index_select(0, start), self.embed(ids)
        mask = (torch.arange(cache.shape[2]) <= start)[None]
        for layer, store in zip(self.layers, cache.unbind()):
            x = layer(x, turn, store, start, mask)
        return self.head(self.norm(x))


LINEAR_NAMES = {*data.PARTS, "head"}


def linear_layers(model):
    """The linear layers by name, whatever class they have become: 121 for SmolLM2-135M."""
    return {name: m for name, m in model.named_modules() if name.rpartition(".")[2] in LINEAR_NAMES}
