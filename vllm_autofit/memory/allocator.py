"""What torch's CUDA caching allocator counts as allocated for a given list of tensors.

vLLM prints ``torch.cuda.max_memory_allocated`` right after a reset (``utils/mem_utils.DeviceMemoryProfiler``), and
torch counts whole blocks. The constants are those of torch's ``CUDACachingAllocator`` (names in brackets). Published
starts agree to the last digit printed, on vLLM 0.8 to 0.27: Qwen2 7B on two GPUs (7.1217 GiB), Gemma 3 1B (1.9148),
Qwen3 32B on two GPUs (30.59), DeepSeek R1's distilled Qwen 32B on two (30.73).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from vllm_autofit.units import MIB

ROUNDING = 512
"""Every request is rounded up to this (``kMinBlockSize``)."""
SMALL = MIB
"""Requests up to here share segments and are split to the last 512 bytes (``kSmallSize``)."""
SHARED_SEGMENT = 20 * MIB
"""What larger requests below ``LARGE`` are cut from (``kLargeBuffer``)."""
LARGE = 10 * MIB
"""Requests from here on get a segment of their own (``kMinLargeAlloc``) ..."""
SEGMENT_ROUNDING = 2 * MIB
"""... rounded up to this (``kRoundLarge``)."""


def allocated_bytes(requests: Iterable[int]) -> int:
    """Bytes that tensors of these sizes count for, made one after the other and kept.

    A large block is split only if more than ``SMALL`` would remain; what is split off serves later requests, the
    smallest that fits first.
    """
    total = 0
    free: list[int] = []
    for request in requests:
        size = rounded(request, ROUNDING)
        if size > SMALL:
            block = _block(size, free)
            if block - size > SMALL:
                insort(free, block - size)
            else:
                size = block
        total += size
    return total


def rounded(size: int, multiple: int) -> int:
    """``size`` rounded up."""
    return -(-size // multiple) * multiple


def _block(size: int, free: list[int]) -> int:
    """A block of at least ``size``, taken off ``free`` or new."""
    place = bisect_left(free, size)
    if place < len(free):
        return free.pop(place)
    return SHARED_SEGMENT if size < LARGE else rounded(size, SEGMENT_ROUNDING)
