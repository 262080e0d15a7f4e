"""Seam ``EngineCore._initialize_kv_caches``: profiling, KV sizing, allocation and warm-up, in every kind of engine.

When it returns, vLLM knows everything about its memory: every worker is asked for its figures, the record is completed,
and the engine is watched from then on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks import lease, serving, worker_report
from vllm_autofit.hooks.failures import note_failure
from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.runs import (
    Run,
    dp_rank_of,
    record_phase,
    record_success,
    run_of,
    seconds_since_start,
    settings_in_force,
)
from vllm_autofit.hooks.seams import Seam


def initialize_kv_caches(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """What vLLM returns, after the record has been completed."""
    config = args[0] if args else kwargs["vllm_config"]
    run = run_of(config)
    if run is None:
        return wrapped(*args, **kwargs)
    attempt("recording this start", record_phase, run, "profile_run")
    began = time.monotonic()
    try:
        result = wrapped(*args, **kwargs)
    except Exception as error:
        attempt("recording why this start failed", note_failure, run, error)
        raise
    seconds = round(time.monotonic() - began, 2)
    attempt(lease.PURPOSE, lease.up, run)
    attempt("recording this start", _report, run, instance, config, result, seconds)
    attempt("checking the context", _check_context, run, config)
    return result


def _report(run: Run, engine: Any, config: Any, result: Any, seconds: float) -> None:
    reports = worker_report.collect(engine.model_executor)
    dp_rank = dp_rank_of(config)
    record_success(
        run,
        {
            "dp_rank": dp_rank,
            "max_model_len": int(config.model_config.max_model_len),
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "quantization": config.model_config.quantization,
            **settings_in_force(config),
            "kv_cache": _kv_cache(config, result),
            "ranks": [report.figures for report in reports],
            "seconds": {"kv_cache_and_warm_up": seconds, "since_plan": seconds_since_start(run)},
        },
    )
    serving.watch(run, engine, dp_rank, [report.place for report in reports if report.place])


def _kv_cache(config: Any, result: Any) -> dict[str, Any]:
    """Blocks, tokens and bytes of the KV cache as vLLM counts them; empty for a model without one."""
    cache = result if hasattr(result, "num_blocks") else result[-1]  # a tuple up to vLLM 0.16
    blocks = int(cache.num_blocks)
    if not cache.kv_cache_groups or blocks <= 0:
        return {}
    pool_bytes = sum(int(tensor.size) for tensor in cache.kv_cache_tensors)
    block_size = int(config.cache_config.block_size)
    tokens = getattr(config.cache_config, "kv_cache_size_tokens", None)
    if tokens is None:  # vLLM before 0.26 keeps the number nowhere; it logs this
        tokens = blocks // len(cache.kv_cache_groups) * block_size
    return {
        "blocks": blocks,
        "block_size": block_size,
        "bytes_per_block": pool_bytes // blocks,
        "pool_bytes": pool_bytes,
        "tokens": int(tokens),
        "max_concurrency": getattr(config.cache_config, "kv_cache_max_concurrency", None),
    }


def _check_context(run: Run, config: Any) -> None:
    """Say so when vLLM had to fit the context below the user's floor."""
    floor = run["record"]["plan"]["min_context_tokens"]
    model = config.model_config
    fitted = getattr(model, "original_max_model_len", None) == -1
    if not fitted or model.max_model_len >= floor:
        return
    native = getattr(model.hf_text_config, "max_position_embeddings", None)
    if isinstance(native, int) and model.max_model_len >= native:
        return
    logger.warning(
        "vllm-autofit: the KV cache holds a context of only %d tokens, under VLLM_AUTOFIT_MIN_CONTEXT=%d. "
        "Free memory on the device, use a quantised model, or spread it over more devices.",
        model.max_model_len,
        floor,
    )


SEAMS = (
    Seam(
        "vllm.v1.engine.core",
        "EngineCore._initialize_kv_caches",
        ("vllm_config",),
        initialize_kv_caches,
        "recording this start",
    ),
)
