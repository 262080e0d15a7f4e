"""Seams ``Executor.__init__``: an engine is coming up, and ``initialize_from_config``: it takes its KV cache.

From the first on there is a record, whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks.failures import note_failure
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.runs import record_phase, record_start, run_of
from vllm_autofit.hooks.seams import Seam


def init(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM's executor: it starts the workers, and loads the weights."""
    run = run_of(args[0] if args else kwargs["vllm_config"])
    if run is None:
        return wrapped(*args, **kwargs)
    attempt("recording this start", record_start, run)
    try:
        return wrapped(*args, **kwargs)
    except Exception as error:
        attempt("recording why this start failed", note_failure, run, error)
        raise


def initialize_from_config(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """vLLM's workers allocate the KV cache; up to vLLM 0.26 they warm up in it, too."""
    run = run_of(instance.vllm_config)
    if run is not None:
        attempt("recording this start", record_phase, run, "kv_alloc")
    return wrapped(*args, **kwargs)


SEAMS = (
    Seam("vllm.v1.executor.abstract", "Executor.__init__", ("vllm_config",), init, "recording this start"),
    Seam(
        "vllm.v1.executor.abstract",
        "Executor.initialize_from_config",
        ("kv_cache_configs",),
        initialize_from_config,
        "recording this start",
        optional=True,
    ),
)
