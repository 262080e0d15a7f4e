"""An exception that ends a start, or a process that was killed -> what is kept of it.

Made where it happens, in the worker or the engine core, so that the figures are of that moment.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from vllm_autofit.experience.record import KILLED, MESSAGE_LIMIT
from vllm_autofit.failures.phase import frames
from vllm_autofit.hooks.deadline import HOST, within
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.memory_now import memory_now
from vllm_autofit.hooks.runs import ATTRIBUTE, Run, front_end, record_failure, run_of

if TYPE_CHECKING:
    from vllm_autofit.failures.failure import Failure, Phase

SIGKILLED = -9
"""Exit code of a process that was killed from outside: the host's out-of-memory killer, mostly."""
HANDLES = ("unready_workers", "unready_proc_handles", "workers")
"""Variables of vLLM's executor (0.11 to 0.33) that hold its worker processes, each as ``proc`` of an object."""
RAY_SAYS_WHERE = re.compile(r"\(pid=\d+, ip=([^,)\s]+)")
"""In the text of an exception that Ray brings from an actor (Ray 2.60.0)."""
AVAILABLE = "available_memory"
"""Variable of vLLM's KV sizing (0.11 to 0.33): bytes for the KV cache of one worker, or of each."""


def note_failure(run: Run, error: BaseException) -> None:
    """Add a failure to its start's record, and tell the front end."""
    record_failure(run, described(error, run))


def described(error: BaseException, run: Run | None = None) -> dict[str, Any]:
    """Phase, exception, what ran out and what to do, and the memory at this moment.

    Args:
        error: what was raised.
        run: the start that it ended; None for an engine that served.
    """
    # Imported here: every process of vLLM's loads this module, few fail.
    from vllm_autofit.failures.classify import classify_exception

    failure = classify_exception(error)
    if not failure.is_capacity and _killed_worker(error):
        unsaid: Phase = "runtime" if run is None else "weight_load"
        return killed(unsaid if failure.phase == "other" else failure.phase)
    return {
        **_told(failure),
        "type": type(error).__name__,
        "message": str(error)[:MESSAGE_LIMIT],
        "numbers": _numbers(failure, error, run),
    }


def killed(phase: Phase) -> dict[str, Any]:
    """The same of a process that was killed from outside, and said nothing."""
    from vllm_autofit.failures.failure import Failure
    from vllm_autofit.failures.kinds import SIGKILL
    from vllm_autofit.failures.remedies import remedies

    failure = Failure(SIGKILL.is_capacity, SIGKILL.resource, phase, SIGKILL.cause)
    failure = replace(failure, remedies=remedies(SIGKILL.name, failure, None))
    return {**_told(failure), "type": KILLED, "message": "", "numbers": {}}


def was_killed(failure: Mapping[str, Any]) -> bool:
    """Whether a failure is known by no more than a process that was killed from outside."""
    from vllm_autofit.failures.kinds import SIGKILL

    return bool(failure["cause"] == SIGKILL.cause)


def run_behind(error: BaseException) -> Run | None:
    """The start that an exception belongs to: vLLM's own frames on its traceback hold the ``VllmConfig``."""
    for frame in frames(error):
        for holder in (frame.f_locals.get("vllm_config"), _config_of(frame.f_locals.get("self"))):
            if holder is not None and ATTRIBUTE in getattr(holder, "__dict__", {}):
                return run_of(holder)
    return None


def _told(failure: Failure) -> dict[str, Any]:
    return {
        "phase": failure.phase,
        "is_capacity": failure.is_capacity,
        "resource": failure.resource,
        "cause": failure.cause,
        "remedies": [asdict(remedy) for remedy in failure.remedies],
    }


