"""Memory that leaks away while an engine serves: seen before it is gone. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_autofit.units import MIB

WINDOW_SECONDS = 600.0
WINDOWS = 3
"""Free memory has to be lower in each of so many windows in a row, at its best moment: what comes and goes with batches
doesn't count."""
LEAST_FALL_BYTES = 64 * MIB
"""A smaller fall from one window to the next is what any process does. Our choice, not measured."""
WARNED_SECONDS = 4 * 3600.0
"""How long before the end it is said."""


@dataclass
class Growth:
    """What is left of one device's free memory, window by window."""

    began: float
    """Monotonic seconds."""
    best: list[int] = field(default_factory=list)
    """The most that was free in each window that is over, the newest last."""
    _current: int = 0
    _warned: bool = False

    def seconds_left(self, moment: float, free_bytes: int) -> float | None:
        """Seconds until nothing is free if it goes on like this; None where it doesn't, or where it was said before."""
        if moment - self.began >= WINDOW_SECONDS:
            self.best = [*self.best, self._current][-WINDOWS - 1 :]
            self.began, self._current = moment, free_bytes
            left = self._left()
            if left is not None and left <= WARNED_SECONDS and not self._warned:
                self._warned = True
                return left
            self._warned = self._warned and left is not None
        self._current = max(self._current, free_bytes)
        return None

    def _left(self) -> float | None:
        falls = [before - after for before, after in zip(self.best, self.best[1:], strict=False)]
        if len(falls) < WINDOWS or min(falls) < LEAST_FALL_BYTES:
            return None
        return self.best[-1] * WINDOW_SECONDS * len(falls) / sum(falls)
