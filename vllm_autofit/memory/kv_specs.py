"""What each layer of a model keeps in the KV cache of one rank, before layers are put into groups.

vLLM 0.32.0: ``get_kv_cache_spec`` of the layers, ``max_memory_usage_bytes`` in ``v1/kv_cache_interface.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vllm_autofit.architecture import Attention, Layer, ModelFacts, State
from vllm_autofit.demand import KvKind
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.kv_blocks import BlockSizes, block_sizes, keeps_states, skips_boundary_layers
from vllm_autofit.memory.kv_dtypes import (
    attention_token_bytes,
    cache_dtype,
    indexer_token_bytes,
    kv_heads_of_rank,
    state_bytes,
)
from vllm_autofit.memory.runner import uses_second_runner
from vllm_autofit.memory.sharding import stage_of_layers

STEPS_OVERLAP_SINCE = (0, 26)
SYNCHRONOUS_METHODS = frozenset({"ngram", "suffix", "medusa", "mlp_speculator", "custom_class"})
"""Ways of speculating with which scheduling isn't asynchronous."""

INDEX_KEY_BYTES = 2
"""Of an element of MiniMax M3's index keys: bfloat16 by default (``attention_config.indexer_kv_dtype``)."""

BOUNDARY_LAYERS = 2
"""At each end, that TurboQuant leaves as they are."""


@dataclass(frozen=True)
class LayerCache:
    """The cache of one layer. Two that are equal can share block tables and blocks."""

    kind: KvKind
    block_size: int
    """Tokens."""
    page_bytes: int
    """Of one block, padding counted."""
    shape: tuple[int | str, ...] = ()
    """Tells caches apart whose pages have the same size."""
    window: int | None = None
    in_flight: int = 0
    """Tokens kept beside the window's own: those being computed."""
    fixed_blocks: int | None = None
    """Blocks of one sequence, however long it is; None where its tokens count."""
    stage: int = field(default=0, compare=False)
    """Of the pipeline."""


def layer_caches(facts: ModelFacts, deployment: Deployment, draft: ModelFacts | None) -> list[LayerCache]:
    """The caches of all layers of the model, in order, then those of its drafter. Empty without a KV cache."""
    sizes = block_sizes(facts, deployment)
    reader = _Reader(facts, deployment, sizes)
    stages = stage_of_layers(len(facts.layers), deployment.pipeline_parallel)
    caches: list[LayerCache] = []
    for index, (layer, stage) in enumerate(zip(facts.layers, stages, strict=True)):
        caches += (replace(cache, stage=stage) for cache in reader.layer(layer, index))
    last = deployment.pipeline_parallel - 1
    for layer in _draft_layers(facts, deployment, draft):
        caches += (replace(cache, stage=last) for cache in reader.layer(layer, None))
    return caches


def _draft_layers(facts: ModelFacts, deployment: Deployment, draft: ModelFacts | None) -> tuple[Layer, ...]:
    if deployment.speculation is None:
        return ()
    if draft is not None:
        return draft.layers
    if facts.drafter is None or facts.drafter.layer is None or "mtp" not in deployment.speculation.method:
        return ()
    return (facts.drafter.layer,) * facts.drafter.layers


