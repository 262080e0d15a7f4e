"""Starts real vLLM on the CPU and reads what a model took: weights by rank, the KV cache, the settings in force.

All figures are vLLM's own, none is ours: this is what the estimator is compared with. Written for vLLM 0.32.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

KV_CACHE_BYTES = 24_000_123
"""Given to every start that doesn't ask for its own: seconds to fill, and no multiple of any page."""
WATCH = "_WATCH_WEIGHTS_LOADING"
"""Environment variable that tells worker processes, which import this module before they load, to count."""
SHARES = (1, 3, 8)
"""The longest context that fits is asked for at the KV bytes divided by each of these."""


def measure(model: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Start vLLM with ``arguments`` for ``LLM`` and return what it says, as plain data for JSON.

    Needs a process of its own: vLLM keeps state in it, and so does this.

    ``settings``: what was in force.
    """
    os.environ.update(VLLM_PLUGINS="", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")
    os.environ[WATCH] = "1"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # else vLLM wants a NUMA node per rank
    from vllm import LLM

    seen: dict[str, Any] = {}
    _watch_kv_sizing(seen)
    _watch_loading()
    defaults = {"skip_tokenizer_init": True, "enforce_eager": True, "kv_cache_memory_bytes": KV_CACHE_BYTES}
    engine = LLM(str(model), worker_extension_cls="dev.vllm_truth.Probe", **{**defaults, **arguments})
    config = engine.llm_engine.vllm_config
    return {
        "settings": _settings(config),
        "ranks": engine.collective_rpc("what_it_took"),
        "kv": _kv(config, seen),
    }


def tensors_of(model: Path) -> list[list[Any]]:
    """Name, dtype, shape and bytes of each, of a checkpoint in one file; none where there is only a config."""
    file = model / "model.safetensors"
    if not file.exists():
        return []
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        slices = [(name, opened.get_slice(name)) for name in opened.keys()]  # noqa: SIM118 (it is no dictionary)
        shapes = [(name, each.get_dtype(), each.get_shape()) for name, each in slices]
    return [[name, dtype, shape, math.prod(shape) * _item_bytes(dtype)] for name, dtype, shape in shapes]


def _item_bytes(dtype: str) -> int:
    return int("".join(filter(str.isdigit, dtype.partition("_")[0])) or 8) // 8  # BOOL has no number


def _settings(config: Any) -> dict[str, Any]:
    """What a deployment is made of, as vLLM resolved it."""
    cache, scheduler, parallel = config.cache_config, config.scheduler_config, config.parallel_config
    return {
        "max_model_len": config.model_config.max_model_len,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "runner_type": config.model_config.runner_type,
        "quantization": config.model_config.quantization,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "chunked_prefill": bool(scheduler.enable_chunked_prefill),
        "hybrid_kv_cache_manager": not scheduler.disable_hybrid_kv_cache_manager,
        "prefix_caching": bool(cache.enable_prefix_caching),
        "block_size": cache.block_size,
        "kv_cache_dtype": cache.cache_dtype,
        "mamba_cache_dtype": cache.mamba_cache_dtype,
        "mamba_ssm_cache_dtype": cache.mamba_ssm_cache_dtype,
        "mamba_cache_mode": cache.mamba_cache_mode,
        "mamba_block_size": cache.mamba_block_size,
        "tensor_parallel": parallel.tensor_parallel_size,
        "pipeline_parallel": parallel.pipeline_parallel_size,
        "expert_parallel": parallel.enable_expert_parallel,
    }


def _watch_kv_sizing(seen: dict[str, Any]) -> None:
    """Keep what vLLM's KV sizing was given and what it made of it."""
    import vllm.v1.engine.core as core

    original = core.get_kv_cache_configs

    def watched(config: Any, specs: Any, available: Any) -> Any:
        fitting = {}
        for share in SHARES:
            memory = [each // share for each in available]
            fitting[memory[0]] = _longest_context(original, config, specs, memory)
        result = original(config, specs, available)
        seen.update(available_bytes=list(available), configs=copy.deepcopy(result), fitting=fitting)
        return result

    core.get_kv_cache_configs = watched


def _longest_context(sizing: Any, config: Any, specs: Any, memory: list[int]) -> int:
    """What ``max_model_len=auto`` becomes with this much memory; 0 where vLLM refuses."""
    trial = copy.copy(config)
    trial.model_config = copy.copy(config.model_config)
    trial.model_config.original_max_model_len = -1
    try:
        sizing(trial, specs, memory)
    except ValueError:
        return 0
    return int(trial.model_config.max_model_len)


def _kv(config: Any, seen: dict[str, Any]) -> dict[str, Any] | None:
    """The KV cache as vLLM cut it up; groups are those of the rank with the widest blocks."""
    if not seen or not any(each.kv_cache_groups for each in seen["configs"]):
        return None
    fullest = max(seen["configs"], key=_bytes_per_block)
    return {
        "available_bytes": seen["available_bytes"][0],
        "blocks": fullest.num_blocks,
        "bytes_per_block": [_bytes_per_block(each) for each in seen["configs"]],
        "groups": [_group(group) for group in fullest.kv_cache_groups],
        "tokens": config.cache_config.kv_cache_size_tokens,
        "max_concurrency": config.cache_config.kv_cache_max_concurrency,
        "longest_context": {str(memory): context for memory, context in seen["fitting"].items()},
    }


def _bytes_per_block(config: Any) -> int:
    return max((tensor.size for tensor in config.kv_cache_tensors), default=0) // int(config.num_blocks)


def _group(group: Any) -> dict[str, Any]:
    """One group of layers; ``page_bytes`` lists the sizes of their pages where they differ."""
    spec = group.kv_cache_spec
    layers = list(getattr(spec, "kv_cache_specs", {}).values()) or [spec] * len(group.layer_names)
    pages = [each.page_size_bytes for each in layers]
    window = getattr(layers[0], "sliding_window", None) or getattr(layers[0], "attention_chunk_size", None)
    return {
        "kind": type(layers[0]).__name__,
        "layers": len(layers),
        "block_size": spec.block_size,
        "page_bytes": pages[0] if len(set(pages)) == 1 else sorted(pages),
        "window": window,
    }


class Probe:
    """Mixed into vLLM's worker, in whatever process that is. vLLM asks that no name be one of the worker's."""

    def what_it_took(self) -> dict[str, Any]:
        """Bytes of this rank's weights as loaded, LoRA's buffers with them, of the model's after repacking, and of the
        KV cache."""
        worker: Any = self
        runner = worker.model_runner
        kv_caches = getattr(runner, "kv_caches", [])
        loaded = _all_loaded()
        loaded["bytes"] += sum(_storages(_adapters(runner.model)).values())
        return {
            "loaded": loaded,
            "final_bytes": sum(_storages(_registered(runner.model)).values()),
            "kv_cache_bytes": sum(_storages(_flat(kv_caches)).values()),
        }


_loaded: list[tuple[Any, dict[str, dict[str, Any]]]] = []
"""The models in this process, what drafts after the one it drafts for, each with what it held before vLLM repacked it,
by tensor's name."""


def _held(model: Any) -> dict[str, dict[str, Any]]:
    """Each tensor's bytes, 0 where a tensor before it or a model before this one has the same memory."""
    counted = {address for earlier, _ in _loaded for address in _storages(_registered(earlier))}
    buffers = {id(buffer) for buffer in model.buffers()}
    held = {}
    for name, tensor in _named(model):
        storages = _storages([tensor])
        held[name] = {
            "bytes": sum(size for address, size in storages.items() if address not in counted),
            "is_buffer": id(tensor) in buffers,
            "kind": [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)],
        }
        counted |= storages.keys()
    return held


def _all_loaded() -> dict[str, Any]:
    """All models' tensors together, without those for which vLLM put another model's in their place once loaded."""
    found: dict[str, dict[str, Any]] = {}
    others: set[int] = set()
    for number, (model, held) in enumerate(_loaded):
        now = dict(_named(model))
        lent = {name for name, tensor in now.items() if id(tensor) in others}
        found |= {f"draft.{name}" if number else name: each for name, each in held.items() if name not in lent}
        others |= {id(tensor) for tensor in now.values()}
    return {
        "bytes": sum(each["bytes"] for each in found.values()),
        "buffer_bytes": sum(each["bytes"] for each in found.values() if each["is_buffer"]),
        "tensors": {name: each["kind"] for name, each in found.items()},
    }


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _adapters(model: Any) -> Iterator[Any]:
    """What LoRA's layers hold beside the layers they wrap: none of it is a parameter or a buffer to torch."""
    import torch
    from vllm.lora.layers import BaseLayerWithLoRA

    for module in model.modules():
        if isinstance(module, BaseLayerWithLoRA):
            yield from (each for each in _flat(vars(module).values()) if isinstance(each, torch.Tensor))


def _flat(tensors: Any) -> Iterator[Any]:
    for each in tensors:
        if isinstance(each, (list, tuple)):
            yield from _flat(each)
        else:
            yield each


def _registered(model: Any) -> Iterator[Any]:
    yield from model.parameters()
    yield from model.buffers()


def _storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes, each storage once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}


def _watch_loading() -> None:
    """Count a model's bytes where its weights are complete and not yet repacked for the CPU's kernels."""
    import vllm.model_executor.model_loader.base_loader as loader

    original = loader.process_weights_after_loading

    def watched(model: Any, *arguments: Any) -> Any:
        _loaded.append((model, _held(model)))
        return original(model, *arguments)

    loader.process_weights_after_loading = watched


if os.environ.get(WATCH):
    _watch_loading()
