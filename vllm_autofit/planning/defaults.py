"""What vLLM makes of a request: every setting with the value it will have, its own defaults filled in.

The defaults are vLLM's (``engine/arg_utils.py``: ``get_batch_defaults``), read in eleven versions from 0.11 to 0.33.
Where they differ, the rule says from which version on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from vllm_autofit.architecture import ModelFacts
from vllm_autofit.deployment import Deployment, GraphMode, Speculation
from vllm_autofit.memory.cuda_graphs import capture_grid
from vllm_autofit.units import GIB, MOST_BYTES, MOST_SEQUENCES
from vllm_autofit.values import AUTO_CONTEXT, DeviceFacts, Request

Version = tuple[int, int]
Usage = Literal["server", "llm", "engine"]
"""A server, ``LLM(...)``, or an engine that a script makes itself."""

LAUNCHES: Mapping[Usage, str] = {"server": "OPENAI_API_SERVER", "llm": "LLM_CLASS", "engine": "ENGINE_CONTEXT"}
"""vLLM's usage contexts."""

ENGINE_DEFAULTS = (2048, 128)
"""Batched tokens and sequences of an engine that is neither (``config/scheduler.py``, 0.11 to 0.32)."""

NEWEST: Version = (0, 33)
"""What a plan assumes where no vLLM is installed or named."""

OLDEST: Version = (0, 8)
"""Nothing was read of older ones: they are taken for this one."""

LARGER_SHARE_SINCE: Version = (0, 20)
"""From here on ``gpu_memory_utilization`` defaults to 0.92, before to 0.90 (``config/cache.py``)."""

CONTEXT_AUTOMATIC_SINCE: Version = (0, 20)
"""``max_model_len=-1`` exists since 0.14, but the API server learns what came of it only from 0.20 on."""

LARGE_DEVICE_BYTES = 70 * GIB
HUGE_DEVICE_BYTES = 160 * GIB
HUGE_SINCE: Version = (0, 28)
"""Devices of 160 GiB and more get larger batches in 0.28 and 0.32, not yet in 0.27 (read in each)."""

GB10: tuple[int, int] = (12, 1)
GB10_SMALL_SINCE: Version = (0, 33)
"""A device of this compute capability has the memory of a large one, not its compute: small batches since 0.33."""

CPU_BY_SHARE_SINCE: Version = (0, 20)
"""From here on the CPU worker goes by its share of the memory. Before, its KV cache has the size that
``VLLM_CPU_KVCACHE_SPACE`` says, else a fixed one, and ``kv_cache_memory_bytes`` means nothing to it
(``platforms/cpu.py``: ``get_device_total_memory``)."""
CPU_KV_FRACTION = 0.5
CPU_KV_FRACTION_SINCE: Version = (0, 13)
CPU_KV_GIB_BEFORE = 4
"""That size: half of one node's memory, if they are all alike, from 0.13 to 0.19; 4 GiB before."""

CAPTURE_KNOBS = ("cudagraph_capture_sizes", "max_cudagraph_capture_size")
"""Parts of the compilation config that have flags of their own."""

_GRAPH_MODES: Mapping[str, GraphMode] = {
    "none": "none",
    "piecewise": "piecewise",
    "full": "full",
    "full_decode_only": "full_decode_only",
    "full_and_piecewise": "full_and_piecewise",
}
_GRAPH_MODES_BY_LEVEL: Mapping[str, GraphMode] = {"0": "none", "1": "piecewise"}
"""``-O0`` and ``-O1``; the others are like none (``config/vllm.py: OPTIMIZATION_LEVEL_TO_CONFIG``, 0.12 to 0.33)."""


def parsed_version(text: str) -> Version | None:
    """Major and minor of ``0.32.0+cpu``, ``v0.17.1rc1`` and the like; None where there are none."""
    match = re.match(r"v?(\d{1,3})\.(\d{1,3})", text)
    return None if match is None else (int(match[1]), int(match[2]))


