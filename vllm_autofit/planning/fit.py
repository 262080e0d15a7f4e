"""Whether one deployment fits into what may be asked of a device, and what is left for its KV cache."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_autofit.demand import Demand
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory import kv_cache
from vllm_autofit.memory.cuda_graphs import graphs_come_off
from vllm_autofit.memory.overhead import unprofiled_bytes
from vllm_autofit.planning.learned import LearnedEstimator
from vllm_autofit.units import MIB

LEAST_SPARE_BYTES = 256 * MIB
"""Of a rank's device, free beside all that is known to be taken: fragments, and kernels loaded late."""


@dataclass(frozen=True)
class Room:
    """What one rank may take of its device."""

    asked_bytes: int
    """``gpu_memory_utilization x total``, before CUDA graphs that vLLM doesn't count are taken off."""
    beside_bytes: int
    """Free beside that once the start-up overhead is taken."""
    share_is_fixed: bool
    """The user set the utilisation; else what vLLM doesn't count makes us ask for less."""
    headroom_bytes: int = 0
    """What is kept free already."""
    headroom_is_fixed: bool = False
    """The user set it."""
    beyond_share_bytes: int = 0
    """Free, and more than the user lets this engine take."""
    proven_sequences: int = 0
    """It was seen to suffice under load with so many sequences, whatever isn't profiled; 0: nothing was seen."""


@dataclass(frozen=True)
class Fit:
    """One deployment weighed against a room. Bytes of one rank."""

    deployment: Deployment
    demand: Demand
    asked_bytes: int
    kv_bytes: int
    """Left for the KV cache; negative where not even the rest has room."""
    error_bytes: int
    """Half-width of ``kv_bytes``."""
    graphs_beside_bytes: int = 0
    """CUDA graphs that this vLLM doesn't count, and that were taken off ``asked_bytes``."""
    more_headroom_bytes: int = 0
    """Kept free beside the usual headroom, because this deployment takes more after it is profiled."""
    missing_bytes: int = 0
    """What finds no room whatever the KV cache gets: CUDA graphs beside a share that the user fixed, a KV cache of a
    size that the user fixed, weights while they are loaded."""

    @property
    def sure_kv_bytes(self) -> int:
        """What the KV cache gets in 95 of 100 starts."""
        return self.kv_bytes - self.error_bytes

    def needs(self, tokens: int, requests: int = 1) -> int:
        """Bytes of KV cache for ``requests`` requests of ``tokens`` tokens each; 0 for a model that has none."""
        if self.demand.kv is None:
            return 0
        return kv_cache.bytes_needed(self.demand.kv, self.deployment, tokens, requests)

    def is_hopeless(self, tokens: int) -> bool:
        """Whether not even one request of ``tokens`` tokens fits should the estimate be off by its error."""
        return self.shortfall(tokens) > self.error_bytes

    def shortfall(self, tokens: int) -> int:
        """Bytes that are missing before one request of ``tokens`` tokens can be served; 0 where it can."""
        return max(0, self.needs(tokens) - self.kv_bytes, self.missing_bytes)


def weigh(estimator: LearnedEstimator, deployment: Deployment, room: Room) -> Fit:
    """What ``deployment`` leaves for its KV cache.

    ``KV = asked - weights - activations - non-torch``, and less the CUDA graphs where this vLLM takes them off; others
    capture them beside what they asked for. A KV cache of a size that the user fixed is taken as it is, whatever was
    asked for. What API servers decode with is taken off in either case (0.28 to 0.33,
    ``multimodal/gpu_ipc_memory.py: reserve_mm_ipc_gpu_memory``).
    """
    terms, reserve = estimator.demand(deployment), deployment.frontend_reserve_bytes
    everything = [terms.weights, terms.activations, terms.non_torch, terms.cuda_graphs]
    there = room.asked_bytes + room.beside_bytes
    missing = max(0, estimator.loading_bytes(deployment) - there)
    fixed = _fixed_pool(terms, deployment)
    if fixed is not None:
        missing = max(missing, fixed + sum(term.bytes for term in everything) - there)
        kv_bytes = fixed if deployment.blocks_override is not None else fixed - reserve
        return Fit(deployment, terms, room.asked_bytes, kv_bytes, 0, missing_bytes=missing)
    asked, beside, more = room.asked_bytes, 0, 0
    proven = deployment.max_num_seqs <= room.proven_sequences
    taken = everything
    if not graphs_come_off(estimator.facts, deployment):
        taken = everything[:-1]
        if room.share_is_fixed:
            missing = max(missing, terms.cuda_graphs.bytes - room.beside_bytes)
        elif not proven:
            beside = min(asked, terms.cuda_graphs.bytes)
            asked -= beside
    if not (room.share_is_fixed or room.headroom_is_fixed or proven):
        unprofiled = unprofiled_bytes(estimator.facts, deployment).bytes
        more = min(asked, max(0, unprofiled + LEAST_SPARE_BYTES - room.headroom_bytes))
        asked -= more
    kv_bytes = asked - sum(term.bytes for term in taken) - reserve
    error = math.hypot(*(term.error_bytes for term in taken))
    return Fit(deployment, terms, asked, kv_bytes, round(error), beside, more, missing)


def _fixed_pool(terms: Demand, deployment: Deployment) -> int | None:
    """Bytes of a KV cache whose size the user fixed."""
    if terms.kv is None:
        return None
    if deployment.blocks_override is not None:
        return deployment.blocks_override * terms.kv.bytes_per_block
    return deployment.kv_cache_memory_bytes
