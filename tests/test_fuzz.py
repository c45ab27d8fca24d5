"""Random garbage to everything public: qkernels' own errors or a result, never another exception and never a crash."""

import time
import warnings

import numpy as np
import pytest
import torch
from helpers import garbage, random_codes

import qkernels as qk

OWN = (qk.ArgumentError, qk.DTypeError, qk.FormatError, qk.UnsupportedError)
SECONDS = 1.2  # for each target; all of them together stay near ten


def array(rng, dtype, *shape):
    """An array or tensor of a dtype, of any memory layout."""
    if np.dtype(dtype).kind in "iu":
        a = (
            random_codes(rng, shape, dtype)
            if dtype != np.int32
            else rng.integers(-(2**31), 2**31, shape).astype(dtype)
        )
    else:
        a = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4)).astype(dtype)
    kind = rng.integers(4)
    if kind == 1 and a.ndim >= 2:
        a = np.asfortranarray(a)
    if kind == 2 and a.ndim:
        a = np.repeat(a, 2, -1)[..., ::2]
    if kind == 3 and a.ndim:
        a = a[::-1]
    return torch.from_numpy(np.array(a)) if rng.random() < 0.5 else a


def weight(rng, n, k):
    scale = rng.uniform(1e-3, 1, (n if rng.random() < 0.5 else 1, 1)).astype(np.float32)
    zero_point = rng.integers(-200, 200, scale.shape) if rng.random() < 0.3 else None
    input_scale = rng.uniform(0.01, 3, k).astype(np.float32) if rng.random() < 0.3 else None
    kind = rng.integers(6)
    if kind == 0:
        return narrow_weight(rng, n, k)
    if kind == 1:
        return qk.MixedIntWeight.quantize(rng.standard_normal((n, k)), int(rng.integers(2, 9)))
    w = qk.IntWeight.pack(random_codes(rng, (n, k)), scale, zero_point, input_scale=input_scale)
    return w if rng.random() < 0.5 else qk.IntWeight.pack(torch.from_numpy(w.codes()), scale, zero_point)


def narrow_weight(rng, n, k):
    group_size = [None, 16, 17, 32][rng.integers(4)]
    options = {"bits": int(rng.integers(2, 8)), "group_size": group_size, "symmetric": bool(rng.integers(2))}
    return qk.IntWeight.quantize(rng.standard_normal((n, k)), **options)


def image(rng, dtype, *shape):
    x = array(rng, dtype, *shape)
    return (
        x if rng.random() < 0.5 or not torch.is_tensor(x) else x.contiguous(memory_format=torch.channels_last)
    )


