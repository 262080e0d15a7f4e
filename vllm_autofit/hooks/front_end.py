"""Seams ``CoreEngineProcManager.__init__``, where engine cores are started, and ``shutdown``, where they are stopped.

The first is for launchers that make no engine of their own (several API servers, ``--headless``): what can't succeed is
refused there.

By default ``vllm serve`` kills them right after asking them to end (vLLM 0.20 to 0.33, ``shutdown_timeout`` 0), so that
they can't be relied on to say that they ended cleanly. Before 0.20 the function has another name, and gives them time.
One that was killed before that, from outside, couldn't say anything at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm_autofit.hooks.channel import tell
from vllm_autofit.hooks.failures import SIGKILLED, killed
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.refusal import refuse
from vllm_autofit.hooks.runs import planned_here, record_death, record_stop, run_of
from vllm_autofit.hooks.seams import Seam

ENDING_SECONDS = 2.0
"""How long to wait for a process that is ending."""
NOTED = "_vllm_autofit_noted"
"""Attribute of a manager whose end is noted: vLLM stops it more than once, and by then it has killed them itself."""


def init(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM starts its engine cores."""
    run = run_of(kwargs.get("vllm_config"))
    if run is not None:
        refuse(run)
    return wrapped(*args, **kwargs)


def shutdown(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Note how its engine cores end, then let vLLM stop the processes."""
    if not hasattr(instance, NOTED):
        setattr(instance, NOTED, True)
        attempt("recording how this engine ended", _note_stop, instance)
    return wrapped(*args, **kwargs)


def _note_stop(manager: Any) -> None:
    """A clean end, unless one of them is dead already: then that is why the others are stopped."""
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


def _collect(processes: Sequence[Any]) -> None:
    """The system says that a process ends a moment before it says how."""
    from multiprocessing import connection  # late: every process loads this module, front ends wait

    ending = set(connection.wait([process.sentinel for process in processes], 0))
    for process in processes:
        if process.sentinel in ending:
            process.join(ENDING_SECONDS)


SEAMS = (
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
        "recording how this engine ended",
        optional=True,
    ),
)
