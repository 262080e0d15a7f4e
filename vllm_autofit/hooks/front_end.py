"""Seams ``CoreEngineProcManager.__init__``, where engine cores are started, ``wait_for_engine_startup``, where they are
waited for, and ``shutdown``, where they are stopped.

The first two are for launchers that make no engine of their own (several API servers, ``--headless``): what can't
succeed is refused there, and what failed is explained.

By default ``vllm serve`` kills them right after asking them to end (vLLM 0.20 to 0.33, ``shutdown_timeout`` 0), so that
they can't be relied on to say that they ended cleanly. Before 0.18 the function has another name, and gives them time.
One that was killed before that, from outside, couldn't say anything at all.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from typing import Any

from vllm_autofit.hooks import lease
from vllm_autofit.hooks.channel import tell
from vllm_autofit.hooks.failures import SIGKILLED, killed
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.refusal import refuse
from vllm_autofit.hooks.runs import NOTED, Run, planned_here, record_death, record_stop, run_of
from vllm_autofit.hooks.saying import end_with
from vllm_autofit.hooks.seams import Seam

ENDED = "recording how this engine ended"
ENDING_SECONDS = 2.0
"""How long to wait for a process that is ending."""
STOPPED = "_vllm_autofit_stopped"
"""Attribute of a manager whose end is noted: vLLM stops it more than once, and by then it has killed them itself."""


def init(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM starts its engine cores."""
    run = run_of(kwargs.get("vllm_config"))
    if run is not None:
        refuse(run)
        attempt(lease.PURPOSE, lease.starting, run)
    return wrapped(*args, **kwargs)


def shutdown(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Note how its engine cores end, then let vLLM stop the processes."""
    _note_once(instance)
    return wrapped(*args, **kwargs)


def _note_once(manager: Any, error: Exception | None = None) -> None:
    if not hasattr(manager, STOPPED):
        setattr(manager, STOPPED, True)
        attempt(ENDED, _note_stop, manager, error)
        for run in planned_here():
            attempt(lease.PURPOSE, lease.ended, run)


def _note_stop(manager: Any, error: Exception | None = None) -> None:
    """A clean end, unless one of them is dead already: then that is why the others are stopped."""
    from vllm_autofit.hooks.death import last_words  # late: every process loads this module, front ends stop engines

    _collect(manager.processes)
    processes = [process.pid for process in manager.processes]
    if all(process.is_alive() for process in manager.processes):
        for run in planned_here():
            record_stop(run, processes)
    elif any(process.exitcode == SIGKILLED for process in manager.processes):
        failure = killed("other")
        for run in planned_here():
            tell(run, failure=failure)
            record_death(run, processes, failure)
    for run in planned_here():
        line = None if "said_last" in run else last_words(run)
        if line is not None:
            run["said_last"] = True
            end_with(error, line)
            if error is None:  # a server has more to say until it ends, and users read the end
                atexit.register(_repeat, run, line)


def _repeat(run: Run, line: str) -> None:
    if NOTED not in run:
        end_with(None, line)


def wait_for_engines(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Engines start, and whoever started them waits: a front end, or a launcher that makes no engine of its own."""
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        for each in (*args, *kwargs.values()):
            manager = getattr(each, "engine_manager", each)  # vLLM before 0.27 hands over the manager itself
            if hasattr(manager, "processes"):
                _note_once(manager, error)
        raise


def _collect(processes: Sequence[Any]) -> None:
    """The system says that a process ends a moment before it says how."""
    from multiprocessing import connection  # late: every process loads this module, front ends wait

    ending = set(connection.wait([process.sentinel for process in processes], 0))
    for process in processes:
        if process.sentinel in ending:
            process.join(ENDING_SECONDS)


SEAMS = (
    Seam("vllm.v1.engine.utils", "wait_for_engine_startup", (), wait_for_engines, ENDED, optional=True),
    Seam(
        "vllm.v1.engine.utils",
        "CoreEngineProcManager.__init__",
        (),
        init,
        "refusing what can't succeed",
        optional=True,
    ),
    Seam(
        "vllm.v1.engine.utils",
        "CoreEngineProcManager.shutdown",
        ("timeout",),
        shutdown,
        ENDED,
        optional=True,
    ),
)
