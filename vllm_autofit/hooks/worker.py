"""Seams in the worker: the memory before it takes any, the weights as loaded, what capturing took, peaks at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks.deadline import HOST, within
from vllm_autofit.hooks.follower import note_end, note_of
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.memory_now import allocator_peaks, memory_now
from vllm_autofit.hooks.runs import Run, dp_rank_of, front_end, record_peaks, run_of, tell_process
from vllm_autofit.hooks.seams import Seam


def init_device(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Note the free memory, then let vLLM set its device up."""
    run = run_of(getattr(instance, "vllm_config", None))
    if run is not None:
        attempt("telling the front end", tell_process, run)
        instance._vllm_autofit_before = attempt("reading the device", _before, run)
        instance._vllm_autofit_note = attempt("looking who asks this worker", note_of, run, instance.vllm_config)
    return wrapped(*args, **kwargs)


def _before(run: Run) -> dict[str, Any] | None:
    """The memory now; on a host, with what this start's own processes hold of it, to tell its neighbours' share."""
    from vllm_autofit.facts.processes import family_bytes

    memory = memory_now()
    return memory and {**memory, "own_bytes": within(HOST, family_bytes, front_end(run))}


def shutdown(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Add the peaks of torch's allocator, which a worker with a process of its own can't tell the engine core later."""
    attempt("recording the workers' peaks", _note_peaks, instance)
    run = run_of(getattr(instance, "vllm_config", None))
    if run is not None and getattr(instance, "_vllm_autofit_note", None) is not None:
        attempt("recording how this node ended", note_end, run)
    return wrapped(*args, **kwargs)


def _note_peaks(wrapper: Any) -> None:
    config, worker = getattr(wrapper, "vllm_config", None), wrapper.worker
    run = run_of(config)
    peaks = allocator_peaks(getattr(getattr(worker, "device", None), "index", None))
    if run is not None and peaks is not None:
        record_peaks(run, dp_rank_of(config), int(worker.local_rank), peaks)


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


UNTIL_0_11 = ("vllm.worker.worker_base",)

SEAMS = (
    Seam(
        "vllm.v1.worker.worker_base",
        "WorkerWrapperBase.init_device",
        (),
        init_device,
        "measuring the workers' memory",
        elsewhere=UNTIL_0_11,
    ),
    Seam(
        "vllm.v1.worker.worker_base",
        "WorkerWrapperBase.shutdown",
        (),
        shutdown,
        "recording the workers' peaks",
        optional=True,
        elsewhere=UNTIL_0_11,
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
