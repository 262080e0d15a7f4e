"""Memory that leaks away is told from memory that comes and goes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vllm_autofit.hooks.growth import LEAST_FALL_BYTES, WARNED_SECONDS, WINDOW_SECONDS, Growth

GIB = 2**30
STEP = 60.0


def said(free: Callable[[float], float], windows: int = 20) -> list[float]:
    """What was said of a device with so much free at each moment: seconds until the end."""
    growth = Growth(0.0)
    moments = [STEP * number for number in range(int(windows * WINDOW_SECONDS / STEP))]
    told = [growth.seconds_left(moment, int(free(moment))) for moment in moments]
    return [left for left in told if left is not None]


def test_memory_that_leaks_away_is_told_once() -> None:
    """300 MiB each window, 10 GiB in all: gone after 34 windows."""
    (left,) = said(lambda moment: 10 * GIB - 300 * 2**20 * moment / WINDOW_SECONDS)
    assert 0 < left <= WARNED_SECONDS


@pytest.mark.parametrize(
    "free",
    [
        lambda _moment: 5 * GIB,
        lambda moment: 5 * GIB if moment % 120 else GIB // 2,
        lambda moment: 5 * GIB - LEAST_FALL_BYTES / 2 * moment / WINDOW_SECONDS,
        lambda moment: 5 * GIB - 2 * GIB * (moment > 3000),
        lambda moment: 500 * GIB - GIB * moment / WINDOW_SECONDS,
    ],
    ids=["steady", "peaks", "slowly", "one step", "days to go"],
)
def test_nothing_else_is(free: Callable[[float], float]) -> None:
    assert said(free) == []


def test_what_stopped_and_starts_again_is_told_again() -> None:
    def free(moment: float) -> float:
        leaking = moment / WINDOW_SECONDS % 20
        return 6 * GIB - 400 * 2**20 * min(leaking, 10)

    assert len(said(free, windows=40)) == 2
