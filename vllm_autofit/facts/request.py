"""vLLM's ``EngineArgs`` -> ``Request``. Reads attributes only, so it needs no vLLM to be imported."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.values import Request

KNOBS = (
    # the model as it is loaded
    "dtype", "quantization", "load_format", "hf_overrides", "runner", "convert", "model_impl",
    "cpu_offload_gb", "offload_group_size", "enable_lora", "max_loras", "max_lora_rank", "limit_mm_per_prompt",
    "language_model_only", "mm_encoder_tp_mode", "speculative_config", "enable_sleep_mode",
    # how it is spread
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "data_parallel_size_local",
    "prefill_context_parallel_size", "decode_context_parallel_size", "enable_expert_parallel", "enable_dbo",
    "distributed_executor_backend", "nnodes",
    # batches and the KV cache
    "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes", "num_gpu_blocks_override",
    "enable_prefix_caching", "enable_chunked_prefill", "kv_offloading_size", "mamba_cache_dtype",
    "mamba_ssm_cache_dtype", "mamba_block_size", "mamba_cache_mode", "disable_hybrid_kv_cache_manager",
    # compilation and kernels
    "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "optimization_level",
    "attention_backend", "performance_mode",
)  # fmt: skip
"""Settings of ``EngineArgs`` (vLLM 0.32) that memory depends on, beside our five. Those an older vLLM lacks are
skipped."""

ENVIRONMENT_KNOBS = (
    "CPU_VISIBLE_MEMORY_NODES",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_DP_SIZE",
    "VLLM_ENABLE_STARTUP_PLAN",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS",
    "VLLM_USE_V2_MODEL_RUNNER",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
)
"""Environment variables that change what a start takes, or where vLLM gets its KV cache size from."""


def read_request(
    engine_args: Any,
    set_by_user: Iterable[str],
    environ: Mapping[str, str],
    *,
    visible_devices: int | None = None,
    headless: bool = False,
) -> Request:
    """What one ``EngineArgs`` asks for.

    Args:
        engine_args: the instance; its five fields must be plain values by now.
        set_by_user: which of the five fields the user set.
        environ: the process's environment.
        visible_devices: how many devices this machine shows, when known: more ranks than that span nodes.
        headless: whether this node only serves engines to another one.
    """
    knobs = {name: plain(getattr(engine_args, name)) for name in KNOBS if hasattr(engine_args, name)}
    changed = {name for name, value in knobs.items() if value != _default(engine_args, name)}
    knobs.update({name: environ[name] for name in ENVIRONMENT_KNOBS if environ.get(name)})
    ranks = local_ranks(engine_args, environ)
    spans = (
        headless
        or _some_engines_elsewhere(engine_args)
        or int(getattr(engine_args, "nnodes", 1) or 1) > 1
        or (visible_devices is not None and ranks > visible_devices)
    )
    return Request(
        model=str(engine_args.model),
        values={name: getattr(engine_args, name) for name in FIELDS},
        set_by_user=frozenset(set_by_user),
        local_ranks=ranks,
        spans_nodes=spans,
        utilization_left_to_vllm=_utilization_left_to_vllm(engine_args),
        kv_cache_fixed_by=_kv_cache_fixed_by(engine_args, environ),
        knobs=knobs,
        knobs_changed=frozenset(changed | (knobs.keys() & set(ENVIRONMENT_KNOBS))),
    )


def _default(engine_args: Any, name: str) -> Any:
    """vLLM's default of a field, as ``plain`` shows it; None where the class has no such field."""
    field = getattr(type(engine_args), "__dataclass_fields__", {}).get(name)
    if field is None:
        return None
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return plain(field.default)


def _some_engines_elsewhere(engine_args: Any) -> bool:
    local = getattr(engine_args, "data_parallel_size_local", None)
    return local is not None and int(local) != int(getattr(engine_args, "data_parallel_size", 1) or 1)


def _utilization_left_to_vllm(engine_args: Any) -> str | None:
    if getattr(engine_args, "load_format", None) == "ipc_cache":
        return "another process holds the weights, and vLLM counts them into its share of the device"
    if getattr(engine_args, "distributed_executor_backend", None) == "external_launcher":
        return "an external launcher starts the ranks one by one, and each would take the others for neighbours"
    if getattr(engine_args, "data_parallel_rank", None) is not None:
        return "data-parallel ranks are started one by one, and each would take the others for neighbours"
    return None


def local_ranks(engine_args: Any, environ: Mapping[str, str]) -> int:
    """Worker processes that this launch starts on this machine (before nodes are taken into account).

    Scripts that run one engine per data-parallel rank say so in ``VLLM_DP_SIZE``: their ranks start together.
    """

    def size(name: str) -> int:
        return int(getattr(engine_args, name, None) or 1)

    local = getattr(engine_args, "data_parallel_size_local", None)
    everywhere = max(size("data_parallel_size"), int(environ.get("VLLM_DP_SIZE") or 1))
    data_parallel = everywhere if local is None else max(1, int(local))
    return (
        size("tensor_parallel_size")
        * size("pipeline_parallel_size")
        * size("prefill_context_parallel_size")
        * data_parallel
    )


def _kv_cache_fixed_by(engine_args: Any, environ: Mapping[str, str]) -> str | None:
    for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override"):
        if getattr(engine_args, name, None) is not None:
            return name
    if environ.get("VLLM_CPU_KVCACHE_SPACE"):
        return "VLLM_CPU_KVCACHE_SPACE"
    if environ.get("VLLM_ENABLE_STARTUP_PLAN", "0") not in ("", "0"):
        return "VLLM_ENABLE_STARTUP_PLAN"
    return None


def plain(value: Any) -> Any:
    """``value`` as JSON would hold it, the same in every process: no addresses, no set order, no objects."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, set | frozenset):
        return sorted(str(plain(item)) for item in value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init and getattr(value, field.name) is not None
        }
    return getattr(value, "__qualname__", type(value).__qualname__)
