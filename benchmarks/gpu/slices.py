"""Time: a limit for a cell, whatever it hangs in, and how long one is expected to take."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from benchmarks.gpu.cells import Cell

LIMIT_SECONDS = 450.0
"""For a cell, its end included: it has to fit in a slice of 8 minutes."""
EXPECTED_SECONDS = {"start": 150.0, "two": 240.0, "refused": 60.0}
"""Before anything was measured; the others take as long as ``start``."""
SPREAD = 1.25
"""A cell may take so much longer than one like it."""


class TimeUpError(Exception):
    """A cell's time is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises in the block, wherever it is, once it has taken so long. Main thread only.

    Raises:
        TimeUpError: it took too long.
    """

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise TimeUpError(f"{seconds:.0f} s were not enough")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def expected_seconds(cell: Cell, documents: Mapping[str, Mapping[str, Any]], attempted: float) -> float:
    """How long a cell may take: as its own attempts, cells like it, or cells of its model; else a guess.

    Args:
        cell: which.
        documents: all results.
        attempted: seconds after which its longest attempt was cut.
    """
    ran = [each for each in documents.values() if each.get("model") == cell.model and not each.get("skipped")]
    same = [each for each in ran if each["scenario"] == cell.scenario]
    alike = [each for each in same if each["who"] == cell.who] or same or (ran if cell.scenario != "two" else [])
    latest = max((each["number"] for each in alike), default=1)  # a first start compiles, the next ones don't
    measured = SPREAD * max((float(each["seconds"]) for each in alike if each["number"] == latest), default=0.0)
    guess = measured or EXPECTED_SECONDS.get(cell.scenario, EXPECTED_SECONDS["start"])
    return min(LIMIT_SECONDS, max(guess, SPREAD * attempted))
