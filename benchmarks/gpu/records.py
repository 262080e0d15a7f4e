"""What our own record of a start says: the plan's terms and what was measured of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_autofit.experience.store import Store

PLANNED = {
    "asked": "asked_bytes",
    "weights": "weights_bytes",
    "activations": "activations_bytes",
    "CUDA graphs": "cuda_graphs_bytes",
    "non-torch": "non_torch_bytes",
    "KV cache": "kv_cache_bytes",
}
"""Term -> its name in the plan's budget."""
MEASURED = {
    "asked": "requested_bytes",
    "weights": "weights_bytes",
    "activations": "activation_peak_bytes",
    "CUDA graphs": "cuda_graph_bytes",
    "non-torch": "non_torch_bytes",
    "KV cache": "kv_cache_bytes",
}
"""Term -> its name among a rank's figures."""


def newest(folder: Path) -> dict[str, Any]:
    """The last start that left a record in ``folder``; empty if none did."""
    records = sorted(Store(folder).everything(), key=lambda record: str(record["run_id"]))
    return _summary(records[-1]) if records else {}


def _summary(record: dict[str, Any]) -> dict[str, Any]:
    plan = record.get("plan") or {}
    budget = plan.get("budget") or {}
    engine: dict[str, Any] = next(iter(record["engines"]), {})
    rank: dict[str, Any] = next(iter(engine.get("ranks") or []), {})
    return {
        "run_id": record["run_id"],
        "state": record["outcome"]["state"],
        "from_record": plan.get("record"),
        "settings": {each["field"]: each["value"] for each in plan.get("decisions") or []},
        "planned": {
            **{term: budget.get(name) for term, name in PLANNED.items()},
            "KV tokens": (plan.get("kv") or {}).get("tokens"),
        },
        "measured": {
            **{term: rank.get(name) for term, name in MEASURED.items()},
            "KV tokens": (engine.get("kv_cache") or {}).get("tokens"),
        },
        "graphs_estimated_bytes": rank.get("cuda_graph_estimate_bytes"),
        "profiling_skipped": bool(rank.get("profiling_skipped")),
        "serving": engine.get("serving"),
    }
