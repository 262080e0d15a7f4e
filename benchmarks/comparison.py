"""Ours against what real vLLM took, figure by figure, and the page that says so."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_autofit.architecture import Tensor
from vllm_autofit.demand import KvLayout
from vllm_autofit.deployment import Deployment
from vllm_autofit.facts.config import model_facts
from vllm_autofit.facts.families.drafters import drafting_config
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.estimate import loaded_weights
from vllm_autofit.memory.kv_cache import blocks, kv_layout, longest_context, max_concurrency, tokens
from vllm_autofit.planning.defaults import speculation_of
from vllm_autofit.units import GIB
from vllm_autofit.values import Model

WEIGHTS_TOLERANCE = 0.001
KINDS = {
    "FullAttentionSpec": "full",
    "SlidingWindowSpec": "sliding",
    "ChunkedLocalAttentionSpec": "chunked",
    "MLAAttentionSpec": "mla",
    "CrossAttentionSpec": "cross",
    "MambaSpec": "state",
}
"""vLLM's classes -> ``KvGroup.kind``."""


@dataclass
class Row:
    """One case, compared."""

    name: str
    vllm_bytes: int = 0
    header_error: float | None = None
    config_error: float | None = None
    """Relative, ours against vLLM's; None where there is nothing to compare."""
    differences: list[str] = field(default_factory=list)
    """What of the KV cache isn't equal, as ``what: ours, vLLM's``."""
    has_kv: bool = False
    failure: str = ""
    """Why there is no comparison: our error."""

    @property
    def agrees(self) -> bool:
        """Whether it holds what is asked of it."""
        error = self.header_error if self.header_error is not None else self.config_error
        return not self.failure and not self.differences and abs(error or 0.0) <= WEIGHTS_TOLERANCE


def compare(name: str, truth: dict[str, Any], features: Sequence[str]) -> Row:
    """Ours against what vLLM said."""
    row = Row(name, max(rank["loaded"]["bytes"] for rank in truth["ranks"]))
    deployment = deployment_of(truth, features)
    model, from_config = _model(name, truth, headers=True), _model(name, truth, headers=False)
    facts = model.facts
    assert facts is not None
    if model.tensors:
        row.header_error = loaded_weights(model, deployment).bytes / row.vllm_bytes - 1
    row.config_error = loaded_weights(from_config, deployment).bytes / row.vllm_bytes - 1
    if "max_model_len" not in truth["arguments"]:
        _check(row, "context", facts.context_tokens, truth["settings"]["max_model_len"])
    layout, kv = kv_layout(facts, deployment, None if model.draft is None else model.draft.facts), truth["kv"]
    _check(row, "has a KV cache", layout is not None, kv is not None)
    if layout is not None and kv is not None:
        row.has_kv = True
        for what, ours_is, vllm_is in _kv_figures(layout, deployment, kv, facts.context_tokens):
            _check(row, what, ours_is, vllm_is)
    return row


def _model(name: str, truth: dict[str, Any], *, headers: bool) -> Model:
    """The model as we would read it, from its config and its headers or from its config alone."""
    facts = model_facts(drafting_config(truth["config"]))
    tensors = tuple(Tensor(each, tuple(shape), dtype, size) for each, dtype, shape, size in truth["tensors"])
    draft = _model(f"{name}'s draft", truth["draft"], headers=headers) if "draft" in truth else None
    if not headers:
        tensors = tensors_from_facts(facts)
    source = "folder" if headers else "config"
    return Model(name, facts, tensors=tensors, weights_source=source, exact=headers, draft=draft)


def _kv_figures(
    layout: KvLayout, deployment: Deployment, kv: dict[str, Any], limit: int
) -> Iterator[tuple[str, Any, Any]]:
    """What is compared of the KV cache: name, ours, vLLM's."""
    yield "bytes per block", layout.bytes_per_block, max(kv["bytes_per_block"])
    count = blocks(layout, kv["available_bytes"])
    yield "blocks", count, kv["blocks"]
    yield "tokens", tokens(layout, deployment, count), kv["tokens"]
    yield "concurrency", round(max_concurrency(layout, deployment, count), 6), round(kv["max_concurrency"], 6)
    limit = min(limit, deployment.max_model_len)
    for available, context in kv["longest_context"].items():
        yield f"context in {available} bytes", longest_context(layout, deployment, int(available), limit), context
    ours = [(each.kind, each.layers, each.block_size, each.page_bytes, each.window or 0) for each in layout.groups]
    yield "groups", sorted(ours), sorted(map(_group, kv["groups"]))


