"""The constants of ``vllm_autofit/memory`` that were fitted, fitted again on the same half of the models."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.cases import Case
from benchmarks.measured import GIB
from vllm_autofit.memory import cuda_graphs, overhead

MIB = 2**20


@dataclass(frozen=True)
class Fit:
    """One constant."""

    name: str
    stands: str
    now: str
    rows: str


def fitted(cases: Sequence[Case]) -> list[Fit]:
    """Each constant's median over the rows that show it alone."""
    seen = [case for case in cases if not case.held_out and case.row.version is not None]
    alone = [case for case in seen if case.deployment.tensor_parallel == 1]
    together = [case for case in seen if case.deployment.tensor_parallel > 1]
    pairs = [case for case in seen if case.deployment.tensor_parallel == 2]
    plain = [case for case in alone if not overhead.has_delta_rule(case.facts)]
    return [
        _fit("CUDA_KERNELS_BYTES", overhead.CUDA_KERNELS_BYTES, plain, _kernels),
        _fit("CUDA_FIRST_PEER_BYTES", overhead.CUDA_FIRST_PEER_BYTES, pairs, _first_peer),
        _fit("PIECE_BYTES", cuda_graphs.PIECE_BYTES, alone, _piece),
        _fit("TALKING_PIECE_BYTES", cuda_graphs.TALKING_PIECE_BYTES, together, _piece),
    ]


def _fit(name: str, stands: int, cases: Sequence[Case], show: Callable[[Case], float | None]) -> Fit:
    found = {case.row.id: value for case in cases if (value := show(case)) is not None}
    now = f"{statistics.median(found.values()) / MIB:.2f} MiB" if found else "no rows"
    return Fit(name, f"{stands / MIB:.2f} MiB", now, ", ".join(found))


def _kernels(case: Case) -> float | None:
    measured = case.row.gib("non_torch_gib")
    capability = case.deployment.compute_capability
    if measured is None or case.deployment.vllm >= overhead.TRIAL_CAPTURE_SINCE or capability is None:
        return None
    return measured * GIB if capability >= (9, 0) else None


def _first_peer(case: Case) -> float | None:
    measured = case.row.gib("non_torch_gib")
    if measured is None or overhead.has_delta_rule(case.facts):
        return None
    return measured * GIB - overhead.CUDA_KERNELS_BYTES


def _piece(case: Case) -> float | None:
    measured = case.row.gib("cudagraph_gib")
    pieces = cuda_graphs.captured_pieces(case.facts, case.deployment)
    if measured is None or measured <= 0 or not pieces:
        return None
    peers = (case.deployment.tensor_parallel - 1) * cuda_graphs.PEER_BYTES
    return max(0.0, measured * GIB - peers) / pieces