def _numbers(failure: Failure, error: BaseException, run: Run | None) -> dict[str, Any]:
    """What the message says, before what can be read now; and what the next plan learns from, worked out of both.

    ``requested_bytes``: what vLLM was told to take; ``consumed_bytes``: what of that isn't KV cache, at least;
    ``tried_bytes``: what was refused although ``free_bytes`` were there.
    """
    here = not _is_elsewhere(error)
    now = attempt("reading the memory", memory_now) if here else None
    numbers: dict[str, Any] = {**(now or {}), **failure.numbers, **({} if here else {"elsewhere": True})}
    if not failure.is_capacity:
        return numbers
    if failure.resource == "host" and "tried_bytes" in numbers:
        from vllm_autofit.hooks.limits import room_under_limits

        numbers.update(room_under_limits(numbers))
    requested = numbers.get("requested_bytes") or _requested_bytes(numbers, run)
    if failure.phase == "startup_check" and failure.resource == "host" and run is not None:
        from vllm_autofit.facts.processes import family_bytes

        own = attempt("reading what this start holds", within, HOST, family_bytes, front_end(run))
        numbers["own_bytes"] = own  # what a neighbour took meanwhile isn't ours
    left = _left_for_kv_cache(failure, error)
    if requested is not None:
        numbers["requested_bytes"] = requested
    if left is not None and left > numbers.get("free_bytes", left):
        numbers["tried_bytes"] = left  # vLLM's CPU worker looks whether its share is there once the model is loaded
    elif left is not None and requested is not None:
        numbers["consumed_bytes"] = requested - left
    elif failure.phase == "profile_run" and "tried_bytes" in numbers and "process_bytes" in numbers:
        numbers["consumed_bytes"] = numbers["process_bytes"] + numbers["tried_bytes"]
    return numbers


def _is_elsewhere(error: BaseException) -> bool:
    """Whether Ray says that this was raised in an actor on another node: its numbers are those of a device there."""
    ray = sys.modules.get("ray")
    where = RAY_SAYS_WHERE.search(str(error))
    return ray is not None and where is not None and where[1] != ray.util.get_node_ip_address()


def _requested_bytes(numbers: Mapping[str, Any], run: Run | None) -> int | None:
    """``gpu_memory_utilization`` of the device's total, as vLLM's workers ask for."""
    record = {} if run is None else run["record"]
    share = (record.get("settings", {}).get("gpu_memory_utilization") or {}).get("value")
    total = numbers.get("total_bytes") or (record.get("plan", {}).get("budget") or {}).get("total_bytes")
    return round(share * total) if isinstance(share, int | float) and isinstance(total, int) else None


def _left_for_kv_cache(failure: Failure, error: BaseException) -> int | None:
    """Bytes that were left for the KV cache when it was sized, maybe less than none.

    From the frame that refused it, which knows them to the byte; the message may not say them at all.
    """
    from vllm_autofit.experience.grade import SIZED_BY_VLLM

    if failure.phase in SIZED_BY_VLLM:
        for frame in frames(error):
            found = frame.f_locals.get(AVAILABLE) if "kv_cache" in frame.f_code.co_name else None
            each = found if isinstance(found, list) else [found]
            if each and all(isinstance(size, int) for size in each):
                return int(min(each))
    left = failure.numbers.get("requested_kv_bytes", failure.numbers.get("kv_available_bytes"))
    return None if left is None else int(left)


def _killed_worker(error: BaseException) -> bool:
    """Whether an executor reports the end of a worker that was killed."""
    return any(getattr(process, "exitcode", None) == SIGKILLED for process in _workers(error))


def _workers(error: BaseException) -> Iterator[Any]:
    for frame in frames(error):
        owner = _attributes(frame.f_locals.get("self"))
        executor = _attributes(owner.get("model_executor"))
        for holder in (frame.f_locals, owner, executor):
            for handles in (holder.get(name) for name in HANDLES):
                if isinstance(handles, list):
                    yield from (getattr(handle, "proc", None) for handle in handles)


def _attributes(instance: Any) -> Mapping[str, Any]:
    attributes = getattr(instance, "__dict__", None)
    return attributes if isinstance(attributes, dict) else {}


def _config_of(instance: Any) -> Any:
    """The config of a worker process or of a wrapped worker, if ``instance`` is one."""
    attributes = _attributes(instance)
    if "vllm_config" in attributes:
        return attributes["vllm_config"]
    return _attributes(attributes.get("worker")).get("vllm_config")
