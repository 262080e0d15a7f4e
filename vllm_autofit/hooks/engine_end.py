"""Seams where an engine ends: ``EngineCore.shutdown``, the busy loops, and what a user's ``LLM`` has of each step.

An engine that is merely collected, or whose interpreter ends, is seen by ``serving`` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks import lease
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.runs import NOTED, run_of
from vllm_autofit.hooks.saying import end_with
from vllm_autofit.hooks.seams import Seam
from vllm_autofit.hooks.serving import end

PURPOSE = "recording how this engine ended"


def shutdown(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A clean end, noted first: vLLM's front end doesn't wait long for an engine that is slow to shut down."""
    attempt(PURPOSE, end, instance)
    attempt(lease.PURPOSE, lease.ended, run_of(getattr(instance, "vllm_config", None)) or {})
    return wrapped(*args, **kwargs)


def run_busy_loop(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Serving, in an engine core's own process. It is left by ``SystemExit``, or for an exception that ends it."""
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        asked_to_stop = bool(getattr(instance, "shutdown_state", 0))  # its workers then cancel what they are at
        attempt(PURPOSE, end, instance, None if asked_to_stop else error)
        raise


def get_output(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One step of an engine without a process of its own; what it raises leaves the engine in no state to go on."""
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        attempt(PURPOSE, end, instance.engine_core, error)
        attempt(PURPOSE, _say_why, instance.engine_core.vllm_config, error)
        raise


def get_output_of_process(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The same of an engine in a process of its own, that may be gone."""
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        attempt(PURPOSE, _say_why, instance.vllm_config, error)
        raise


def _say_why(config: Any, error: Exception) -> None:
    from vllm_autofit.hooks.death import last_words  # late: every process loads this module, few engines die

    run = run_of(config)
    line = None if run is None else last_words(run)
    if run is not None and line is not None:
        run[NOTED] = True
        end_with(error, line)


SEAMS = (
    Seam("vllm.v1.engine.core", "EngineCore.shutdown", (), shutdown, PURPOSE, optional=True),
    Seam("vllm.v1.engine.core", "EngineCoreProc.run_busy_loop", (), run_busy_loop, PURPOSE, optional=True),
    Seam("vllm.v1.engine.core", "DPEngineCoreProc.run_busy_loop", (), run_busy_loop, PURPOSE, optional=True),
    Seam("vllm.v1.engine.core_client", "InprocClient.get_output", (), get_output, PURPOSE, optional=True),
    Seam("vllm.v1.engine.core_client", "SyncMPClient.get_output", (), get_output_of_process, PURPOSE, optional=True),
)
