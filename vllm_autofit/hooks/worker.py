"""Seams in the worker: the memory just before it takes any, and what capturing CUDA graphs really took."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.memory_now import memory_now
from vllm_autofit.hooks.runs import run_of
from vllm_autofit.hooks.seams import Seam


def init_device(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Note the free memory, then let vLLM set its device up."""
    if run_of(getattr(instance, "vllm_config", None)) is not None:
        instance._vllm_autofit_before = attempt("reading the device", memory_now)
    return wrapped(*args, **kwargs)


def capture_model(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM returns the bytes that capture took and keeps them nowhere; rehearsals (``profile_only``) don't count."""
    taken = wrapped(*args, **kwargs)
    if isinstance(taken, int) and not kwargs.get("profile_only", bool(args and args[0])):
        instance._vllm_autofit_cuda_graph_bytes = taken
    return taken


SEAMS = (
    Seam(
        "vllm.v1.worker.worker_base",
        "WorkerWrapperBase.init_device",
        (),
        init_device,
        "measuring the workers' memory",
    ),
    Seam(
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner.capture_model",
        (),
        capture_model,
        "measuring CUDA graphs",
        optional=True,
    ),
    Seam(
        "vllm.v1.worker.gpu.model_runner",
        "GPUModelRunner.capture_model",
        (),
        capture_model,
        "measuring CUDA graphs",
        optional=True,
    ),
)