def _group(group: dict[str, Any]) -> tuple[str, int, int, int, int]:
    """vLLM's group in our terms: of pages that differ, the largest.

    Full attention notes a window too where layers with one are kept like the others.
    """
    kind = KINDS[group["kind"]]
    window = group["window"] or 0 if kind in ("sliding", "chunked") else 0
    pages = group["page_bytes"]
    page_bytes = max(pages) if isinstance(pages, list) else pages
    return kind, group["layers"], group["block_size"], page_bytes, window


def _check(row: Row, what: str, ours: Any, theirs: Any) -> None:
    if ours != theirs:
        row.differences.append(f"{what}: {ours}, vLLM {theirs}")


def deployment_of(truth: dict[str, Any], features: Sequence[str]) -> Deployment:
    """The launch as the estimator sees it: settings in force, and what the caller set of the rest."""
    settings, arguments = truth["settings"], truth["arguments"]
    return Deployment(
        vllm=(0, 32),
        device="cpu",
        cpu_features=frozenset(features),
        dtype=settings["dtype"],
        text_only=not any(arguments.get("limit_mm_per_prompt", {"any": 1}).values()),
        quantization=arguments.get("quantization"),
        max_model_len=settings["max_model_len"],
        max_num_seqs=settings["max_num_seqs"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        kv_cache_dtype=settings["kv_cache_dtype"],
        block_size=arguments.get("block_size"),
        mamba_cache_dtype=arguments.get("mamba_cache_dtype", "auto"),
        mamba_ssm_cache_dtype=arguments.get("mamba_ssm_cache_dtype", "auto"),
        prefix_caching=settings["prefix_caching"],
        chunked_prefill=settings["chunked_prefill"],
        hybrid_kv_cache_manager=settings["hybrid_kv_cache_manager"],
        tensor_parallel=settings["tensor_parallel"],
        pipeline_parallel=settings["pipeline_parallel"],
        expert_parallel=settings["expert_parallel"],
        enforce_eager=True,
        cpu_offload_bytes=int(arguments.get("cpu_offload_gb", 0) * GIB),
        speculation=speculation_of(arguments.get("speculative_config", {})),
        lora_adapters=arguments.get("max_loras", 1) if arguments.get("enable_lora") else 0,
        lora_rank=arguments.get("max_lora_rank", 16),
    )


def compared(record: dict[str, Any]) -> list[Row]:
    """All cases of a record that vLLM loaded; an error of ours becomes the row's failure."""
    rows = []
    for name, truth in record["cases"].items():
        if "refused" in truth:
            continue
        try:
            rows.append(compare(name, truth, record["cpu_features"]))
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(name, failure=f"{type(error).__name__}: {error}"))
    return rows


def table(rows: Sequence[Row]) -> list[str]:
    """A Markdown table."""
    lines = [
        "| model | weights in vLLM | from headers | from config | KV cache |",
        "|---|---:|---:|---:|---|",
    ]
    for row in rows:
        kv = row.failure or "; ".join(row.differences) or ("equal" if row.has_kv else "none, equal")
        lines.append(
            f"| {row.name} | {row.vllm_bytes:,} | {_percent(row.header_error)} | {_percent(row.config_error)} | {kv} |"
        )
    return lines


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.3%}" if error else "equal"


def page(record: dict[str, Any], rows: Sequence[Row]) -> str:
    """What ``--markdown`` writes."""
    reasons = {name: truth["refused"] for name, truth in record["cases"].items() if "refused" in truth}
    refused = [f"- {name}: {reason.partition('. ')[0].rstrip('.')}." for name, reason in reasons.items()]
    return "\n".join(
        [
            "# Against vLLM itself",
            "",
            f"vLLM {record['vllm']} on the CPU ({record['machine']}), small models with random weights, "
            f"{len(rows)} cases. Written by `python -m benchmarks.against_vllm`.",
            "Weights are the bytes of parameters and buffers, as loaded, of the rank that has most, and of a draft",
            "those that it doesn't share with the model. KV cache compares bytes per block, blocks, tokens,",
            "concurrency, groups, the context that vLLM derives from the config and the longest that fits into three",
            "sizes of cache.",
            "",
            *table(rows),
            *(["", "vLLM's CPU backend refuses, so that this isn't shown:", "", *refused] if refused else []),
            "",
        ]
    )
