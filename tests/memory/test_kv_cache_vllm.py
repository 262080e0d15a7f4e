"""The KV cache against vLLM's own sizing of it, for small models of many architectures and many settings.

vLLM's config, layers and ``get_kv_cache_configs`` are the real ones, in one process; no weights are made, and what
memory there is, is made up. More ranks than one are put into the numbers that its layers read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.facts.config import model_facts
from vllm_autofit.memory import kv_cache

pytestmark = pytest.mark.vllm

NAMES = [
    *("llama", "deepseek_v3", "gemma2", "gemma3_text", "mistral", "gpt_oss", "llama4_text", "granite_hybrid"),
    *("jamba", "falcon_h1", "qwen3_next", "mamba", "mamba2", "olmo2", "phi3", "bert"),
]
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"block_size": 48},
    {"kv_cache_dtype": "fp8"},
    {"ranks": 2},
    {"stages": 2},
    {"enable_prefix_caching": False},
    {"enable_prefix_caching": True},
    {"disable_hybrid_kv_cache_manager": True},
    {"mamba_cache_dtype": "float32"},
    {"speculative_config": NGRAM},
]
REQUESTS = [(5000, 2048, 24_000_123), (2507, 512, 9_876_543), (333, 8192, 3_000_001), (5000, 131, 777_777_777)]
"""Context, batched tokens, bytes for the KV cache."""


def test_layouts_are_vllms(forked: Forked, tmp_path: Path) -> None:
    compared = 0
    for name, settings, request, theirs in forked(lambda: list(_theirs(tmp_path))):
        facts = model_facts(json.loads((tmp_path / name / "config.json").read_text()))
        ours = _ours(facts, settings, *request)
        assert ours == theirs, (name, settings, request)
        compared += 1
    assert compared > 400


def _ours(facts: Any, settings: dict[str, Any], context: int, batched: int, available: int) -> dict[str, Any] | None:
    launch = Deployment(**settings, max_model_len=context, max_num_batched_tokens=batched)
    layout = kv_cache.kv_layout(facts, launch)
    if layout is None:
        return None
    longest = kv_cache.longest_context(layout, launch, available, context)
    if longest < context:
        return {"longest": longest}
    blocks = kv_cache.blocks(layout, available)
    return {
        "longest": longest,
        "blocks": blocks,
        "bytes_per_block": layout.bytes_per_block,
        "block_sizes": sorted(group.block_size for group in layout.groups if group.kind != "state"),
        "tokens": kv_cache.tokens(layout, launch, blocks),
        "max_concurrency": kv_cache.max_concurrency(layout, launch, blocks),
    }


def _theirs(folder: Path) -> Iterator[tuple[str, dict[str, Any], tuple[int, int, int], dict[str, Any] | None]]:
    import vllm.model_executor.models.registry as registry

    registry._run_in_subprocess = lambda function: function()  # looks at each model's class; seconds in a subprocess
    for name in NAMES:
        _write_config(name, folder / name)
        for wanted in SETTINGS:
            if name in ("phi3", "olmo2", "bert") and wanted.get("ranks", wanted.get("stages")):
                continue  # heads that don't divide, or a model that isn't split
            config, specs = _layers_caches(folder / name, **wanted)
            if config is None:
                continue
            for request in REQUESTS:
                yield name, _settings(config, wanted), request, _sized(config, specs, *request)


def _write_config(name: str, folder: Path) -> None:
    import transformers

    from dev.architectures import COMMON, recipes

    recipe = recipes()[name]
    config = getattr(transformers, recipe.model_class).config_class(**{**COMMON, **recipe.config})
    config.architectures, config.dtype = [recipe.model_class], "bfloat16"
    config.save_pretrained(folder)


def _layers_caches(folder: Path, ranks: int = 1, stages: int = 1, **wanted: Any) -> tuple[Any, list[dict[str, Any]]]:
    """vLLM's config, and what the layers of each pipeline stage keep; None where vLLM can't have these settings."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.platforms import current_platform
    from vllm.utils.torch_utils import set_default_torch_dtype
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

    config = EngineArgs(
        model=str(folder), load_format="dummy", enforce_eager=True, skip_tokenizer_init=True, **wanted
    ).create_engine_config()
    if wanted.get("disable_hybrid_kv_cache_manager") and config.model_config.is_hybrid:
        return None, []
    config.parallel_config.tensor_parallel_size = ranks
    config.parallel_config.pipeline_parallel_size = stages
    config.cache_config.kv_cache_layout = "LBHNC"  # the CPU backend's
    specs = []
    layers = config.compilation_config.static_forward_context
    for stage in range(stages):
        _pretend(config, ranks, stages, stage)
        layers.clear()
        with (
            set_current_vllm_config(config),
            set_default_torch_dtype(config.model_config.dtype),
            torch.device("meta"),
        ):
            initialize_model(vllm_config=config)
        current_platform.update_block_size_for_backend(config)
        specs.append(get_kv_cache_spec(config))
    layers.clear()
    return config, specs


