"""Starts that are sure to fail: what may be refused before anything is loaded. Pure.

"Doesn't fit" is said where the estimate says so; refused is only what is beyond doubt. What is too uncertain for that
is started, after a warning: a refusal that was wrong would cost more than a start that fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from vllm_autofit.planning.defaults import CPU_BY_SHARE_SINCE, Version
from vllm_autofit.units import GIB, MIB
from vllm_autofit.values import AUTO_CONTEXT, Budget, DeviceFacts, Plan, Request, Rules

MOVES_BYTES = 256 * MIB
"""Free memory moves by so much from one second to the next, page cache and all (vLLM 0.32.0 on a host, x86-64)."""

ERRORS = 2.0
"""Times the estimate's error: its bars hold in 95 of 100 starts, which is not enough to refuse one."""
DOUBT = 0.05
"""Of all that isn't KV cache, for what the bars don't know. Our choice, not measured."""

FIXED = ("kv_cache_memory_bytes", "num_gpu_blocks_override")
"""Settings that fix the KV cache's size, so that whether a context fits is arithmetic."""

RULES_OF: Version = (0, 32)
"""The version whose refusals were read (``planning/refusals.py``). Of others, what they say is only a warning."""


CPU_LOOKS_UNTIL: Version = (0, 32)
"""From 0.33 on the CPU worker compares nothing before it has loaded the model, and then takes off what it holds, with
pages of libraries that others hold as well (``v1/worker/cpu_worker.py``)."""


def certain_failures(
    plan: Plan, request: Request, devices: Sequence[DeviceFacts], rules: Rules, version: Version
) -> tuple[str, ...]:
    """Why a start can't succeed with any setting that the user left open; empty where it might.

    Args:
        plan: the best that could be made of it.
        request: what was asked for.
        devices: what the plan was made for.
        rules: the user's settings.
        version: of vLLM.
    """
    if request.spans_nodes:
        return ()
    refused = plan.refusals if version[:2] == RULES_OF else ()
    return (*refused, *_check_at_start(plan, request, devices, version), *_no_room(plan, request, rules))


def _check_at_start(plan: Plan, request: Request, devices: Sequence[DeviceFacts], version: Version) -> Iterator[str]:
    """vLLM looks first whether its share of each device is free."""
    decision = plan.decision("gpu_memory_utilization")
    share = decision.value
    if not isinstance(share, int | float) or not devices or not _looks(request, devices[0], version):
        return
    short = [each for each in devices if math.ceil(each.total_bytes * share) > each.free_bytes + MOVES_BYTES]
    known = len(devices) <= request.local_ranks or devices[0].kind == "cpu"
    if not short or not (known or len(short) == len(devices)):
        return
    worst = min(short, key=lambda each: each.free_bytes / each.total_bytes)
    fits = "" if decision.suggested is None else f": {decision.suggested} would work"
    yield (
        f"gpu_memory_utilization={share} asks for {share * worst.total_bytes / GIB:.2f} GiB of {worst.name}, and only "
        f"{worst.free_bytes / GIB:.2f} of {worst.total_bytes / GIB:.2f} GiB are free{fits}"
    )


def _looks(request: Request, device: DeviceFacts, version: Version) -> bool:
    """Whether vLLM compares its whole share with what is free, as we would."""
    if request.utilization_left_to_vllm is not None:
        return False
    if device.kind != "cpu":
        return True
    given = request.kv_cache_fixed_by in ("kv_cache_memory_bytes", "VLLM_CPU_KVCACHE_SPACE")
    return CPU_BY_SHARE_SINCE <= version <= CPU_LOOKS_UNTIL and not given


def _no_room(plan: Plan, request: Request, rules: Rules) -> Iterator[str]:
    """Not even the shortest context fits, by more than the estimate could be off."""
    budget, error = plan.budget, plan.confidence.error_bars.get("kv_cache", 0)
    if budget is None or not plan.estimated:
        return
    taken = budget.weights_bytes + budget.activations_bytes + budget.cuda_graphs_bytes + budget.non_torch_bytes
    short = plan.shortfall_bytes - _missed_at_check(budget) - _our_floor(plan, request, rules)
    if request.kv_cache_fixed_by in FIXED and taken + budget.kv_cache_bytes < budget.free_bytes:
        if short > DOUBT * (short + budget.kv_cache_bytes):
            yield (
                f"{request.kv_cache_fixed_by} gives the KV cache {budget.kv_cache_bytes / GIB:.2f} GiB, and one "
                f"request of the whole context needs {(short + budget.kv_cache_bytes) / GIB:.2f}"
            )
    elif short > ERRORS * error + DOUBT * taken:
        yield (
            f"{short / GIB:.2f} GiB are missing on {budget.device}: it takes {taken / GIB:.2f} GiB before the first "
            f"token, and {budget.asked_bytes * budget.ranks / GIB:.2f} of {budget.usable_bytes / GIB:.2f} GiB that "
            f"{'it may take' if budget.usable_bytes < budget.free_bytes else 'are free'} can be asked for"
        )


def _missed_at_check(budget: Budget) -> int:
    """What of a plan's shortfall is a share that isn't free: judged by ``_check_at_start``."""
    free = max(0, budget.usable_bytes - budget.startup_overhead_bytes) // budget.ranks
    return budget.ranks * max(0, budget.asked_bytes - free)


def _our_floor(plan: Plan, request: Request, rules: Rules) -> int:
    """The shortest context that we accept isn't vLLM's: it would start with less. One that the user set is."""
    own = "max_model_len" in request.set_by_user and request.values.get("max_model_len") != AUTO_CONTEXT
    if own or plan.kv is None or plan.budget is None:
        return 0
    return plan.budget.ranks * plan.kv.bytes_per_token * rules.min_context_tokens