def deployment_of(
    request: Request,
    facts: ModelFacts,
    device: DeviceFacts,
    *,
    version: Version = NEWEST,
    usage: Usage = "server",
    separate_processes: bool = True,
) -> Deployment:
    """The launch with every value final; of the five fields, those that the user left open as vLLM would choose them.

    Args:
        request: what was asked for.
        facts: the model.
        device: one of the devices it will run on.
        version: of vLLM.
        usage: what starts: the batch defaults differ.
        separate_processes: whether engine core and workers are processes of their own.
    """
    knobs = request.knobs
    tensor = _count(knobs, "tensor_parallel_size")
    pipeline = _count(knobs, "pipeline_parallel_size")
    context = _context(request, facts)
    batched, sequences = _batches(request, device, version, usage, tensor * pipeline, context)
    compilation = {**_mapping(knobs.get("compilation_config")), **_given(knobs, CAPTURE_KNOBS)}
    return Deployment(
        vllm=version,
        device=device.kind,
        device_name=device.name,
        compute_capability=device.compute_capability,
        cpu_features=frozenset(device.cpu_features),
        max_model_len=context,
        max_num_seqs=sequences,
        max_num_batched_tokens=batched,
        dtype=_dtype(knobs.get("dtype"), facts, device),
        kv_cache_dtype=str(request.values.get("kv_cache_dtype") or "auto"),
        quantization=_text(knobs.get("quantization")),
        load_format=_text(knobs.get("load_format")) or "auto",
        block_size=_number(knobs.get("block_size")),
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        data_parallel=_count(knobs, "data_parallel_size"),
        prefill_context_parallel=_count(knobs, "prefill_context_parallel_size"),
        decode_context_parallel=_count(knobs, "decode_context_parallel_size"),
        expert_parallel=bool(knobs.get("enable_expert_parallel")),
        enforce_eager=bool(request.values.get("enforce_eager")),
        graph_mode=_graph_mode(compilation, knobs.get("optimization_level")),
        graph_sizes=_graph_sizes(compilation, batched, version),
        interactive=knobs.get("performance_mode") == "interactivity",
        prefix_caching=knobs.get("enable_prefix_caching") is not False,
        chunked_prefill=knobs.get("enable_chunked_prefill") is not False,
        hybrid_kv_cache_manager=not knobs.get("disable_hybrid_kv_cache_manager"),
        mamba_cache_dtype=_text(knobs.get("mamba_cache_dtype")) or "auto",
        mamba_ssm_cache_dtype=_text(knobs.get("mamba_ssm_cache_dtype")) or "auto",
        mamba_block_size=_number(knobs.get("mamba_block_size")),
        mamba_cache_mode=_text(knobs.get("mamba_cache_mode")),
        kv_cache_memory_bytes=_kv_cache_bytes(knobs, device, version),
        blocks_override=_number(knobs.get("num_gpu_blocks_override")),
        cpu_offload_bytes=_gib(knobs.get("cpu_offload_gb")),
        kv_offload_bytes=_gib(knobs.get("kv_offloading_size")),
        lora_adapters=_count(knobs, "max_loras") if knobs.get("enable_lora") else 0,
        lora_rank=_number(knobs.get("max_lora_rank")) or 16,
        speculation=speculation_of(_mapping(knobs.get("speculative_config"))),
        text_only=bool(knobs.get("language_model_only")),
        items_per_prompt=_items(_mapping(knobs.get("limit_mm_per_prompt"))),
        frontend_reserve_bytes=_gib(knobs.get("mm_ipc_gpu_memory_gb")) if facts.towers and device.kind != "cpu" else 0,
        separate_processes=separate_processes,
        estimate_graphs=_flag(knobs.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS")),
        second_runner=_flag(knobs.get("VLLM_USE_V2_MODEL_RUNNER")),
    )


def _context(request: Request, facts: ModelFacts) -> int:
    asked = request.values.get("max_model_len")
    if isinstance(asked, int) and asked > 0 and asked != AUTO_CONTEXT:
        return asked
    return facts.context_tokens or 2048


def _batches(
    request: Request, device: DeviceFacts, version: Version, usage: Usage, world: int, context: int
) -> tuple[int, int]:
    """``max_num_batched_tokens`` and ``max_num_seqs`` as vLLM fills them in, in its order."""
    batched_asked = _number(request.knobs.get("max_num_batched_tokens"))
    sequences_asked = _number(request.values.get("max_num_seqs"))
    batched_default, sequences_default = _batch_defaults(device, version, usage, world)
    if request.knobs.get("performance_mode") == "throughput":
        batched_default, sequences_default = 2 * batched_default, 2 * sequences_default
    if request.knobs.get("enable_chunked_prefill") is False:
        batched_default = max(context, batched_default)
    sequences = sequences_asked or sequences_default
    batched = batched_asked or min(sequences * context, batched_default)
    return batched, sequences_asked or min(sequences, batched)


def _batch_defaults(device: DeviceFacts, version: Version, usage: Usage, world: int) -> tuple[int, int]:
    server = usage == "server"
    if usage == "engine":
        return ENGINE_DEFAULTS
    if device.kind == "cpu":
        return (2048 if server else 4096) * world, (128 if server else 256) * world
    if device.total_bytes >= HUGE_DEVICE_BYTES and version >= HUGE_SINCE:
        return 16384, 1024
    slow = "a100" in device.name.lower() or (device.compute_capability == GB10 and version >= GB10_SMALL_SINCE)
    if device.total_bytes >= LARGE_DEVICE_BYTES and not slow:
        return (8192 if server else 16384), 1024
    return (2048 if server else 8192), 256


def _dtype(asked: object, facts: ModelFacts, device: DeviceFacts) -> str:
    """vLLM's ``_resolve_auto_dtype``: float32 checkpoints are halved; before Ampere there is no bfloat16."""
    named = {"half": "float16", "float": "float32"}.get(str(asked), str(asked))
    if named not in ("auto", "None"):
        return named.removeprefix("torch.")
    no_bfloat16 = device.compute_capability is not None and device.compute_capability < (8, 0)
    preferred = "float16" if no_bfloat16 or facts.runner == "pooling" else "bfloat16"
    if facts.dtype == "float32" or (no_bfloat16 and facts.dtype == "bfloat16"):
        return preferred
    return facts.dtype


def _graph_mode(compilation: Mapping[str, object], level: object) -> GraphMode | None:
    """As asked for by itself, else by the level of optimisation."""
    mode = compilation.get("cudagraph_mode")
    if mode is None:
        return _GRAPH_MODES_BY_LEVEL.get(str(level).rpartition(".")[2].removeprefix("O"))
    return _GRAPH_MODES.get(str(mode).rpartition(".")[2].lower())


def _graph_sizes(compilation: Mapping[str, object], batched: int, version: Version) -> tuple[int, ...] | None:
    """As asked for; vLLM captures none that is larger than a batch."""
    sizes = compilation.get("cudagraph_capture_sizes")
    if isinstance(sizes, list | tuple) and all(str(size).isdecimal() for size in sizes):
        return tuple(int(size) for size in sizes)
    largest = _number(compilation.get("max_cudagraph_capture_size"))
    if largest is None:
        return None
    largest = min(largest, batched, MOST_SEQUENCES)
    return tuple(capture_grid(largest, version))


def _given(knobs: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: knobs[name] for name in names if knobs.get(name) is not None}


def speculation_of(asked: Mapping[str, object]) -> Speculation | None:
    """``speculative_config``; where it names no method, vLLM goes by the draft's name (``config/speculative.py``)."""
    if not asked:
        return None
    model = _text(asked.get("model"))
    method = _text(asked.get("method")) or _method(model or "ngram")
    return Speculation(
        method="mtp" if method.endswith("_mtp") else method,  # vLLM has a name for each model's, and one for all
        tokens=_number(asked.get("num_speculative_tokens")) or 1,
        model=model,
    )


def _method(model: str) -> str:
    name = model.lower()
    if name in ("ngram", "[ngram]"):
        return "ngram"
    return "eagle" if "eagle-" in name else "eagle3" if "eagle3" in name else "draft_model"


def _items(asked: Mapping[str, object]) -> dict[str, int] | None:
    """``limit_mm_per_prompt``: a number per modality, or an object with ``count``."""
    counts: dict[str, int] = {}
    for modality, limit in asked.items():
        count = limit.get("count") if isinstance(limit, Mapping) else limit
        if isinstance(count, int) and count >= 0:
            counts[modality] = count
    return counts or None


def _kv_cache_bytes(knobs: Mapping[str, object], device: DeviceFacts, version: Version) -> int | None:
    asked, by_variable = _number(knobs.get("kv_cache_memory_bytes")), _gib(knobs.get("VLLM_CPU_KVCACHE_SPACE")) or None
    if device.kind != "cpu":
        return asked
    if version >= CPU_BY_SHARE_SINCE:
        return by_variable or asked  # the variable replaces the field (0.24 to 0.33, ``check_and_update_config``)
    half = int(CPU_KV_FRACTION * (device.total_bytes // device.memory_nodes))
    return by_variable or (half if version >= CPU_KV_FRACTION_SINCE else CPU_KV_GIB_BEFORE * GIB)


def _count(knobs: Mapping[str, Any], name: str) -> int:
    return max(1, _number(knobs.get(name)) or 1)


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _gib(value: object) -> int:
    """Bytes of a number of GiB; 0 for what is none, and no more than any machine has."""
    try:
        return int(min(max(0.0, float(str(value)) * GIB), MOST_BYTES)) if value not in (None, "") else 0
    except ValueError:
        return 0


def _text(value: object) -> str | None:
    return str(value) if value not in (None, "") else None


def _flag(value: object) -> bool | None:
    return None if value in (None, "") else str(value) not in ("0", "false", "False")


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
