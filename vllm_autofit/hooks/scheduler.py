"""Seams ``Scheduler._free_request`` and ``_preempt_request``: what an engine served, counted request by request.

Both give KV blocks back, and nothing else does: the fullest that the KV cache ever was is what it is right before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.runs import Run, run_of
from vllm_autofit.hooks.seams import Seam


@dataclass
class Tally:
    """What one engine served so far. Requests that were given up before they ran don't count."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    peak_kv_usage: float = 0.0
    notable: threading.Event = field(default_factory=threading.Event)
    """Set when ``requests`` comes to 1, 8, 64 ...: worth a write at once."""

    def see_kv_usage(self, scheduler: Any) -> None:
        """Note how much of the KV cache is in use at this moment."""
        self.peak_kv_usage = max(self.peak_kv_usage, float(scheduler.kv_cache_manager.usage))


def magnitude(count: int) -> int:
    """Digits to the base of 8: changes at 1, 8, 64 ..."""
    return (count.bit_length() + 2) // 3


_tallies: dict[str, Tally] = {}


def tally_of(run: Run) -> Tally:
    """The counts of this process's engine of a start."""
    return _tallies.setdefault(run["run_id"], Tally())


def free_request(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A request is over, and about to give back what it holds."""
    attempt("counting requests", _count_request, instance, args[0] if args else kwargs["request"])
    return wrapped(*args, **kwargs)


def preempt_request(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The KV cache is full: a running request gives its blocks back and waits."""
    attempt("counting preemptions", _count_preemption, instance)
    return wrapped(*args, **kwargs)


def _count_request(scheduler: Any, request: Any) -> None:
    run = run_of(scheduler.vllm_config)
    if run is None or not (request.num_computed_tokens or request.num_output_tokens):
        return
    tally = tally_of(run)
    tally.requests += 1
    if magnitude(tally.requests) != magnitude(tally.requests - 1):
        tally.notable.set()
    tally.prompt_tokens += request.num_prompt_tokens
    tally.generated_tokens += request.num_output_tokens
    tally.see_kv_usage(scheduler)


def _count_preemption(scheduler: Any) -> None:
    run = run_of(scheduler.vllm_config)
    if run is None:
        return
    tally = tally_of(run)
    tally.preemptions += 1
    tally.see_kv_usage(scheduler)


SEAMS = (
    Seam(
        "vllm.v1.core.sched.scheduler",
        "Scheduler._free_request",
        ("request",),
        free_request,
        "counting requests",
        optional=True,
    ),
    Seam(
        "vllm.v1.core.sched.scheduler",
        "Scheduler._preempt_request",
        ("request",),
        preempt_request,
        "counting preemptions",
        optional=True,
    ),
)
