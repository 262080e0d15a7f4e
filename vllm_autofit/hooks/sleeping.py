"""Seams ``Executor.sleep`` and ``wake_up``: an engine gives memory back for a while (``--enable-sleep-mode``).

What it takes when it wakes stays claimed, so that an engine that starts meanwhile leaves it free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks import lease
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.memory_now import free_bytes_of
from vllm_autofit.hooks.runs import Run, run_of
from vllm_autofit.hooks.seams import Seam

PURPOSE = "keeping a sleeping engine's room"


def sleep_or_wake(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What vLLM's executor returns, after the claim says what it gave back or took."""
    run = run_of(getattr(instance, "vllm_config", None))
    if run is None or lease.NAME not in run:
        return wrapped(*args, **kwargs)
    before = attempt(PURPOSE, _free, run)
    result = wrapped(*args, **kwargs)
    if before is not None:
        attempt(PURPOSE, _note, run, before, bool(instance.is_sleeping))
    return result


def _note(run: Run, before: dict[str, int], sleeping: bool) -> None:
    freed = {place: free - before[place] for place, free in _free(run).items() if place in before}
    lease.asleep(run, freed, sleeping)


def _free(run: Run) -> dict[str, int]:
    """Free bytes of each claimed device, as far as they can be read."""
    found = {place: free_bytes_of(_place(place)) for place in run[lease.NAME]["devices"]}
    return {place: free for place, free in found.items() if free is not None}


def _place(identity: str) -> dict[str, Any]:
    """As ``worker_report.place`` names a device."""
    kind, _, index = identity.partition(":")
    return {"uuid": None, "device_index": int(index)} if kind == "cpu" else {"uuid": identity, "device_index": None}


SEAMS = tuple(
    Seam("vllm.v1.executor.abstract", name, (), sleep_or_wake, PURPOSE, optional=True)
    for name in ("Executor.sleep", "Executor.wake_up")
)
