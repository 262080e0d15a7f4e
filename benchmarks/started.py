"""What the estimator says about starts that failed, with the settings that they were started with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.cases import Case
from benchmarks.measured import GIB
from benchmarks.scores import estimated_pool_bytes
from vllm_autofit.memory import kv_cache
from vllm_autofit.memory.cuda_graphs import graphs_are_subtracted
from vllm_autofit.memory.overhead import startup_overhead, unprofiled_bytes


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


def verdicts(cases: Iterable[Case]) -> list[Verdict]:
    """One for each failed start whose device is known."""
    failed = [case for case in cases if case.row.raw.get("outcome") == "fail"]
    return [verdict for case in failed if (verdict := _verdict(case)) is not None]


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
    if not graphs_are_subtracted(deployment.vllm):
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
