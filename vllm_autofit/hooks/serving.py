"""Watches an engine while it serves: samples its memory now and then, keeps its record up to date, notes how it ended.

A daemon thread in the engine core's process does it, beside vLLM: no function of vLLM's waits for it, but the last
one, and that not for long. Whatever happens to the process, the record holds what was written last.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from vllm_autofit.experience.record import now
from vllm_autofit.hooks.failures import described
from vllm_autofit.hooks.growth import Growth
from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.memory_now import allocator_peaks, free_bytes_of
from vllm_autofit.hooks.runs import Run, record_end, record_serving
from vllm_autofit.hooks.scheduler import magnitude, tally_of
from vllm_autofit.units import GIB, MIB

SAMPLE_SECONDS = 5.0
"""Between two samples, and before the first write. A sample takes a fraction of a millisecond (docs/benchmarks.md)."""
LONGEST_PAUSE_SECONDS = 300.0
"""Between two writes of an engine that serves evenly: what a crash can lose of its counts."""
QUIET_SECONDS = 30.0
"""Between two writes because the engine fell quiet: what it served until then is kept if it is stopped later."""
NOTABLE_BYTES = 64 * MIB
"""Free memory that falls by more than this is written down at once: what uses it up may end the process soon."""

END_SECONDS = 10.0
"""How long an engine that ends waits until that is written, if a driver or a disk doesn't answer. Both were given up
before, or are within that time (``deadline.py``)."""

WATCH = "_vllm_autofit_watch"
Figures = dict[str, Any]


def watch(run: Run, engine: Any, dp_rank: int, places: Sequence[dict[str, Any]]) -> None:
    """Watch an engine that came up, until it ends.

    Args:
        run: its start.
        engine: vLLM's ``EngineCore``.
        dp_rank: its entry in the record.
        places: where its workers are (``worker_report.place``).
    """
    setattr(engine, WATCH, Watch(run, engine, dp_rank, places))


def end(engine: Any, error: BaseException | None = None) -> None:
    """Note that an engine ended: by itself, or for an exception. Only the first end of an engine counts."""
    watching = getattr(engine, WATCH, None)
    if watching is not None:
        watching.end(error)


class Pace:
    """When figures are worth a write: soon at first, then ever less often, and in between when something happened."""

    def __init__(self, began: float) -> None:
        self._pause = SAMPLE_SECONDS
        self._next = began + self._pause
        self._last = began
        self._seen: Figures | None = None
        self._written: Figures | None = None

    def due(self, moment: float, figures: Figures) -> bool:
        """Whether to write ``figures`` at ``moment`` (monotonic seconds); if so, that counts as done."""
        quiet = figures == self._seen and moment >= self._last + QUIET_SECONDS
        self._seen = figures
        if figures == self._written:
            return False
        if moment >= self._next:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            self._next = moment + self._pause
        elif not quiet and (self._written is None or not _happened(self._written, figures)):
            return False
        self._written, self._last = figures, moment
        return True


def _happened(before: Figures, after: Figures) -> bool:
    """The first request was served, or the 8th or 64th, or the memory of a device fell to a notable low."""
    if magnitude(before["requests"]) != magnitude(after["requests"]):
        return True
    least = {device["device_index"]: device["least_free_bytes"] for device in before["devices"]}
    return any(
        (least[device["device_index"]] or 0) - (device["least_free_bytes"] or 0) > NOTABLE_BYTES
        for device in after["devices"]
    )


class Watch:
    """One engine under watch. It holds no reference to the engine: what nobody else uses must go."""

    def __init__(self, run: Run, engine: Any, dp_rank: int, places: Sequence[dict[str, Any]]) -> None:
        self._run, self._dp_rank = run, dp_rank
        self._engine = weakref.ref(engine)
        self._places = {place["device_index"]: place for place in places if place["device_index"] is not None}
        self._least: dict[int, int] = {}
        self._growth: dict[int, Growth] = {}
        self._tally = tally_of(run)
        self._since, self._began = now(), time.monotonic()
        self._pace = Pace(self._began)
        self._ending = threading.Lock()
        self._failure: dict[str, Any] | None = None
        self._over = threading.Event()
        self._finalizer = weakref.finalize(engine, self.end)  # collected, or the interpreter ends
        self._thread = threading.Thread(target=self._sample_until_over, name="vllm-autofit", daemon=True)
        self._thread.start()

    def end(self, error: BaseException | None = None) -> None:
        """Have the last figures written, and how it ended. Nothing is written after that."""
        if not self._ending.acquire(blocking=False):
            return
        if error is not None:
            self._failure = described(error)
        self._over.set()
        self._tally.notable.set()
        self._finalizer.detach()
        if threading.current_thread() is not self._thread:  # the last to hold the engine may be that thread
            self._thread.join(END_SECONDS)

    def _sample_until_over(self) -> None:
        """All reading and writing is done here: whatever doesn't answer, the engine doesn't wait for it."""
        while not self._over.is_set():
            self._tally.notable.wait(SAMPLE_SECONDS)
            self._tally.notable.clear()
            if not self._over.is_set():
                attempt("watching this engine", self._sample)
        attempt("recording how this engine ended", self._record_end)

    def _sample(self) -> None:
        figures = self._figures()
        if self._pace.due(time.monotonic(), figures):
            record_serving(self._run, self._dp_rank, self._serving(figures))

    def _record_end(self) -> None:
        record_end(self._run, self._dp_rank, self._serving(self._figures()), self._failure)

    def _figures(self) -> Figures:
        """What was seen so far, this moment included."""
        scheduler = getattr(self._engine(), "scheduler", None)
        if hasattr(scheduler, "kv_cache_manager"):
            self._tally.see_kv_usage(scheduler)
        return {
            "requests": self._tally.requests,
            "prompt_tokens": self._tally.prompt_tokens,
            "generated_tokens": self._tally.generated_tokens,
            "preemptions": self._tally.preemptions,
            "peak_kv_usage": round(self._tally.peak_kv_usage, 4),
            "devices": [self._device(place) for place in self._places.values()],
        }

    def _device(self, place: dict[str, Any]) -> dict[str, Any]:
        index = place["device_index"]
        free = attempt("reading the free memory", free_bytes_of, place)
        if free is not None:
            self._least[index] = min(free, self._least.get(index, free))
            self._warn_of_growth(index, free)
        peaks = allocator_peaks(place["ordinal"]) if place["in_engine_core"] else None
        reserved, allocated = peaks or (None, None)
        return {
            "device_index": index,
            "least_free_bytes": self._least.get(index),
            "peak_reserved_bytes": reserved,
            "peak_allocated_bytes": allocated,
        }

    def _warn_of_growth(self, index: int, free: int) -> None:
        growth = self._growth.setdefault(index, Growth(time.monotonic()))
        left = growth.seconds_left(time.monotonic(), free)
        if left is not None:
            logger.warning(
                "vllm-autofit: %.2f GiB are left on device %d, and ever less: nothing in about %.0f minutes. "
                "Restart before that, and see who grows (vllm-autofit doctor).",
                free / GIB,
                index,
                left / 60,
            )

    def _serving(self, figures: Figures) -> dict[str, Any]:
        seconds = round(time.monotonic() - self._began, 1)
        return {"since": self._since, "until": now(), "seconds": seconds, **figures}
