"""Which way settings must move after a failure, and whether they do. Pure.

Running out beside what vLLM asked for wants LESS of the device; a KV cache without room wants MORE, or less of all that
isn't KV cache. Turning the wrong way makes it worse. A machine that runs out while vLLM compiles and profiles, before
there is a KV cache, is helped by neither: only by not compiling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from vllm_autofit.experience.lessons import TAKES_LESS, TAKES_MORE
from vllm_autofit.experience.record import KILLED
from vllm_autofit.values import AUTO_CONTEXT

Lever = Literal["less", "more", "eager"]
Settings = Mapping[str, Any]
"""Values of the five fields."""

LEAST_STEP = 0.001
"""Of ``gpu_memory_utilization``: a smaller change says nothing."""
ENOUGH = 0.9
"""Of what was missing. Messages show two decimals of a GiB, and free memory moves."""


def lever(failure: Mapping[str, Any], device_kind: str) -> Lever | None:
    """What a failure asks for; None where none of the five fields can cure it.

    Args:
        failure: as ``failures.described`` makes it.
        device_kind: ``cuda`` or ``cpu``: what the five fields govern is that device's memory.
    """
    if failure.get("type") == KILLED and failure["phase"] == "profile_run":
        return "eager"
    governed = ("host", "device") if device_kind == "cpu" else ("device",)
    if not failure.get("is_capacity") or failure.get("resource") not in governed:
        return None
    phase = failure["phase"]
    if phase in TAKES_MORE or "consumed_bytes" in failure["numbers"]:
        return "more"
    return "less" if phase == "startup_check" or phase in TAKES_LESS else None


def turned(way: Lever, before: Settings, after: Settings, missing: float = 0.0) -> bool:
    """Whether ``after`` differs from ``before`` in the direction that was asked for, and not in the other.

    Args:
        way: which.
        before: settings of the failed attempt.
        after: those of the next.
        missing: the share of the device that was missing, as far as it is known: a smaller step is no help.
    """
    step = max(LEAST_STEP, ENOUGH * missing)
    change = (after["gpu_memory_utilization"] or 0) - (before["gpu_memory_utilization"] or 0)
    takes_less = _fewer(before["max_num_seqs"], after["max_num_seqs"]) or _eager(before, after)
    if way == "eager":
        return _eager(before, after)
    if way == "less":
        return change <= -step or (takes_less and change < LEAST_STEP)
    shorter = _fewer(before["max_model_len"], after["max_model_len"])
    smaller_kv = before["kv_cache_dtype"] != after["kv_cache_dtype"] and "8" in str(after["kv_cache_dtype"])
    return change >= step or takes_less or shorter or smaller_kv


def is_there_again(failure: Mapping[str, Any], budget: Mapping[str, Any] | None) -> bool:
    """Whether what a check at the start missed is free now: then the same settings do.

    Args:
        failure: as ``failures.described`` makes it.
        budget: of the next attempt.
    """
    requested = failure["numbers"].get("requested_bytes")
    if failure["phase"] != "startup_check" or budget is None or not isinstance(requested, int):
        return False
    return bool(requested * budget["ranks"] + budget["startup_overhead_bytes"] <= budget["free_bytes"])


def missing_share(way: Lever, failure: Mapping[str, Any], kv_cache_is_fixed: bool) -> float:
    """Of the device, what was missing; 0 where the failure doesn't say.

    Args:
        way: what the failure asks for.
        failure: as ``failures.described`` makes it.
        kv_cache_is_fixed: the user gave it a size: then no share makes it larger.
    """
    numbers = failure["numbers"]
    total = numbers.get("total_bytes")
    if way == "more" and kv_cache_is_fixed:
        return math.inf
    if way == "more":
        needed, there = numbers.get("kv_needed_bytes"), numbers.get("kv_available_bytes")
    elif failure["phase"] == "startup_check":
        needed, there = numbers.get("requested_bytes"), numbers.get("free_bytes")
    else:
        needed, there = numbers.get("tried_bytes"), numbers.get("free_bytes")
    return max(0.0, (needed - there) / total) if total and None not in (needed, there) else 0.0


def _fewer(before: int | None, after: int | None) -> bool:
    """Where nobody chose, vLLM chooses more than we would; and it fits a context by itself only by shortening it."""
    if before == after or after is None:
        return False
    if after == AUTO_CONTEXT or before is None or before == AUTO_CONTEXT:
        return True
    return after < before


def _eager(before: Settings, after: Settings) -> bool:
    return bool(after["enforce_eager"] and not before["enforce_eager"])
