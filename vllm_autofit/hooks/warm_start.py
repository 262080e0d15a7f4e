"""Seam ``determine_available_memory`` of the workers: a start whose KV cache is known does without vLLM's measurement.

The lever is vLLM's own: with ``cache_config.kv_cache_memory_bytes`` set, a worker takes that size and leaves the
measuring out (CUDA: the trial captures of CUDA graphs; multimodal models: the encoder's profile run; CPU: all but a
short warm-up). It is set for the length of the call, in the worker only, and is part of no hash. Whatever speaks
against it here leaves vLLM to measure as ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.memory_now import memory_now
from vllm_autofit.hooks.runs import run_of, settings_in_force
from vllm_autofit.hooks.seams import Seam
from vllm_autofit.units import GIB

if TYPE_CHECKING:
    from vllm_autofit.values import Lessons, Plan, Request

NAME = "skip_profiling"
"""Of what a run carries for its workers."""
SKIPPED = "_vllm_autofit_profiling_skipped"
"""Attribute of a worker that did without: its report says so."""

WARM_UP_TOKENS = 256
"""Tokens of the CPU backend's warm-up, which loads compiled code; its graph is for any number (vLLM 0.32). Measuring
takes ``max_num_batched_tokens``."""


def skipping(lessons: Lessons, plan: Plan, request: Request) -> dict[str, Any] | None:
    """What a worker needs to do without vLLM's measurement; it looks again whether its settings are the same."""
    from vllm_autofit.values import AUTO_CONTEXT

    known = lessons.skip_profiling
    if known is None or known.settings is None or request.kv_cache_fixed_by is not None:
        return None
    if request.planned_in_parts:
        return None  # ranks measure together, all or none: another part may know less
    then = asdict(known.settings)
    context = plan.decision("max_model_len").value
    if then.pop("max_model_len") != context and context not in (AUTO_CONTEXT, None):
        return None
    return {"consumed_bytes": known.bytes, "record": known.record_id, "settings": then}


def determine_available_memory(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Bytes for the KV cache: known, or measured by vLLM."""
    known = attempt("starting without measuring", known_kv_bytes, instance)
    if known is None:
        return wrapped(*args, **kwargs)
    with contextlib.suppress(ValueError), _given(instance, known):  # vLLM's refusal: the memory isn't there after all
        return wrapped(*args, **kwargs)
    return wrapped(*args, **kwargs)


def known_kv_bytes(worker: Any) -> int | None:
    """What this worker's KV cache gets by the record of an earlier start, or None where vLLM should measure."""
    run = run_of(getattr(worker, "vllm_config", None))
    lesson = None if run is None else run.get(NAME)
    if not lesson or worker.cache_config.kv_cache_memory_bytes is not None or _reserves_for_images(worker):
        return None
    requested = getattr(worker, "requested_memory", None) or getattr(worker, "requested_cpu_memory", None)
    if not isinstance(requested, int) or settings_in_force(worker.vllm_config) != lesson["settings"]:
        return None
    known = requested - int(lesson["consumed_bytes"])
    now = memory_now() or {}
    if _talks(worker):
        if _on_cpu(worker):
            return None  # vLLM's refusal on one rank would leave it to measure without the others
        known = max(known, 1)  # vLLM says what is missing
    elif known <= 0 or (_on_cpu(worker) and known > now.get("free_bytes", 0)):
        return None
    logger.info(
        "vllm-autofit: %.2f GiB for the KV cache as start %s measured; not measured again.",
        known / GIB,
        lesson["record"],
    )
    return known


def _talks(worker: Any) -> bool:
    """Whether it measures together with other ranks: then all of them must, or none."""
    parallel = worker.vllm_config.parallel_config
    return int(parallel.world_size) * int(parallel.data_parallel_size) > 1


def _reserves_for_images(worker: Any) -> bool:
    """Whether vLLM takes a reserve for images off what it is given: the record has it taken off already."""
    multimodal = getattr(worker.vllm_config.model_config, "multimodal_config", None)
    return bool(getattr(multimodal, "mm_ipc_gpu_memory_gb", 0))


def _on_cpu(worker: Any) -> bool:
    return getattr(getattr(worker, "device", None), "type", None) == "cpu"


@contextlib.contextmanager
def _given(worker: Any, kv_bytes: int) -> Iterator[None]:
    """The worker's KV cache has this size, and what would only measure is left out or short."""
    changes: list[tuple[Any, str, Any]] = [(worker.cache_config, "kv_cache_memory_bytes", kv_bytes)]
    multimodal = getattr(worker.vllm_config.model_config, "multimodal_config", None)
    if hasattr(multimodal, "skip_mm_profiling"):
        changes.append((multimodal, "skip_mm_profiling", True))
    runner = worker.model_runner
    if _on_cpu(worker) and hasattr(runner, "max_num_tokens") and _one_graph(worker):
        changes.append((runner, "max_num_tokens", min(runner.max_num_tokens, WARM_UP_TOKENS)))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        setattr(worker, SKIPPED, True)
        yield
    except BaseException:
        setattr(worker, SKIPPED, False)
        raise
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _one_graph(worker: Any) -> bool:
    """Whether one compiled graph serves batches of every size, so that a short warm-up loads it."""
    compilation = worker.vllm_config.compilation_config
    ranges = getattr(compilation, "get_compile_ranges", None)
    return ranges is not None and len(ranges()) == 1 and not compilation.compile_sizes


SEAMS = tuple(
    Seam(module, name, (), determine_available_memory, "starting without measuring", optional=True)
    for module, name in (
        ("vllm.v1.worker.gpu_worker", "Worker.determine_available_memory"),
        ("vllm.v1.worker.cpu_worker", "CPUWorker.determine_available_memory"),
    )
)
