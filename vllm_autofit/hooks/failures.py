"""An exception that ends a start -> what the record keeps of it."""

from __future__ import annotations

from typing import Any

from vllm_autofit.experience.record import MESSAGE_LIMIT
from vllm_autofit.failures.phase import frames, phase_of
from vllm_autofit.hooks.memory_now import memory_now
from vllm_autofit.hooks.runs import ATTRIBUTE, Run, record_failure, run_of


def note_failure(run: Run, error: BaseException) -> None:
    """Add a failure to its start's record: phase, exception, and the memory at this moment."""
    record_failure(
        run,
        {
            "phase": phase_of(error),
            "type": type(error).__name__,
            "message": str(error)[:MESSAGE_LIMIT],
            "numbers": memory_now() or {},
        },
    )


def run_behind(error: BaseException) -> Run | None:
    """The start that an exception belongs to: vLLM's own frames on its traceback hold the ``VllmConfig``."""
    for frame in frames(error):
        for holder in (frame.f_locals.get("vllm_config"), _config_of(frame.f_locals.get("self"))):
            if holder is not None and ATTRIBUTE in getattr(holder, "__dict__", {}):
                return run_of(holder)
    return None


def _config_of(instance: Any) -> Any:
    """The config of a worker process or of a wrapped worker, if ``instance`` is one."""
    attributes = getattr(instance, "__dict__", {})
    if "vllm_config" in attributes:
        return attributes["vllm_config"]
    return getattr(attributes.get("worker"), "__dict__", {}).get("vllm_config")
