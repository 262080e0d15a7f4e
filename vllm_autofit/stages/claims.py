"""From what a file says about its stages to what each claims of its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_autofit.memory.cuda_graphs import LARGEST_SIZE, PIECE_BYTES, capture_grid
from vllm_autofit.memory.overhead import headroom, startup_overhead
from vllm_autofit.planning.defaults import NEWEST
from vllm_autofit.planning.planner import SMALLEST_ASK_BYTES
from vllm_autofit.planning.stage_shares import Claim, Room
from vllm_autofit.stages.stage import Stage
from vllm_autofit.values import DeviceFacts, Rules

LAYERS = 60
"""Of a model that isn't known, for its CUDA graphs: more than most. vLLM-Omni's workers (``worker/base.py``, 0.30.0)
capture them after they have sized the KV cache, and take nothing off for them. With all of vLLM's sizes that makes
1.0 GiB; vLLM-Omni's own check for parallel starts (``engine/stage_admission.py``) takes 2 GiB for any stage."""

LEAST_WEIGHT = 0.05
"""Of a stage that the file gives no share, where the others leave nothing."""


@dataclass(frozen=True)
class Need:
    """What one process of a stage needs inside of its share."""

    bytes: int
    why: str
    graph_bytes: int | None = None
    """Of its CUDA graphs, beside its share; None where they aren't known."""


def claims_of(stages: Sequence[Stage], fixed: frozenset[int], needs: Mapping[int, Need]) -> tuple[Claim, ...]:
    """The claims of the stages that live on devices.

    Args:
        stages: all of the file.
        fixed: the numbers of those whose share stays.
        needs: by number, of those whose part of the model is known.
    """
    return tuple(
        Claim(
            stage=stage.id,
            devices=stage.devices,
            weight=_weight(stage, stages),
            fixed=stage.share if stage.id in fixed else None,
            least_bytes=max(_needed(stage, needs), stage.kv_cache_bytes, SMALLEST_ASK_BYTES),
            beside_bytes=startup_overhead("cuda", stage.ranks, True) + _graph_bytes(stage, needs.get(stage.id)),
        )
        for stage in stages
        if stage.devices
    )


def _needed(stage: Stage, needs: Mapping[int, Need]) -> int:
    """Beside a KV cache of a given size, which counts on top."""
    return needs[stage.id].bytes + stage.kv_cache_bytes if stage.id in needs else 0


def _graph_bytes(stage: Stage, need: Need | None) -> int:
    """What the CUDA graphs of one process take beside its share; 0 for one that captures none."""
    if stage.eager or stage.diffusion:
        return 0
    if need is not None and need.graph_bytes is not None:
        return need.graph_bytes
    largest = LARGEST_SIZE if stage.max_num_seqs is None else min(LARGEST_SIZE, 2 * stage.max_num_seqs)
    return len(capture_grid(largest, NEWEST)) * (LAYERS + 1) * PIECE_BYTES


def _weight(stage: Stage, stages: Sequence[Stage]) -> float:
    """The share in the file; without one, an equal part of what the others leave on the stage's fullest device."""
    return stage.share or min(_rest(device, stages) for device in stage.devices)


def _rest(device: int, stages: Sequence[Stage]) -> float:
    here = [(each.devices.count(device), each.share) for each in stages if device in each.devices]
    silent = sum(count for count, share in here if share is None)
    return max(LEAST_WEIGHT, (1 - sum(count * share for count, share in here if share is not None)) / silent)


def room_of(device: DeviceFacts, rules: Rules) -> Room:
    """A device with the headroom that stays free on it, once for all stages."""
    kept = rules.headroom_bytes
    if kept is None:
        kept = headroom(device.memory_kind, device.total_bytes, rules.policy)
    return Room(device.total_bytes, device.free_bytes, kept)
