"""What the estimator says about starts that failed, with the settings that they were started with."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import Case
from benchmarks.measured import ASSUMED_VERSION, GIB
from benchmarks.scores import estimated_pool_bytes
from vllm_autofit import FIELDS
from vllm_autofit.memory import kv_cache
from vllm_autofit.memory.cuda_graphs import graphs_come_off
from vllm_autofit.memory.overhead import startup_overhead, unprofiled_bytes
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.values import AUTO_CONTEXT, Lessons, Plan, Rules

OTHER_HARDWARE_OR_WEIGHTS = re.compile(r"4-bit|parallel|checkpoint|smaller model|more devices", re.IGNORECASE)
"""Fixes after which a refusal was right: nothing that the five settings can do made it start."""


@dataclass(frozen=True)
class Verdict:
    """One failed start."""

    case: Case
    predicted: str
    """What gives, and by how much."""
    foreseen: bool
    """Whether it is predicted not to start, or not to last."""
    from_print: bool = False
    """It rests on the number of blocks that the start itself printed, not on an estimate."""
    planned: str = ""
    """What a plan does instead where the five fields are left to it."""
    avoided: bool = False
    """Whether that start would have been spared: another setting where it failed, or a refusal before loading."""


def verdicts(cases: Iterable[Case]) -> list[Verdict]:
    """One for each failed start whose device is known."""
    failed = [case for case in cases if case.row.raw.get("outcome") == "fail"]
    found = [verdict for case in failed if (verdict := _verdict(case)) is not None]
    return [verdict if verdict.from_print else replace(verdict, **_planned(verdict.case)) for verdict in found]


def _planned(case: Case) -> dict[str, Any]:
    """The plan for the same model and device, all five fields left open, and whether it spares the failure."""
    row = case.row
    request = replace(
        row.request,
        values={**dict.fromkeys(FIELDS), "kv_cache_dtype": "auto"},
        set_by_user=frozenset(),
        local_ranks=case.deployment.world,
    )
    plan = make_plan(
        request,
        [replace(row.device, index=index) for index in range(case.deployment.world)],
        Lessons(),
        Rules(),
        model=case.model,
        version=row.version or ASSUMED_VERSION,
    )
    if case.config_lacks_quantization:
        return {"planned": "not judged: only the config of the unquantised original is published"}
    if not plan.fits:
        fix = str(row.raw.get("fix_reported", ""))
        refused = f"refused: {plan.shortfall_bytes / GIB:.2f} GiB short"
        return {"planned": refused, "avoided": not fix or bool(OTHER_HARDWARE_OR_WEIGHTS.search(fix))}
    chosen = ", ".join(f"{name} {value if value != AUTO_CONTEXT else 'auto'}" for name, value in plan.filled.items())
    return {"planned": chosen, "avoided": _turns_the_lever(case, plan)}


def _turns_the_lever(case: Case, plan: Plan) -> bool:
    """Whether the plan differs from the start where that failed: ask for more, or for less, or for shorter."""
    asked, budget = case.row.asked_bytes, plan.budget
    if asked is None or budget is None:
        return False
    phase = case.row.raw.get("failure_phase")
    if phase == "startup_check":
        return budget.asked_bytes <= case.row.device.free_bytes
    if phase in ("no_kv_memory", "max_len_too_long"):
        return True  # the plan fits: a context that does, and at least as much of the device as that takes
    fewer = (plan.filled.get("max_num_seqs") or case.deployment.max_num_seqs) != case.deployment.max_num_seqs
    return budget.asked_bytes < asked or fewer or bool(plan.filled.get("enforce_eager"))


def _verdict(case: Case) -> Verdict | None:
    asked, total = case.row.asked_bytes, case.row.total_bytes
    pool = estimated_pool_bytes(case, weights_measured=case.config_lacks_quantization)
    if asked is None or total is None or pool is None:
        return _by_blocks(case)
    free = case.row.gib("free_at_start_gib")
    if free is not None and asked > free * GIB:
        return Verdict(case, f"asks for {asked / GIB - free:.2f} GiB more than is free", True)
    layout, deployment = case.demand.kv, case.deployment
    if layout is None:
        return Verdict(case, "needs no KV cache", False)
    if pool <= 0:
        return Verdict(case, f"{-pool / GIB:.2f} GiB short before any KV cache", True)
    needed = kv_cache.bytes_needed(layout, deployment, deployment.max_model_len)
    if pool < needed:
        return Verdict(case, f"{(needed - pool) / GIB:.2f} GiB short for one request of the whole context", True)
    sequences = kv_cache.most_sequences(layout, kv_cache.blocks(layout, pool))
    if sequences is not None and sequences < deployment.max_num_seqs and not deployment.enforce_eager:
        return Verdict(case, f"blocks for {sequences} sequences, {deployment.max_num_seqs} asked for", True)
    outside = total - asked - startup_overhead("cuda", deployment.world, True)
    later = unprofiled_bytes(case.facts, deployment).bytes
    if not graphs_come_off(case.facts, deployment):
        later += case.demand.cuda_graphs.bytes
    if later > outside:
        return Verdict(case, f"{(later - outside) / GIB:.2f} GiB short after the KV cache is taken", True)
    return Verdict(case, f"fits, {(pool - needed) / GIB:.2f} GiB to spare", False)


def _by_blocks(case: Case) -> Verdict | None:
    """Where only the number of blocks was printed: too few for the states of so many sequences."""
    count = case.row.gib("num_gpu_blocks")
    if count is None or case.demand.kv is None:
        return None
    sequences = kv_cache.most_sequences(case.demand.kv, int(count))
    if sequences is None:
        return None
    few = sequences < case.deployment.max_num_seqs
    return Verdict(
        case, f"{sequences} blocks printed, {case.deployment.max_num_seqs} sequences asked for", few, from_print=True
    )
