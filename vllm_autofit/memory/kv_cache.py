"""The KV cache of one deployment: how it is cut up, and what fits into how many bytes of it.

Pure arithmetic that comes out as vLLM's own, to the byte: ``get_kv_cache_configs`` and ``get_kv_cache_capacity`` in
``v1/core/kv_cache_utils.py`` of vLLM 0.32.0, and its forerunners since 0.9 where they differ. What is left out: layouts
with several caches in one block (DeepSeek V4), HiSparse, and ``kv_cache_dtype_skip_layers``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_autofit.architecture import ModelFacts
from vllm_autofit.demand import KvGroup, KvLayout
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.kv_groups import Group, grouped
from vllm_autofit.memory.kv_specs import LayerCache, layer_caches

NULL_BLOCK_SINCE = (0, 29)
"""One block of the pool stands for "nothing here"; from then on vLLM checks that a request fits without it."""

TOKENS_FROM_CONCURRENCY_SINCE = (0, 21)
"""From then on vLLM prints tokens that whole requests can fill; before, blocks of one group times their tokens."""


def kv_layout(facts: ModelFacts, deployment: Deployment, draft: ModelFacts | None = None) -> KvLayout | None:
    """How the KV cache of the fullest rank is cut up; None for a model without one (an encoder).

    Args:
        facts: the model; its ``drafter`` counts when the deployment speculates with ``mtp``.
        deployment: one launch.
        draft: the model that drafts, where it has a checkpoint of its own.
    """
    caches = layer_caches(facts, deployment, draft)
    if not caches:
        return None
    groups = grouped(caches, deployment)
    stage = max(range(deployment.pipeline_parallel), key=lambda stage: _bytes_per_block(groups, stage))
    shards = _shards(deployment)
    attention_blocks = [cache.block_size for cache in caches if cache.kind != "state"]
    return KvLayout(
        groups=tuple(_group(group, stage) for group in groups),
        bytes_per_block=_bytes_per_block(groups, stage),
        block_size=min(attention_blocks or [cache.block_size for cache in caches]) * shards,
        shards=shards,
    )


def _on_stage(group: Group, stage: int) -> list[LayerCache]:
    return [cache for cache in group if cache.stage == stage]


def _bytes_per_block(groups: Sequence[Group], stage: int) -> int:
    """Of the pool of one stage: as much as the widest group needs."""
    return max(sum(cache.page_bytes for cache in _on_stage(group, stage)) for group in groups)


def _group(group: Group, stage: int) -> KvGroup:
    first = group[0]
    return KvGroup(
        kind=first.kind,
        layers=len(_on_stage(group, stage)),
        block_size=first.block_size,
        page_bytes=max(cache.page_bytes for cache in group),
        window=first.window,
        in_flight=first.in_flight,
        fixed_blocks=first.fixed_blocks,
    )


def blocks(layout: KvLayout, available_bytes: int, override: int | None = None) -> int:
    """Blocks of the pool, in ``available_bytes`` on each rank; ``override`` (``num_gpu_blocks_override``) wins."""
    return max(0, available_bytes // layout.bytes_per_block) if override is None else override


def bytes_needed(layout: KvLayout, deployment: Deployment, tokens: int, requests: int = 1) -> int:
    """The smallest KV cache, in bytes on each rank, with which ``requests`` requests of ``tokens`` tokens can run.

    vLLM refuses to start with less than this for one request of ``max_model_len`` tokens. Its message leaves out the
    block that the pool keeps for itself.
    """
    wanted = requests * _request_blocks(layout, tokens) + _kept_blocks(deployment)
    return wanted * layout.bytes_per_block


def longest_context(layout: KvLayout, deployment: Deployment, available_bytes: int, limit: int) -> int:
    """The longest request, in tokens up to ``limit``, that fits into ``available_bytes``; 0 when not one token does."""
    shortest, longest = 0, limit
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if bytes_needed(layout, deployment, middle) <= available_bytes:
            shortest = middle
        else:
            longest = middle - 1
    return shortest


def max_concurrency(layout: KvLayout, deployment: Deployment, block_count: int) -> float:
    """Requests of ``max_model_len`` tokens that ``block_count`` blocks hold, as vLLM prints it."""
    return block_count / _request_blocks(layout, deployment.max_model_len)


def tokens(layout: KvLayout, deployment: Deployment, block_count: int) -> int:
    """What vLLM prints as "GPU KV cache size"."""
    if deployment.vllm >= TOKENS_FROM_CONCURRENCY_SINCE:
        return int(max_concurrency(layout, deployment, block_count) * deployment.max_model_len)
    smallest = min(group.block_size for group in layout.groups)
    return block_count // len(layout.groups) * smallest * layout.shards


def most_sequences(layout: KvLayout, block_count: int) -> int | None:
    """The largest ``max_num_seqs`` with which graphs can be captured; None where no layer has a state.

    Each sequence of a captured batch needs a block for its state.
    """
    return block_count if any(group.kind == "state" for group in layout.groups) else None


def bytes_per_token(layout: KvLayout) -> int:
    """Bytes on each rank that one more token of a long request takes; 0 where only states are kept.

    A window holds no more tokens once it is full, so layers with one count only where all have one.
    """
    growing = [group for group in layout.groups if group.kind in ("full", "mla")]
    counted = growing or [group for group in layout.groups if group.fixed_blocks is None]
    return sum(layout.bytes_per_block // (group.block_size * layout.shards) for group in counted)


def _kept_blocks(deployment: Deployment) -> int:
    return int(deployment.vllm >= NULL_BLOCK_SINCE)


def _shards(deployment: Deployment) -> int:
    """Ranks that a request's tokens are spread over; prefill's context parallelism counted until vLLM 0.25."""
    prefill = deployment.prefill_context_parallel if deployment.vllm < (0, 26) else 1
    return deployment.decode_context_parallel * prefill


def _request_blocks(layout: KvLayout, tokens: int) -> int:
    """Blocks of the pool that one request takes: each group draws its own."""
    return sum(_group_blocks(group, tokens, layout.shards) for group in layout.groups)


def _group_blocks(group: KvGroup, tokens: int, shards: int) -> int:
    if group.fixed_blocks is not None:
        return group.fixed_blocks
    if group.window is None:
        return -(-tokens // (group.block_size * (1 if group.kind == "state" else shards)))
    if group.kind == "chunked":
        return -(-min(group.window + group.in_flight, tokens) // group.block_size)
    # One more, because a window may begin within a block.
    return -(-min(group.window - 1 + group.in_flight, tokens) // group.block_size) + 1
