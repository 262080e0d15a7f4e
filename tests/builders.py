"""Small, valid things to start a test from. Each takes only what the test is about; the rest is ordinary."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from hypothesis import HealthCheck, settings

from vllm_autofit import FIELDS
from vllm_autofit.architecture import Attention, Dense, Layer, ModelFacts
from vllm_autofit.experience.record import SCHEMA, Record
from vllm_autofit.values import DeviceFacts, FieldValue, Model, Request

# A busy machine is slow now and then; that says nothing about the code.
settings.register_profile("vllm-autofit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("vllm-autofit")

GIB = 2**30
MIB = 2**20
VLLM_DEFAULTS: dict[str, FieldValue] = {
    "gpu_memory_utilization": 0.92,
    "max_model_len": None,
    "enforce_eager": False,
    "kv_cache_dtype": "auto",
    "max_num_seqs": None,
}
assert tuple(VLLM_DEFAULTS) == FIELDS


def request(set_by_user: dict[str, FieldValue] | None = None, **more: Any) -> Request:
    """A request for ``some/model`` in which the user set the fields of ``set_by_user`` and no other."""
    chosen = set_by_user or {}
    return Request("some/model", {**VLLM_DEFAULTS, **chosen}, frozenset(chosen), **more)


def cuda(total_gib: float = 80, free_gib: float | None = None, **more: Any) -> DeviceFacts:
    """An NVIDIA device; idle unless ``free_gib`` says otherwise."""
    return _device("cuda", "NVIDIA H100 80GB HBM3", total_gib, free_gib, more)


def host(total_gib: float = 32, free_gib: float | None = None, **more: Any) -> DeviceFacts:
    """The memory of a host."""
    return _device("cpu", "host memory", total_gib, free_gib, {"size_is_fixed": False, **more})


def llama(
    layers: int = 32,
    hidden: int = 4096,
    heads: int = 32,
    kv_heads: int = 8,
    width: int = 14336,
    vocabulary: int = 128256,
    context: int = 131072,
    **more: Any,
) -> Model:
    """A dense decoder, Llama 3.1 8B unless told otherwise, of which only the config is known."""
    layer = Layer(Attention(heads, kv_heads, 128, 128), Dense(width))
    facts = ModelFacts(
        "LlamaForCausalLM",
        "llama",
        hidden,
        vocabulary,
        (layer,) * layers,
        context_tokens=context,
        rotary_size=128,
        **more,
    )
    return Model("some/llama", facts)


def record(run_id: str = "20261121T120000Z-1-aaaa", state: str = "serving", **sections: Any) -> Record:
    """A record that ``check`` accepts. ``sections`` replace whole sections."""
    document: Record = {
        "schema": SCHEMA,
        "run_id": run_id,
        "key": "0123456789abcdef",
        "started_at": "2026-11-21T12:00:00+00:00",
        "identity": {"model": "some/model", "devices": []},
        "settings": {},
        "plan": {},
        "engines": [],
        "outcome": {"state": state},
    }
    return {**document, **sections}


def measured(
    run_id: str = "20261121T120000Z-1-aaaa",
    overhead_bytes: int = GIB,
    *,
    asked_gib: float = 60,
    least_free_gib: float | None = None,
    requests: int = 0,
    how: str | None = None,
    failure: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    rank: dict[str, Any] | None = None,
) -> Record:
    """The record of a start that came up on one device of 80 GiB, 70 of them free when it was planned.

    Args:
        run_id: its name.
        overhead_bytes: what it took before vLLM's check.
        asked_gib: what vLLM was told to take.
        least_free_gib: seen while it served.
        requests: answered.
        how: it ended; None: it still serves.
        failure: that ended it.
        engine: replaces what its engine says.
        rank: replaces what its worker says.
    """
    worker = {
        "device_index": 0,
        "before": {"device_index": 0, "free_bytes": 70 * GIB - overhead_bytes},
        "requested_bytes": round(asked_gib * GIB),
        "kv_cache_bytes": round(asked_gib * GIB) - 20 * GIB,
        "weights_bytes": 15 * GIB,
        "activation_peak_bytes": 4 * GIB,
        "non_torch_bytes": GIB,
    }
    served = {"requests": requests, "seconds": float(requests)}
    if least_free_gib is not None:
        served["devices"] = [{"device_index": 0, "least_free_bytes": round(least_free_gib * GIB)}]  # type: ignore[assignment]
    core = {
        "max_model_len": 8192,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "kv_cache_dtype": "auto",
        "enforce_eager": False,
        "serving": served,
        "ranks": [{**worker, **(rank or {})}],
    }
    ended = None if how is None else {"how": how, "failure": failure or {}}
    return record(
        run_id,
        identity={
            "devices": [{"index": 0, "kind": "cuda", "free_bytes": 70 * GIB, "total_bytes": 80 * GIB, "ranks": 1}]
        },
        engines=[{**core, **(engine or {})}],
        outcome={"state": "serving"} if ended is None else {"state": "ended", "ended": ended},
    )


def start_python(script: str, *arguments: object, **environ: str) -> subprocess.Popen[str]:
    """A real process that runs ``script`` and imports what this one imports; its output can be read."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _device(kind: Any, name: str, total_gib: float, free_gib: float | None, more: dict[str, Any]) -> DeviceFacts:
    facts: dict[str, Any] = {
        "kind": kind,
        "index": 0,
        "name": name,
        "total_bytes": int(total_gib * GIB),
        "free_bytes": int((total_gib if free_gib is None else free_gib) * GIB),
    }
    return DeviceFacts(**{**facts, **more})
