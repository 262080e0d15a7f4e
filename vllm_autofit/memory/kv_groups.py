"""Layers that share block tables: vLLM puts those of one kind together, in groups of equal size with equal pages.

vLLM 0.32.0: ``get_kv_cache_groups`` and what it calls, ``v1/core/kv_cache_utils.py``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.kv_specs import LayerCache

Group = list[LayerCache]

HYBRID_SINCE = (0, 10)
"""Layers with a window keep no more than they need; before, they kept every token where others did."""

CHUNKS_HYBRID_SINCE = (0, 14)
"""``VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE`` is on by default."""


def grouped(caches: Sequence[LayerCache], deployment: Deployment) -> list[Group]:
    """All layers of the model in groups. One block of the pool serves one group, with all of its layers' pages."""
    if not _may_be_hybrid(caches, deployment):
        caches = _all_tokens_kept(caches)
    if len({_unit(cache) for cache in caches}) == 1:
        return [list(caches)]
    try:
        return _equal_groups(_equal_pages(caches), deployment)
    except _PagesDifferError:
        return [_all_tokens_kept(caches)]


def _may_be_hybrid(caches: Sequence[LayerCache], deployment: Deployment) -> bool:
    """Whether vLLM uses its hybrid manager; for chunked-local attention later than for windows, and not with EAGLE."""
    if not deployment.hybrid_kv_cache_manager or deployment.vllm < HYBRID_SINCE:
        return False
    if not any(cache.kind == "chunked" for cache in caches):
        return True
    method = deployment.speculation.method if deployment.speculation else ""
    return deployment.vllm >= CHUNKS_HYBRID_SINCE and not method.startswith(("eagle", "mtp"))


def _all_tokens_kept(caches: Sequence[LayerCache]) -> Group:
    """Layers with a window or chunks treated as full attention, where there is any."""
    full = next((cache for cache in caches if cache.kind in ("full", "mla")), None)
    if full is None:
        return list(caches)
    return [_keeps_all(cache, full.block_size) if cache.kind in ("sliding", "chunked") else cache for cache in caches]


def _keeps_all(cache: LayerCache, block_size: int) -> LayerCache:
    page_bytes = cache.page_bytes * block_size // cache.block_size
    return replace(cache, kind="full", block_size=block_size, page_bytes=page_bytes, window=None, in_flight=0)


def _unit(cache: LayerCache) -> Hashable:
    """Caches of which one and the same block table can serve all, though their pages differ."""
    if cache.kind in ("full", "mla"):
        return "full", cache.block_size
    if cache.kind == "state":
        return "state", cache.block_size, cache.page_bytes, cache.fixed_blocks
    return cache.kind, cache.block_size, cache.window


class _PagesDifferError(Exception):
    """Pages of latent attention can't be brought to the size of the others."""


def _equal_pages(caches: Sequence[LayerCache]) -> Group:
    """Every page as large as the largest: more tokens to a block where that divides, else padding."""
    largest = max(cache.page_bytes for cache in caches)
    return [_with_page(cache, largest) for cache in caches]


def _with_page(cache: LayerCache, page_bytes: int) -> LayerCache:
    ratio, rest = divmod(page_bytes, cache.page_bytes)
    if cache.kind != "state" and rest == 0:
        return replace(cache, page_bytes=page_bytes, block_size=cache.block_size * ratio)
    if cache.kind == "mla" and rest:
        raise _PagesDifferError
    return replace(cache, page_bytes=page_bytes)


def _equal_groups(caches: Group, deployment: Deployment) -> list[Group]:
    """As many layers to each group as the rarest kind has, or as the commonest where that is hardly more.

    Layers are dealt out in turn, so that each pipeline stage has its share of every group.
    """
    kinds: dict[LayerCache, Group] = {}
    for cache in caches:
        kinds.setdefault(cache, []).append(cache)
    fewest = min(len(layers) for layers in kinds.values())
    most = max(len(layers) for layers in kinds.values())
    size = most if most < fewest * _padding_factor(deployment) else fewest
    groups: list[Group] = []
    for layers in kinds.values():
        count = -(-len(layers) // size)
        groups += (layers[start::count] for start in range(count))
    return groups


def _padding_factor(deployment: Deployment) -> float:
    """Up to how many times the rarest kind's layers the others are not split but the rarest is padded."""
    if deployment.vllm >= (0, 18):
        return 1.5
    return 1.25 if deployment.vllm >= (0, 12) else 1.0
