"""The key of a record: everything memory depends on and nothing else, and never one of vLLM's compile hashes.

Which settings those are: ``facts/knobs.py`` and ``facts/variables.py``. The key is made from the request, before vLLM
builds its config and writes what it chose into the ``EngineArgs``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.facts.knobs import WEIGHTS
from vllm_autofit.facts.model import ModelIdentity
from vllm_autofit.values import DeviceFacts, Request

KEY_LENGTH = 16
TALKING = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "prefill_context_parallel_size",
    "decode_context_parallel_size",
    "data_parallel_size",
    "enable_expert_parallel",
    "nnodes",
)
"""Knobs that decide which ranks talk to each other, and so what NCCL takes."""


def start_key(
    model: ModelIdentity, request: Request, devices: Sequence[DeviceFacts], vllm_version: str, launch: str
) -> str:
    """16 hexadecimal digits that two starts share when one's measurements hold for the other.

    Fields that we fill count as "left open" whatever they were filled with, knobs only where they differ from vLLM's
    default: one written out is one left out. Memory of a host counts by kind, not by size: what a start takes from it
    doesn't depend on how much there is, and virtual machines change it while they run.

    Args:
        model: who the model is; a moved folder keeps its key, changed content gets another.
        request: what was asked for.
        devices: what it runs on.
        vllm_version: the installed vLLM.
        launch: how vLLM was started (its usage context): a server has processes that a script hasn't.
    """
    parts: dict[str, Any] = {
        "vllm": vllm_version.partition("+")[0],  # what follows says for which kind of device it was built
        "launch": launch,
        "model": model.fingerprint,
        "set": {name: request.values[name] for name in FIELDS if name in request.set_by_user},
        "knobs": {name: request.knobs[name] for name in request.knobs_changed},
        "ranks": request.local_ranks,
        "devices": [
            [device.kind, _name(device), device.total_bytes if device.size_is_fixed else None, device.ranks]
            for device in devices
        ],
    }
    return _digest(parts)


def groups(model: ModelIdentity, request: Request, devices: Sequence[DeviceFacts]) -> dict[str, str]:
    """Under which names records of other keys are found that teach something about this start.

    Returns:
        ``model``: starts that load the same weights in the same shards, on whatever device. ``device``: starts of any
        model on devices of the same kind, as many ranks to a device and talking in the same way. Neither depends on the
        version of vLLM: what another one measured is a prior.
    """
    changed = {name: request.knobs[name] for name in request.knobs_changed}
    weights: dict[str, Any] = {name: changed[name] for name in WEIGHTS if name in changed}
    if "enable_expert_parallel" in changed:  # experts are spread over the engines, too
        weights |= {name: changed[name] for name in TALKING if name in changed}
    talking = {name: changed[name] for name in TALKING if name in changed}
    places = sorted((device.kind, _name(device), device.ranks, device.size_is_fixed) for device in devices)
    return {
        "model": "model-" + _digest({"model": model.fingerprint, "weights": weights}),
        "device": "device-" + _digest({"devices": places, "ranks": request.local_ranks, "talking": talking}),
    }


def _name(device: DeviceFacts) -> str:
    """What a host's memory is called depends on who reads it."""
    return "" if device.kind == "cpu" else device.name


def _digest(parts: dict[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
