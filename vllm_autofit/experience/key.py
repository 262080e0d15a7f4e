"""The key of a record: everything memory depends on and nothing else, and never one of vLLM's compile hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.facts.model import ModelIdentity
from vllm_autofit.values import DeviceFacts, Request

KEY_LENGTH = 16


def start_key(
    model: ModelIdentity, request: Request, devices: Sequence[DeviceFacts], vllm_version: str, launch: str
) -> str:
    """16 hexadecimal digits that two starts share when one's measurements hold for the other.

    Fields that we fill count as "left open" whatever they were filled with. Memory of a host counts by kind, not by
    size: what a start takes from it doesn't depend on how much there is, and virtual machines change it while they run.

    Args:
        model: who the model is; a moved folder keeps its key, changed content gets another.
        request: what was asked for.
        devices: what it runs on.
        vllm_version: the installed vLLM.
        launch: how vLLM was started (its usage context): a server has processes that a script hasn't.
    """
    parts: dict[str, Any] = {
        "vllm": vllm_version,
        "launch": launch,
        "model": model.fingerprint,
        "set": {name: request.values[name] for name in FIELDS if name in request.set_by_user},
        "knobs": request.knobs,
        "ranks": request.local_ranks,
        "devices": [
            [device.kind, device.name, device.total_bytes if device.size_is_fixed else None, device.ranks]
            for device in devices
        ],
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]
