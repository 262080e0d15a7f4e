"""Seams ``AsyncLLM.__init__`` and ``LLMEngine.__init__``: the front end makes its engine, and waits for it.

A start that can't succeed is refused here, before anything is loaded. One that fails for memory may be made again, as
often as the user allows (``hooks/attempts.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks import lease
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.interrupts import ends_at_once
from vllm_autofit.hooks.refusal import refuse
from vllm_autofit.hooks.runs import run_of
from vllm_autofit.hooks.seams import Seam

PURPOSE = "trying again"


def start(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM's engine, made in as many attempts as it takes and the user allows."""
    config = args[0] if args else kwargs["vllm_config"]
    run = run_of(config)
    if run is None or run["record"]["plan"]["mode"] == "observe":
        return wrapped(*args, **kwargs)
    try:
        refuse(run)
        attempt(lease.PURPOSE, lease.starting, run)
        with ends_at_once():
            return _start(wrapped, instance, args, kwargs)
    except BaseException:
        attempt(lease.PURPOSE, lease.give_back, run_of(config) or run)
        raise


def _start(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Imported here: every process of vLLM's loads this module, front ends start engines.
    from vllm_autofit.hooks.attempts import Attempts

    attempts = attempt(PURPOSE, Attempts, wrapped, instance, args, kwargs)
    if attempts is None:
        return wrapped(*args, **kwargs)
    while True:
        attempt(PURPOSE, attempts.listen)
        try:
            return wrapped(*args, **kwargs)
        except Exception as error:
            if not attempt(PURPOSE, attempts.prepare_another, error):
                raise
        finally:
            attempt(PURPOSE, attempts.stop_listening)


SEAMS = tuple(
    Seam(module, name, ("vllm_config",), start, PURPOSE, optional=True)
    for module, name in (
        ("vllm.v1.engine.async_llm", "AsyncLLM.__init__"),
        ("vllm.v1.engine.llm_engine", "LLMEngine.__init__"),
    )
)
