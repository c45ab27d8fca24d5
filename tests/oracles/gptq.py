"""AutoRound's torch layers for GPTQ checkpoints, which dequantize on the CPU.

Importing the package needs accelerate, datasets and more, so the two files with the layers are loaded with stand-ins
for the one helper of its ``utils`` that they use to pack. All arithmetic is AutoRound's own.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch


def _layers():
    folder = Path(importlib.util.find_spec("auto_round").origin).parent
    utils = ModuleType("auto_round.utils")
    utils.get_packing_device = lambda device: torch.device("cpu")
    spec = importlib.util.spec_from_file_location(
        "auto_round.utils.bit_packing", folder / "utils" / "bit_packing.py"
    )
    packing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packing)
    stand_ins = {"auto_round": ModuleType("auto_round"), "auto_round.utils": utils, spec.name: packing}
    before = {name: sys.modules.get(name) for name in stand_ins}
    sys.modules.update(stand_ins)
    try:
        modules = {
            "gptq": importlib.import_module("auto_round_extension.torch.qlinear_torch_zp"),
            "gptq_v2": importlib.import_module("auto_round_extension.torch.qlinear_torch"),
        }
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return {name: module.QuantLinear for name, module in modules.items()}


LAYERS = _layers()


def layer(checkpoint_format, bits, group_size, k, n, **arrays):
    """A layer of AutoRound's with these buffers."""
    made = LAYERS[checkpoint_format](bits, group_size, k, n, bias=False)
    for name, a in arrays.items():
        if name == "g_idx":
            made.register_buffer("g_idx", torch.as_tensor(a))
        else:
            setattr(made, name, torch.as_tensor(a))
    return made


def dequantize(checkpoint_format, bits, group_size, qweight, qzeros, scales, g_idx):
    """float32 (K, N): what the layer makes of the identity, its products in float32."""
    k, n = len(g_idx), qweight.shape[1]
    arrays = {
        "qweight": qweight,
        "qzeros": qzeros,
        "scales": torch.as_tensor(scales).float(),
        "g_idx": g_idx,
    }
    return layer(checkpoint_format, bits, group_size, k, n, **arrays)(torch.eye(k)).numpy()