def _pretend(config: Any, ranks: int, stages: int, stage: int) -> None:
    """Be the first tensor-parallel rank of a pipeline stage."""
    import tempfile

    import vllm.distributed.parallel_state as state
    from vllm.config import set_current_vllm_config

    if state._TP is None:
        with set_current_vllm_config(config):
            state.init_distributed_environment(1, 0, f"file://{tempfile.mktemp()}", 0, backend="gloo")
            state.initialize_model_parallel(1, 1)
        state._EP = state._EP or state._DP
    state._TP.world_size = ranks
    state._PP.world_size, state._PP.ranks = stages, list(range(stages))
    state._PP.rank_in_group = state._PP.rank = stage


def _settings(config: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The same deployment in our words."""
    import torch

    cache = config.cache_config
    return {
        "device": "cpu",
        "cpu_features": frozenset({"avx512_bf16"} if torch.cpu._is_avx512_bf16_supported() else ())
        | frozenset({"amx_tile"} if torch.cpu._is_amx_tile_supported() else ()),
        "block_size": wanted.get("block_size"),
        "kv_cache_dtype": wanted.get("kv_cache_dtype", "auto"),
        "tensor_parallel": wanted.get("ranks", 1),
        "pipeline_parallel": wanted.get("stages", 1),
        "prefix_caching": bool(cache.enable_prefix_caching),
        "hybrid_kv_cache_manager": not config.scheduler_config.disable_hybrid_kv_cache_manager,
        "mamba_cache_dtype": wanted.get("mamba_cache_dtype", "auto"),
        "speculation": Speculation("ngram", 3) if "speculative_config" in wanted else None,
    }


def _sized(
    config: Any, specs: list[dict[str, Any]], context: int, batched: int, available: int
) -> dict[str, Any] | None:
    if not any(specs):
        return None
    from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_configs

    model_config = config.model_config
    config.scheduler_config.max_num_batched_tokens = batched
    memory = [available] * len(specs)
    model_config.max_model_len, model_config.original_max_model_len = context, -1
    try:
        get_kv_cache_configs(config, copy.deepcopy(specs), memory)
    except ValueError:
        return {"longest": 0}
    longest = model_config.max_model_len
    if longest < context:
        return {"longest": longest}
    sized = get_kv_cache_configs(config, copy.deepcopy(specs), memory)
    tokens, concurrency = get_kv_cache_capacity(config, sized[0])
    return {
        "longest": longest,
        "blocks": sized[0].num_blocks,
        "bytes_per_block": max(max(tensor.size for tensor in each.kv_cache_tensors) for each in sized)
        // sized[0].num_blocks,
        "block_sizes": sorted(
            group.kv_cache_spec.block_size
            for group in sized[0].kv_cache_groups
            if type(group.kv_cache_spec).__name__ != "MambaSpec"
        ),
        "tokens": tokens,
        "max_concurrency": concurrency,
    }
