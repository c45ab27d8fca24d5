"""The Triton backend: from checked requests to the kernels of ``qkernels.triton_kernels``, for tensors on CUDA devices.

Nothing here imports torch or Triton before a call. With TRITON_INTERPRET=1, set before Triton is imported, the kernels
run in its interpreter on CPU tensors, slowly, where ``backend="triton"`` is named.
"""

import contextlib
import functools
import importlib.util
import os
import sys

from ._arrays import is_torch
from .cpu import ACTIVATIONS, dtype_name
from .formats.operand import why_no_integers
from .quant import InputQuant

NAMES = {number: name for name, number in ACTIVATIONS.items()}


def is_interpreted():
    """Whether Triton runs kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def unavailable():
    """None, or why no Triton kernel can run in this process."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "torch is not imported, and only its tensors lie on a GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install triton"
    if not is_interpreted() and not torch.cuda.is_available():
        return "torch sees no CUDA GPU, and TRITON_INTERPRET=1 is not set"
    return None


def refuses(r):
    """None, or why no kernel of this backend takes a request: what the process lacks, or where x is."""
    reason = unavailable()
    if reason is not None:
        return reason
    if not is_torch(r.x):
        return "x is a NumPy array; accepted: a torch tensor on a CUDA device"
    if r.x.device.type != "cuda" and not is_interpreted():
        return f"x is on {r.x.device}; accepted: a CUDA device"
    return None


def accepts_integers(r):
    """``linear`` with an input_quant."""
    quant = r.options["input_quant"]
    if quant is None:
        return "input_quant is None (weight-only): that is for the float core"
    if quant.bits == 1:
        return "input_quant has bits=1: there is no binary core in Triton"
    if quant.is_split:
        return f"power codes of {quant.bits} bits are multiplied as two bytes each; accepted: up to 4 bits"
    return refuses(r) or why_no_integers(r.w)


def accepts_floats(r):
    """``linear`` without an input_quant."""
    if r.options["input_quant"] is not None:
        return "input_quant is given: the float core takes float activations"
    return refuses(r)


def accepts_codes(r):
    """``matmul_int`` and ``linear_requant``."""
    return refuses(r) or why_no_integers(r.w)


def _current(x):
    """A context in which the device of x is the current one, on which Triton launches."""
    return sys.modules["torch"].cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _vector(r, dtype):
    """The bias as a contiguous vector of a dtype, or None."""
    if r.bias is None:
        return None
    torch = sys.modules["torch"]
    v = r.bias if is_torch(r.bias) else torch.from_numpy(r.bias)
    return v.detach().resolve_neg().to(r.x.device, getattr(torch, dtype)).contiguous()


class Linear:
    """Registry entry of ``linear`` on one core: r is an ops.Request. The rest is for the torch operators, as
    qkernels.cuda_linear.Linear has it.
    """

    name = operator = None

    def __call__(self, r):
        with _current(r.x):
            bias, out = _vector(r, "float32"), r.empty(r.out_name)
            how = self.how(r.options)
            return r.shaped(self.product(r.x2, r.w, how, bias, r.options["activation"], out))

    def prepacked(self, r):
        """The tensor and the facts that ``on_tensor`` takes."""
        arrays = self.arrays(r)
        return arrays.block, arrays.facts

    def on_tensor(self, packed, shape, facts, x_name, given, activation, out_type):
        """What computes (..., N) from x (..., K) and a bias, or None, on a prepacked tensor; activation: its number."""
        from .triton_kernels.device import Arrays

        arrays, torch = Arrays(packed, facts), sys.modules["torch"]
        if arrays.shape != shape:
            raise ValueError(f"packed is of a weight {arrays.shape}, not {shape}.")
        how, name = self.how_given(given, arrays), NAMES[activation]

        def call(x, bias):
            rows = x.reshape(x.shape[:-1].numel(), shape[1]).contiguous()
            out = torch.empty((rows.shape[0], shape[0]), dtype=out_type, device=x.device)
            with _current(x):
                return self.product(rows, arrays, how, bias, name, out).reshape(*x.shape[:-1], shape[0])

        return call


class IntLinear(Linear):
    name, operator = "triton_int", "linear_int"

    def how(self, options):
        return options["input_quant"]

    def how_given(self, given, arrays):
        return quant_of(*given)

    def arrays(self, r):
        from .triton_kernels.device import int_arrays

        return int_arrays(r.w, r.x.device)

    def product(self, x, w, quant, bias, activation, out):
        from .triton_kernels import run

        return run.linear_int(x, w, quant, bias, activation, out)


class FloatLinear(Linear):
    name, operator = "triton_float", "linear_float"

    def how(self, options):
        return options["compute_dtype"]

    def how_given(self, given, arrays):  # the block was made for one dtype of the products
        return dtype_name(arrays.zero if arrays.table is None else arrays.table)

    def arrays(self, r):
        from .triton_kernels import run
        from .triton_kernels.device import float_arrays

        return float_arrays(r.w, r.x.device, run.product_dtype(r.x, r.w, r.options["compute_dtype"]))

    def product(self, x, w, compute_dtype, bias, activation, out):
        from .triton_kernels import run

        return run.linear_float(x, w, bias, activation, compute_dtype, out)


@functools.lru_cache(maxsize=1024)
def quant_of(mode, bits, signed, scale, zero_point, power):
    """The InputQuant of which cpu.quant_numbers says this."""
    granularity = {0: "token", 1: "tensor", 2: "tensor", 3: "channel"}.get(mode)
    static = {"scale": scale, "zero_point": zero_point or None} if mode == 2 else {}
    return InputQuant(bits, granularity, signed=signed, power=0.5 if power else None, **static)


INT, FLOAT = IntLinear(), FloatLinear()
RUNS = INT, FLOAT


def matmul_int(r):
    """Registry entry of ``matmul_int``."""
    from .triton_kernels import run

    with _current(r.x):
        return r.shaped(run.matmul_int(r.x2, r.w, r.options["x_zero_point"], r.empty(r.out_name)))


def linear_requant(r):
    """Registry entry of ``linear_requant``."""
    from .triton_kernels import run

    o = r.options
    with _current(r.x):
        bias, out = _vector(r, "int32"), r.empty(r.out_name)
        y = run.linear_requant(r.x2, r.w, o["x_zero_point"], bias, o["requant"], o["limits"], out)
        return r.shaped(y)


def requantize(r):
    """Registry entry of ``requantize``."""
    from .triton_kernels import run

    with _current(r.x):
        y = run.requantize(r.x2, r.options["requant"], r.options["limits"], r.empty(r.out_name))
        return r.shaped(y)


def quantize_activations(r):
    """Registry entry of ``quantize_activations``: numbers that are not finite get the code 0 and the scale NaN."""
    from .triton_kernels import run

    quant = r.options["input_quant"]
    with _current(r.x):
        codes, scale = run.quantize_activations(r.x2, quant)
    codes = codes.reshape(r.x.shape)
    if quant.granularity == "token":
        return codes, scale.reshape(*r.batch, 1)
    if quant.granularity == "tensor":
        return codes, scale.reshape((1,) * r.x.ndim)
    return codes, scale.reshape(1, -1)
