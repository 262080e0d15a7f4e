"""The sum for one device: what may be asked of it, and the utilisation that asks for just that."""

from __future__ import annotations

import math

UTILIZATION_STEP = 1e-4
"""Utilisation is cut to four decimals: short enough to type, and at most 0.01 % of a device lost."""


def asked_bytes(free_bytes: int, overhead_bytes: int, headroom_bytes: int, ranks: int) -> int:
    """Bytes that each of ``ranks`` workers may ask of a device, at least 0.

    Outside of what they ask there remains what others hold (not in ``free_bytes``), the overhead and the headroom.
    """
    return max(0, free_bytes - overhead_bytes - headroom_bytes) // ranks


def utilization(asked: int, total_bytes: int) -> float:
    """The largest ``gpu_memory_utilization``, in steps of ``UTILIZATION_STEP``, that asks for no more than ``asked``.

    vLLM takes ``ceil(total x utilisation)``; cutting downwards keeps that at or below ``asked``.
    """
    steps = math.floor(min(1.0, max(0, asked) / total_bytes) / UTILIZATION_STEP + 1e-9)
    while steps > 0 and math.ceil(total_bytes * round(steps * UTILIZATION_STEP, 4)) > asked:
        steps -= 1
    return round(steps * UTILIZATION_STEP, 4)
