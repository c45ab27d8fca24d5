"""``linear`` on the cores of the CUDA backend: one way to call them all, from a checked request, from a torch operator,
and without checks where a call is like one before.
"""

import sys

from . import cuda, cuda_binary, cuda_float, cuda_int4
from .cpu import ACTIVATIONS, FLOATS, address, dtype_name, float_vector

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Plan:
    """``linear`` with one weight on one device and one set of options: all but x, the bias and the number of rows."""

    __slots__ = "_counts", "_given", "_numbers", "_size", "_sized_by", "_tail", "_weight", "out_type", "shape"

    def __init__(self, core, weight, shape, facts, x_name, given, activation, out_type):
        self._weight, self.shape = weight, shape
        self._numbers = core.numbers(facts, x_name, *given)
        self._sized_by = self._numbers[: core.sized_by]
        self._given, self._size = FLOATS[x_name], _SIZES[x_name]
        out_name = str(out_type).removeprefix("torch.")
        self._tail = activation, FLOATS[out_name]
        self.out_type = None if out_name == x_name else out_type  # a dtype costs new_empty a microsecond
        self._counts = {}

    def scratch(self, m):
        """How many elements of x's dtype hold the scratch memory of a call with m rows."""
        if len(self._counts) > 1024:
            self._counts.clear()
        count = self._counts[m] = -(-self._weight.scratch_bytes(m, *self._sized_by) // self._size)
        return count

    def run(self, x, m, pitch, batch, at, bias):
        """(*batch, N) from m rows of x, ``pitch`` elements apart; ``at`` and ``bias`` are addresses."""
        n, out_type = self.shape[0], self.out_type
        count = self._counts.get(m)
        if count is None:
            count = self.scratch(m)
        out = x.new_empty(*batch, n) if out_type is None else x.new_empty((*batch, n), dtype=out_type)
        memory = x.new_empty(count)
        self._weight.linear(
            *(cuda.stream_of(x), at, self._given, m, pitch, *self._numbers, bias, *self._tail),
            *(out.data_ptr(), memory.data_ptr(), count * self._size),
        )
        return out


class Linear:
    """Registry entry of ``linear`` on one core: r is an ops.Request.

    ``name`` stands in what a torch operator carries beside a prepacked tensor, ``operator`` is that operator.
    """

    def __init__(self, core):
        self.core, self.name, self.operator = core, core.name, core.operator

    def __call__(self, r):
        x, bias = r.x2, None if r.bias is None else float_vector(r.bias)
        return self.plan(r).run(x, r.m, r.pitch, r.batch, address(x), address(bias))

    def plan(self, r):
        """What ``same_as_before`` computes with from then on."""
        _, facts = self.core.tensor(r.w, r.x.device)
        weight, given = self.core.weight(r.w, r.x.device), self.core.given(r.options)
        activation, out_type = ACTIVATIONS[r.options["activation"]], getattr(sys.modules["torch"], r.out_name)
        return Plan(self.core, weight, r.w.shape, facts, dtype_name(r.x), given, activation, out_type)

    def prepacked(self, r):
        """The tensor and the facts that ``on_tensor`` takes."""
        return self.core.tensor(r.w, r.x.device)

    def on_tensor(self, packed, shape, facts, x_name, given, activation, out_type):
        """What computes (..., N) from x (..., K) and a bias, or None, on a prepacked tensor that outlives it.

        given: as in Core; activation: its number.
        """
        weight, k = self.core.view(packed, *shape, facts), shape[1]
        plan = Plan(self.core, weight, shape, facts, x_name, given, activation, out_type)

        def call(x, bias):
            x, batch = x.contiguous(), x.shape[:-1]
            return plan.run(x, batch.numel(), k, batch, address(x), address(bias))

        return call


INT8, INT4 = Linear(cuda.INT8), Linear(cuda_int4.INT4)
FLOAT, SIGNS = Linear(cuda_float.FLOAT), Linear(cuda_binary.SIGNS)
RUNS = INT8, INT4, FLOAT, SIGNS


# A call like one before skips the checks, as on the CPU (ops/plans.py): launching a small kernel takes microseconds.


def keep_plan(run, r, options):
    """Remember for ``same_as_before`` what a checked call of a ``Linear`` computes with."""
    plans = r.w.__dict__.setdefault("_cuda_plans", {})
    if len(plans) > 64:
        plans.clear()
    plans[options, r.x.get_device(), r.m <= cuda.FEW] = run.plan(r)


def same_as_before(x, w, bias, options):
    """``linear`` on a CUDA tensor where a call with these options was checked before, else None."""
    shape = x.shape
    try:
        m = x.numel() // shape[-1]
        plan = w.__dict__["_cuda_plans"][options, x.get_device(), m <= cuda.FEW]
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError):
        return None  # not a weight, a first call, options or shapes that no such call takes
    n, k = plan.shape
    if shape[-1] != k or not x.is_contiguous() or x.is_neg():
        return None
    at = 0
    if bias is not None:
        torch = sys.modules["torch"]
        usual = type(bias) in (torch.Tensor, torch.nn.Parameter) and bias.dtype is torch.float32
        if not usual or not bias.is_contiguous() or bias.is_neg():
            return None
        if bias.shape != (n,) or bias.get_device() != x.get_device():
            return None
        at = bias.data_ptr()
    return plan.run(x, m, k, shape[:-1], x.data_ptr(), at)
