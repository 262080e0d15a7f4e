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


def process_weights_after_loading(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Note the size of the weights as they were loaded: the CPU backend repacks them out of sight right after."""
    model = args[0] if args else kwargs["model"]
    attempt("measuring the weights", _note_weights, model)
    return wrapped(*args, **kwargs)


def _note_weights(model: Any) -> None:
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = int(storage.nbytes())
    object.__setattr__(model, "_vllm_autofit_weights_bytes", sum(storages.values()))


SEAMS = (
    Seam(
        "vllm.v1.worker.worker_base",
        "WorkerWrapperBase.init_device",
        (),
        init_device,
        "measuring the workers' memory",
    ),
    Seam(
        "vllm.model_executor.model_loader.base_loader",
        "process_weights_after_loading",
        ("model",),
        process_weights_after_loading,
        "measuring the weights",
        optional=True,
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
