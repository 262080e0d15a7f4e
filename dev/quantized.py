"""Turns a small model's linear layers into quantised ones, in the tensor layouts of published checkpoints.

The numbers in them mean nothing; names, shapes and types are those that vLLM reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACK = 8
"""4-bit weights in an int32."""


def quantize(folder: Path, settings: dict[str, Any]) -> None:
    """Rewrite ``model.safetensors`` and ``config.json`` in ``folder`` as ``quantization_config`` ``settings`` says.

    Raises KeyError for a method that isn't known here.
    """
    from safetensors.torch import load_file, save_file

    layout = _LAYOUTS[settings.get("format") or settings["quant_method"]]
    file = folder / "model.safetensors"
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(file).items():
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            tensors.update({f"{module}.{each}": value for each, value in layout(tensor, _group(settings)).items()})
        else:
            tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}, indent=2) + "\n")


def _group(settings: dict[str, Any]) -> int:
    groups = settings.get("config_groups")
    size = groups["group_0"]["weights"].get("group_size") if groups else settings.get("group_size")
    return int(size or 0)


def _awq(weight: Any, group: int) -> dict[str, Any]:
    outputs, inputs = weight.shape
    return {
        "qweight": _int32(inputs, outputs // PACK),
        "qzeros": _int32(inputs // group, outputs // PACK),
        "scales": _scales(inputs // group, outputs),
    }


def _gptq(weight: Any, group: int) -> dict[str, Any]:
    import torch

    outputs, inputs = weight.shape
    return {
        "qweight": _int32(inputs // PACK, outputs),
        "qzeros": _int32(inputs // group, outputs // PACK),
        "scales": _scales(inputs // group, outputs),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
    }


def _packed(weight: Any, group: int) -> dict[str, Any]:
    import torch

    outputs, inputs = weight.shape
    return {
        "weight_packed": _int32(outputs, inputs // PACK),
        "weight_scale": _scales(outputs, inputs // group),
        "weight_shape": torch.tensor([outputs, inputs]),
    }


def _eight_bits(weight: Any, _group: int) -> dict[str, Any]:
    import torch

    return {"weight": torch.zeros(weight.shape, dtype=torch.int8), "weight_scale": _scales(weight.shape[0], 1)}


def _fp8(weight: Any, _group: int) -> dict[str, Any]:
    import torch

    return {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": _scales(weight.shape[0], 1)}


def _int32(*shape: int) -> Any:
    import torch

    return torch.zeros(shape, dtype=torch.int32)


def _scales(*shape: int) -> Any:
    import torch

    return torch.ones(shape, dtype=torch.bfloat16)


_LAYOUTS: dict[str, Callable[[Any, int], dict[str, Any]]] = {
    "awq": _awq,
    "gptq": _gptq,
    "pack-quantized": _packed,
    "int-quantized": _eight_bits,
    "float-quantized": _fp8,
}
"""By ``format`` of compressed-tensors, or by method."""