class _Reader:
    """Turns layers into caches, with what is the same for all of them at hand."""

    def __init__(self, facts: ModelFacts, deployment: Deployment, sizes: BlockSizes) -> None:
        self._facts = facts
        self._deployment = deployment
        self._sizes = sizes
        self._dtype = cache_dtype(facts, deployment)
        self._in_flight = _tokens_in_flight(facts, deployment)
        self._skips_ends = skips_boundary_layers(facts, deployment)

    def layer(self, layer: Layer, index: int | None) -> Iterator[LayerCache]:
        """The caches of one layer; ``index`` is None for a drafter's."""
        dtype = self._dtype
        if self._skips_ends and (index is None or not self._is_inner(index)):
            dtype = self._deployment.dtype
        for part in (layer.mixer, layer.parallel, layer.also):
            if isinstance(part, State):
                yield self._state(part)
            elif part is not None and part.role != "encoder" and part.shares_kv_with is None:
                yield from self._attention(part, dtype)

    def _is_inner(self, index: int) -> bool:
        layers = len(self._facts.layers)
        ends = min(BOUNDARY_LAYERS, layers // 2)
        return ends <= index < layers - ends

    def _attention(self, attention: Attention, dtype: str) -> Iterator[LayerCache]:
        token_bytes = attention_token_bytes(attention, dtype, self._deployment.tensor_parallel)
        heads = kv_heads_of_rank(attention, self._deployment.tensor_parallel)
        shape = (heads, attention.head_size, attention.value_head_size, dtype)
        size = self._sizes.attention
        if attention.latent is not None:
            yield LayerCache("mla", size, size * token_bytes, ("latent", *shape))
            if attention.latent.index_heads:
                yield LayerCache("mla", size, size * indexer_token_bytes(attention.latent), ("indexer",))
        elif attention.role == "cross":
            blocks = -(-self._deployment.max_num_batched_tokens // size)
            yield LayerCache("cross", size, size * token_bytes, shape, fixed_blocks=blocks)
        elif attention.chunk is not None:
            yield LayerCache("chunked", size, size * token_bytes, shape, attention.chunk, self._in_flight)
        elif attention.window is not None:
            size = self._sizes.window
            reach = self._in_flight + self._retained()
            yield LayerCache("sliding", size, size * token_bytes, shape, attention.window, reach)
        else:
            yield LayerCache("full", size, size * token_bytes, shape)
        if attention.index_heads:
            yield LayerCache("mla", size, size * attention.index_head_size * INDEX_KEY_BYTES, ("indexer",))

    def _retained(self) -> int:
        """Tokens that windows keep for several MTP layers, each of which reads one token further (vLLM >= 0.29)."""
        speculation, drafter = self._deployment.speculation, self._facts.drafter
        if speculation is None or drafter is None or speculation.method != "mtp" or self._deployment.vllm < (0, 29):
            return 0
        return speculation.tokens - 1 if min(drafter.layers, speculation.tokens) > 1 else 0

    def _state(self, state: State) -> LayerCache:
        content = state_bytes(state, self._facts, self._deployment)
        return LayerCache(
            "state",
            self._sizes.state,
            max(content, self._sizes.state_page_bytes or 0),
            (state.kind, content),
            fixed_blocks=self._state_blocks(state),
        )

    def _state_blocks(self, state: State) -> int | None:
        """Blocks of one sequence: its state, one a drafted token, and those kept for prefix caching."""
        mode = keeps_states(self._deployment)
        if mode == "all":
            return None
        drafted = self._deployment.speculation.tokens if self._deployment.speculation else 0
        if mode == "none":
            return 1 + drafted
        checkpoints = int(state.kind == "mamba2" and self._deployment.vllm >= (0, 29))
        return 2 + drafted + checkpoints


def _tokens_in_flight(facts: ModelFacts, deployment: Deployment) -> int:
    """Tokens scheduled but not settled: a batch per concurrent step.

    From vLLM 0.26 the steps count that overlap (``VllmConfig.max_concurrent_batches``): one a pipeline stage, and one
    more where scheduling is asynchronous. It is on GPUs, except for pooling models and some ways of speculating; with a
    pipeline it takes the second model runner.
    """
    if deployment.vllm < STEPS_OVERLAP_SINCE:
        return deployment.max_num_batched_tokens
    overlaps = deployment.device != "cpu" and facts.runner == "generate" and not _drafts_in_step(deployment)
    if deployment.pipeline_parallel > 1:
        overlaps = overlaps and uses_second_runner(facts, deployment)
    return (deployment.pipeline_parallel + int(overlaps)) * deployment.max_num_batched_tokens


def _drafts_in_step(deployment: Deployment) -> bool:
    return deployment.speculation is not None and deployment.speculation.method in SYNCHRONOUS_METHODS