def convolution(rng, target):
    """Arguments of conv2d, conv2d_int and conv2d_requant: small images, any geometry."""
    groups = int(rng.choice([1, 1, 2, 3]))
    c, n = groups * int(rng.integers(1, 5)), groups * int(rng.integers(1, 5))
    kernel = tuple(int(i) for i in rng.integers(1, 4, 2))
    shape = (int(rng.integers(0, 3)), c, int(rng.integers(1, 8)), int(rng.integers(1, 8)))
    w = qk.IntWeight.quantize(rng.standard_normal((n, c // groups, *kernel)), int(rng.integers(2, 9)))
    options = {"stride": int(rng.integers(1, 4)), "padding": int(rng.integers(0, 4)), "groups": groups}
    if target == "conv2d":
        quant = qk.InputQuant(granularity="tensor", signed=bool(rng.integers(2)))
        return [image(rng, np.float32, *shape), w, array(rng, np.float32, n)], {
            **options,
            "input_quant": quant,
        }
    x = image(rng, np.int8 if rng.random() < 0.5 else np.uint8, *shape)
    if target == "conv2d_int":
        return [x, w, int(rng.integers(0, 128))], options
    return [x, w, requant(rng, n)], options


def input_quant(rng, k):
    kind = rng.integers(5)
    if kind == 0:
        return qk.InputQuant(signed=bool(rng.integers(2)))
    if kind == 4:
        granularity = str(rng.choice(["token", "tensor"]))
        return qk.InputQuant(int(rng.integers(2, 9)), granularity, None, bool(rng.integers(2)), power=0.5)
    if kind == 1:
        return qk.InputQuant(granularity="tensor", signed=bool(rng.integers(2)))
    if kind == 2:
        return qk.InputQuant(
            granularity="tensor", scale=10.0 ** rng.uniform(-30, 30), zero_point=int(rng.integers(-128, 128))
        )
    scale = rng.uniform(0.01, 3, k).astype(np.float32) if rng.random() < 0.5 else None
    return qk.InputQuant(granularity="channel", scale=scale)


def requant(rng, n):
    channels = n if rng.random() < 0.5 else 1
    multiplier, shift = rng.integers(2**30, 2**31, channels), rng.integers(-31, 32, channels)
    rounding = str(rng.choice(["single", "double", "float"]))
    return qk.Requant(
        multiplier, shift, int(rng.integers(-128, 256)), rounding, output_scale=rng.uniform(1e-3, 1)
    )


def bits_weight(rng, n, k):
    kind, values = (qk.BinaryWeight, (-1, 1)) if rng.random() < 0.5 else (qk.TernaryWeight, (-1, 0, 1))
    codes = rng.choice(np.array(values, np.int8), (n, k))
    return kind.pack(codes if rng.random() < 0.5 else torch.from_numpy(codes), rng.uniform(0, 2, n))


def threshold(rng, n):
    times = rng.integers(-127, 128, n) if rng.random() < 0.5 else None
    return qk.Threshold(rng.integers(-9, 9, n), rng.random(n) < 0.5, times)


def prelu(rng, n):
    return qk.DPReLU(*rng.standard_normal((4, n)).astype(np.float32)) if n else "relu"


def sign_quant(rng):
    kind = str(rng.choice(["token", "tensor"]))
    return qk.InputQuant(
        bits=1, granularity=kind, scale=0.3 if kind == "tensor" and rng.random() < 0.5 else None
    )


WORDS = [
    "relu",
    "relu6",
    "gelu",
    "silu",
    "channel",
    "tensor",
    "token",
    "cpu",
    "reference",
    "single",
    "float32",
    "bfloat16",
]
WORDS += ["int8", "uint8", np.int8, torch.uint8, torch.bfloat16, np.float16, True, False, 8, 4, 0]


def sometimes_garbage(rng, value):
    """The value, or now and then a word that some argument takes, or garbage."""
    p = rng.random()
    if p < 0.8:
        return value
    return WORDS[rng.integers(len(WORDS))] if p < 0.87 else garbage(rng)


INTEGER = ["add_requant", "concat_requant", "lookup_int8", "gelu_int", "softmax_int", "layer_norm_int"]
INTEGER += [
    "max_pool2d_int",
    "avg_pool2d_int",
    "AddRequant.from_scales",
    "LayerNormInt.from_float",
    "lookup_table",
]


def integer_arguments(rng, target, m, k):
    """Arguments of the integer-only operations that are nearly right."""
    q = array(rng, rng.choice([np.int8, np.uint8]), m, k)
    scales = [10.0 ** rng.uniform(-3, 1) for _ in range(3)]
    zps = [int(rng.integers(-128, 256)) for _ in range(3)]
    sums = [scales[0], zps[0], scales[1], zps[1], scales[2], zps[2]]
    norm = [rng.standard_normal(k + 1), rng.standard_normal(k + 1), *scales[:2], zps[0], 1e-5]
    image = array(rng, rng.choice([np.int8, np.uint8]), *rng.integers(0, 6, 4))
    sizes = [int(v) for v in rng.integers(0, 4, 3)]
    return {
        "add_requant": lambda: [q, q, qk.AddRequant.from_scales(*sums), "relu"],
        "concat_requant": lambda: [[q, q], scales[:2], zps[:2], scales[2], zps[2], int(rng.integers(-3, 3))],
        "lookup_int8": lambda: [q, random_codes(rng, 256)],
        "gelu_int": lambda: [q, scales[0], zps[0], scales[1], zps[1]],
        "softmax_int": lambda: [q, scales[0], -1],
        "layer_norm_int": lambda: [q, qk.LayerNormInt.from_float(*norm)],
        "max_pool2d_int": lambda: [image, *sizes, 1, bool(rng.integers(2))],
        "avg_pool2d_int": lambda: [image, *sizes, bool(rng.integers(2)), bool(rng.integers(2)), zps[0]],
        "AddRequant.from_scales": lambda: sums,
        "LayerNormInt.from_float": lambda: norm,
        "lookup_table": lambda: [np.tanh, scales[0], zps[0], scales[1], zps[1]],
    }[target]()


CODED = [
    f"{kind}Weight{maker}"
    for kind in ("Power", "Log", "Float", "Codebook")
    for maker in ("", ".pack", ".quantize")
]
CODED += ["search_exponent"]


def coded_arguments(rng, target, n, k):
    """Arguments of the formats whose codes index a table that are nearly right."""
    name, _, maker = target.partition(".")
    options = {"group_size": [None, 16][rng.integers(2)]}
    if name == "FloatWeight":
        options["kind"] = ["e4m3", "e5m2", "e2m1"][rng.integers(3)]
        options["scale_kind"] = ["float32", "e8m0", "e4m3"][rng.integers(3)]
    else:
        options["bits"] = int(rng.integers(2, 9))
    if name == "PowerWeight":
        options["exponent"] = [0.5, 0.7, 3, None][rng.integers(4 if maker == "quantize" else 3)]
    bits = options.get("bits", 4 if options.get("kind") == "e2m1" else 8)
    if target == "search_exponent":
        return [[array(rng, np.float32, n, k), array(rng, np.float16, k, n)]], options
    if maker == "quantize":
        book = (
            [None, "nf4", rng.standard_normal(2**bits)][rng.integers(3)] if name == "CodebookWeight" else None
        )
        if name == "CodebookWeight":
            options["codebook"] = book
        return [array(rng, np.float32, n, k)], options
    count = -(-k // 16) if options["group_size"] and k > 16 else 1
    if options.get("scale_kind", "float32") == "float32":
        scale = rng.uniform(0, 1, (n, count)).astype(np.float32)
    else:
        scale = rng.integers(0, 128, (n, count)).astype(np.uint8)
        if options["scale_kind"] == "e4m3":
            options["tensor_scale"] = np.full((1, 1), 0.3, np.float32)
    if maker == "pack":
        codes = rng.integers(0, 2**bits, (n, k)) - (2 ** (bits - 1) if name == "PowerWeight" else 0)
    else:
        codes, options["shape"] = rng.integers(0, 256, (n, (k * bits + 7) // 8)).astype(np.uint8), (n, k)
    books = [rng.standard_normal((1, 2**bits)).astype(np.float32)] if name == "CodebookWeight" else []
    return [codes, *books, scale], options


def arguments(rng, target):
    """Arguments that are nearly right."""
    m, k, n = (int(v) for v in rng.integers(0, 7, 3))
    float_type = rng.choice([np.float32, np.float16])
    options = {}
    if target == "linear":
        good = [
            array(rng, float_type, m, k),
            weight(rng, n, k),
            array(rng, np.float32, n),
            "relu",
            input_quant(rng, k),
        ]
    elif target == "matmul_int":
        good = [
            array(rng, rng.choice([np.int8, np.uint8]), m, k),
            weight(rng, n, k),
            int(rng.integers(-128, 256)),
        ]
    elif target == "linear_requant":
        good = [array(rng, rng.choice([np.int8, np.uint8]), m, k), weight(rng, n, k), requant(rng, n)]
        good += [array(rng, np.int32, n)]
    elif target == "requantize":
        good = [array(rng, np.int32, m, n), requant(rng, n)]
    elif target == "quantize_activations":
        good = [array(rng, float_type, m, k), input_quant(rng, k)]
    elif target in INTEGER:
        good = integer_arguments(rng, target, m, k)
    elif target == "signs":
        good = [
            array(rng, float_type, m, k),
            bits_weight(rng, n, k),
            array(rng, np.float32, n),
            prelu(rng, n),
        ]
        good += [sign_quant(rng)]
    elif target in ("matmul_binary", "linear_binary"):
        bits = array(rng, np.uint8, m, (k + 7) // 8)
        good, options = [bits, bits_weight(rng, n, k)], {"x_nonzero": array(rng, np.uint8, m, (k + 7) // 8)}
        if target == "linear_binary" and rng.random() < 0.5:
            options.update(x_scale=array(rng, np.float32, m, 1), bias=array(rng, np.float32, n), sign=True)
            options.update(activation=prelu(rng, n))
        elif target == "linear_binary":
            options["threshold"] = threshold(rng, n)
    elif target == "power_dequantize":
        scale = array(rng, np.float32, m, 1) if rng.random() < 0.5 else rng.uniform()
        good = [array(rng, rng.choice([np.int8, np.uint8]), m, k), scale, rng.uniform(0.1, 4), 8]
    elif target == "pack_signs":
        good = [array(rng, float_type, m, k), sign_quant(rng)]
    elif target in ("BinaryWeight", "TernaryWeight"):
        planes = [np.packbits(rng.random((n, k)) < 0.5, axis=1, bitorder="little") for _ in target[:2]]
        planes = planes[:1] if target == "BinaryWeight" else [planes[0] & planes[1], planes[1]]
        good = [*planes, rng.uniform(0, 1, n).astype(np.float32), (n, k)]
        good = good if rng.random() < 0.5 else [*map(torch.from_numpy, good[:-1]), good[-1]]
    elif target in ("BinaryWeight.pack", "TernaryWeight.pack"):
        good = [(array(rng, np.float32, n, k) > 0) * 2 - 1, array(rng, np.float32, n)]
    elif target in ("BinaryWeight.quantize", "TernaryWeight.quantize"):
        good = [array(rng, float_type, n, k)]
    elif target == "Threshold":
        good = [array(rng, np.int32, n), rng.random(n) < 0.5, array(rng, np.int8, n)]
    elif target == "Threshold.from_batch_norm":
        good = [array(rng, np.float32, n) for _ in range(3)] + [rng.uniform(0, 2, n), 1e-5, 0.5]
    elif target == "DPReLU":
        good = [array(rng, np.float32, n) for _ in range(4)]
    elif target in ("conv2d", "conv2d_int", "conv2d_requant"):
        good, options = convolution(rng, target)
    elif target in CODED:
        good, options = coded_arguments(rng, target, n, k)
    elif target == "MixedIntWeight.pack":
        good = [array(rng, np.int8, n, k) // 16, array(rng, np.float32, n), rng.integers(2, 9, n)]
    elif target == "MixedIntWeight.quantize":
        good = [array(rng, float_type, n, k), 4, array(rng, np.float32, n)]
    elif target in DECODING:
        rows = array(rng, np.float32, n, k)
        good = {
            "rms_norm": [rows, array(rng, np.float32, k), 1e-5, array(rng, np.float32, n, k)],
            "swiglu": [rows],
            "decode_attention": [
                *(array(rng, np.float32, 1, 32), array(rng, np.float32, 8, 2, 2)),
                *(array(rng, np.float32, 4, 5, 4), int(rng.integers(0, 6))),
            ],
        }[target]
    elif target == "explain":
        op = str(rng.choice(qk.registry.OPS))
        good, options = arguments(rng, op)
        good = [op, *good]
    elif target == "IntWeight.quantize":
        good, options = (
            [array(rng, float_type, n, k)],
            {"granularity": "channel", "input_scale": array(rng, np.float32, k)},
        )
    elif target == "IntWeight.pack":
        good = [array(rng, np.int8, n, k), array(rng, np.float32, n, 1), array(rng, np.int16, n, 1)]
    elif target == "IntWeight":
        packed = array(rng, np.uint8, n, k)
        good = [packed, torch.ones(n, 1) if torch.is_tensor(packed) else np.ones((n, 1), np.float32)]
        options = {"shape": (n, k)}
    elif target == "InputQuant":
        good, options = [8, "tensor"], {"scale": rng.uniform(), "signed": True, "zero_point": 3}
    elif target == "Requant":
        good = [rng.integers(2**30, 2**31, n), rng.integers(-31, 32, n), 3, "single"]
    elif target == "Requant.from_scale":
        good = [rng.uniform(0, 1, n), 3, "float", 0.1]
    elif target == "nn.Linear":
        good = [weight(rng, n, k), array(rng, np.float32, n), input_quant(rng, k), "relu"]
    else:
        raise AssertionError(target)
    if rng.random() < 0.3 and target in qk.registry.OPS:
        options["backend"] = str(rng.choice(["cpu", "reference"]))
    if rng.random() < 0.3 and target in ("linear", "linear_requant", "requantize"):
        options["out_dtype"] = WORDS[rng.integers(len(WORDS))]
    good = [sometimes_garbage(rng, v) for v in good]
    return good, {name: sometimes_garbage(rng, v) for name, v in options.items()}


DECODING = ["rms_norm", "swiglu", "decode_attention"]
TARGETS = [
    *DECODING,
    "linear",
    "matmul_int",
    "linear_requant",
    "requantize",
    "quantize_activations",
    "explain",
]
TARGETS += ["power_dequantize"]
TARGETS += [
    "IntWeight",
    "IntWeight.quantize",
    "IntWeight.pack",
    "InputQuant",
    "Requant",
    "Requant.from_scale",
    "nn.Linear",
    "matmul_binary",
    "linear_binary",
    "pack_signs",
    "signs",
    "BinaryWeight",
    "BinaryWeight.pack",
    "BinaryWeight.quantize",
    "TernaryWeight",
    "TernaryWeight.pack",
    "TernaryWeight.quantize",
    "Threshold",
    "Threshold.from_batch_norm",
    "DPReLU",
]
TARGETS += ["conv2d", "conv2d_int", "conv2d_requant", "MixedIntWeight.pack", "MixedIntWeight.quantize"]
TARGETS += INTEGER + CODED
NAMES = {"signs": "linear"}  # targets that are another use of a public name


@pytest.mark.parametrize("target", TARGETS)
def test_garbage(target, rng):
    function = qk
    for name in NAMES.get(target, target).split("."):
        function = getattr(function, name)
    end, results, refusals = time.monotonic() + SECONDS * (0.5 if target[0].isupper() else 1), 0, 0
    while time.monotonic() < end or results < 5 or refusals < 5:
        try:
            good, options = arguments(rng, target)
        except OWN:  # a weight or requant of the recipe itself, e.g. a K bound
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                value = function(*good, **options)
            str(value)
            results += 1
        except OWN as e:
            assert str(e) and len(str(e)) < 4000
            refusals += 1
        except MemoryError:  # a padding of a hundred thousand
            assert target.startswith("conv2d")
            refusals += 1
        except Exception as e:
            raise AssertionError(f"{type(e).__name__}: {e}\n{target}(*{good}, **{options})") from e
    print(f"{target}: {results} results, {refusals} refusals")


@pytest.mark.parametrize(
    "isa", list(dict.fromkeys(k.isa or "reference" for k in qk.registry.kernels("linear")))
)
def test_results_agree_for_any_layout(isa, rng):
    """What is not refused is right, on every ISA: random layouts, dtypes and options against the reference."""
    end = time.monotonic() + SECONDS / 2
    with qk.force_isa(None if isa == "reference" else isa):
        while time.monotonic() < end:
            for target in ("linear", "matmul_int", "linear_requant", "requantize", "linear_binary", "signs"):
                op = NAMES.get(target, target)
                good, options = arguments(rng, target)
                options.pop("backend", None)
                if op == "linear" and isinstance(good[4], type(None)):
                    continue  # weight-only products have a tolerance
                try:
                    a = getattr(qk, op)(*good, **options)
                except OWN:
                    continue
                b = getattr(qk, op)(*good, **options, backend="reference")
                assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
                smooth = any(isinstance(v, str) and v in ("gelu", "silu") for v in good)
                if not smooth:  # those have a tolerance
                    same = np.array_equal(
                        *(np.asarray(v.float() if v.dtype == torch.bfloat16 else v) for v in (a, b))
                    )
                    assert same, (op, good, options)
