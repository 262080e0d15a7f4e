"""The KV cache against figures worked out by hand from vLLM's rules. Real vLLM's are in ``test_kv_cache_vllm.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_autofit.architecture import (
    Attention,
    Drafter,
    LatentAttention,
    Layer,
    ModelFacts,
    Quantization,
    State,
)
from vllm_autofit.demand import KvLayout
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.memory import kv_cache

FULL = Attention(heads=32, kv_heads=8, head_size=128, value_head_size=128)
SLIDING = replace(FULL, window=1024)
CHUNKED = replace(FULL, chunk=8192)
LATENT = replace(FULL, kv_heads=32, latent=LatentAttention(kv_rank=512, rope_head_size=64, nope_head_size=128))
MAMBA2 = State("mamba2", heads=64, head_size=64, state_size=128, groups=8, inner_size=4096, conv_kernel=4)
DELTA = State("gated_delta_net", heads=32, head_size=128, key_heads=16, key_head_size=128, conv_kernel=4)
TOKEN = 2 * 8 * 128 * 2
"""Bytes of one token in one layer of ``FULL``, in 16 bits."""


def model(*mixers: Attention | State, **more: Any) -> ModelFacts:
    """A model of these layers."""
    layers = tuple(Layer(mixer) for mixer in mixers)
    return ModelFacts("SomeForCausalLM", more.pop("model_type", "some"), 4096, 32000, layers, **more)


def layout(facts: ModelFacts, draft: ModelFacts | None = None, **settings: Any) -> KvLayout:
    """Its cache under these settings; the model must have one."""
    found = kv_cache.kv_layout(facts, Deployment(**settings), draft)
    assert found is not None
    return found


def test_dense_model_keeps_keys_and_values_of_every_layer() -> None:
    found = layout(model(*[FULL] * 32))
    assert found.bytes_per_block == 16 * 32 * TOKEN == 2 * 2**20
    assert [(group.kind, group.layers, group.block_size) for group in found.groups] == [("full", 32, 16)]
    assert kv_cache.bytes_per_token(found) == 32 * TOKEN
    assert kv_cache.most_sequences(found, 1000) is None


def test_whole_blocks_only_and_the_override_wins() -> None:
    found = layout(model(FULL))
    size = found.bytes_per_block
    assert [kv_cache.blocks(found, count) for count in (size - 1, size, 2 * size - 1, -5)] == [0, 1, 1, 0]
    assert kv_cache.blocks(found, size, override=7) == 7


def test_published_start_is_met_to_the_block() -> None:
    """Qwen3 14B on vLLM 0.15.0: 41.94 GiB are 17178 blocks, 274,848 tokens and 33.55 requests of 8192."""
    launch = Deployment(vllm=(0, 15), max_model_len=8192)
    found = kv_cache.kv_layout(model(*[FULL] * 40), launch)
    assert found is not None
    assert kv_cache.blocks(found, int(41.9385 * 2**30)) == 17178
    assert kv_cache.tokens(found, launch, 17178) == 274848
    assert round(kv_cache.max_concurrency(found, launch, 17178), 2) == 33.55


@pytest.mark.parametrize(("ranks", "heads"), [(1, 8), (2, 4), (8, 1), (16, 1)])
def test_tensor_parallel_splits_heads_until_each_rank_has_one(ranks: int, heads: int) -> None:
    assert layout(model(FULL), tensor_parallel=ranks).bytes_per_block == 16 * heads * 2 * 128 * 2


def test_latent_vectors_are_not_split() -> None:
    found = layout(model(LATENT), tensor_parallel=8, block_size=64)
    assert (found.groups[0].kind, found.bytes_per_block) == ("mla", 64 * 576 * 2)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"compute_capability": (8, 0)}, 16),
        ({"compute_capability": (9, 0)}, 16),
        ({"compute_capability": (9, 0), "kv_cache_dtype": "fp8"}, 64),
        ({"compute_capability": (9, 0), "vllm": (0, 12)}, 64),
        ({"compute_capability": (10, 0)}, 32),
        ({"compute_capability": (10, 0), "vllm": (0, 12)}, 128),
        ({"device": "cpu"}, 16),
        ({"device": "cpu", "block_size": 64}, 16),
        ({"device": "cpu", "cpu_features": frozenset({"amx_tile"})}, 128),
    ],
)
def test_latent_attention_takes_the_block_of_its_kernel(settings: dict[str, Any], tokens: int) -> None:
    assert layout(model(LATENT), **settings).block_size == tokens


def test_sparse_indexer_keeps_keys_of_its_own() -> None:
    assert LATENT.latent is not None
    sparse = replace(LATENT, latent=replace(LATENT.latent, index_heads=64, index_head_size=128))
    found = layout(model(sparse, sparse), kv_cache_dtype="fp8", compute_capability=(9, 0))
    assert len(found.groups) == 1
    assert found.bytes_per_block == 2 * 64 * (656 + 132)
    blackwell = layout(model(sparse), kv_cache_dtype="fp8", compute_capability=(10, 0))
    assert blackwell.bytes_per_block == 64 * (576 + 132)


@pytest.mark.parametrize(
    ("dtype", "head_bytes"),
    [
        ("auto", 512),
        ("float16", 512),
        ("fp8", 256),
        ("fp8_e5m2", 256),
        ("int8_per_token_head", 264),
        ("fp8_per_token_head", 264),
        ("int4_per_token_head", 136),
        ("nvfp4", 144),
        ("ultraquant_4bit", 136),
    ],
)
def test_cache_dtypes(dtype: str, head_bytes: int) -> None:
    assert layout(model(FULL), kv_cache_dtype=dtype).bytes_per_block == 16 * 8 * head_bytes


@pytest.mark.parametrize(
    ("dtype", "slot"),
    [("turboquant_k8v4", 196), ("turboquant_4bit_nc", 134), ("turboquant_k3v4_nc", 118), ("turboquant_3bit_nc", 102)],
)
def test_turboquant_leaves_two_layers_at_each_end(dtype: str, slot: int) -> None:
    found = layout(model(*[FULL] * 6), kv_cache_dtype=dtype)
    assert found.block_size == 32
    assert found.bytes_per_block == 32 * 8 * (4 * 512 + 2 * slot)


def test_checkpoint_that_brings_scales_gets_an_fp8_cache_unless_told_otherwise() -> None:
    facts = model(FULL, quantization=Quantization("fp8", 8, kv_cache_dtype="fp8"))
    assert layout(facts).bytes_per_block == 16 * TOKEN // 2
    assert layout(facts, kv_cache_dtype="bfloat16").bytes_per_block == 16 * TOKEN


def test_full_and_sliding_layers_get_groups_of_the_rarer_size() -> None:
    """Gemma 3's five to one: 26 layers are six groups of four or five, the pool as wide as the widest."""
    facts = model(*[FULL if index % 6 == 5 else SLIDING for index in range(26)])
    launch = Deployment(max_model_len=32768, max_num_batched_tokens=2048)
    found = kv_cache.kv_layout(facts, launch)
    assert found is not None
    assert [(group.kind, group.layers) for group in found.groups] == [
        *[("sliding", 4)] * 4,
        *[("sliding", 3)] * 2,
        ("full", 4),
    ]
    assert found.bytes_per_block == 4 * 16 * TOKEN
    window = (1023 + 2 * 2048) // 16 + 1 + 1  # two steps overlap; a window may begin within a block
    assert kv_cache.max_concurrency(found, launch, 10_000) == 10_000 / (32768 // 16 + 6 * window)
    assert kv_cache.bytes_per_token(found) == 4 * TOKEN


def test_a_kind_that_is_hardly_rarer_is_padded_instead() -> None:
    """gpt-oss with a drafter: 13 full and 12 sliding layers are two groups, not three."""
    facts = model(*[FULL, SLIDING] * 12, FULL)
    assert [group.layers for group in layout(facts).groups] == [13, 12]
    assert layout(facts).bytes_per_block == 13 * 16 * TOKEN
    assert len(layout(facts, vllm=(0, 11)).groups) == 3
    assert len(layout(model(*[FULL] * 10, *[SLIDING] * 14), vllm=(0, 17)).groups) == 3
    assert len(layout(model(*[FULL] * 10, *[SLIDING] * 14), vllm=(0, 18)).groups) == 2


def test_without_the_hybrid_manager_every_layer_keeps_all_tokens() -> None:
    facts = model(*[SLIDING] * 3, FULL)
    for settings in ({"hybrid_kv_cache_manager": False}, {"vllm": (0, 8)}):
        found = layout(facts, **settings)
        assert [(group.kind, group.layers) for group in found.groups] == [("full", 4)]
    assert [group.kind for group in layout(model(SLIDING), hybrid_kv_cache_manager=False).groups] == ["sliding"]


def test_chunked_attention_is_hybrid_since_0_14_and_never_with_eagle() -> None:
    facts = model(*[CHUNKED] * 3, FULL)
    assert [group.kind for group in layout(facts).groups] == ["chunked"] * 3 + ["full"]
    assert len(layout(facts, vllm=(0, 13)).groups) == 1
    assert len(layout(facts, speculation=Speculation("eagle", 3)).groups) == 1
    launch = Deployment(max_model_len=100_000, max_num_batched_tokens=1000)
    found = kv_cache.kv_layout(facts, launch)
    assert found is not None
    assert kv_cache.max_concurrency(found, launch, 1) == 1 / (6250 + 3 * 637)


def test_smaller_pages_get_more_tokens_and_uneven_ones_are_padded() -> None:
    """Gemma 4: full layers with fewer, larger heads than the sliding ones."""
    half = replace(FULL, kv_heads=2, head_size=256, value_head_size=256)
    found = layout(model(*[SLIDING] * 2, half))
    assert [(group.block_size, group.page_bytes) for group in found.groups] == [(16, 16 * TOKEN)] * 2 + [
        (32, 16 * TOKEN)
    ]
    uneven = replace(FULL, kv_heads=2, head_size=192, value_head_size=192)
    found = layout(model(*[SLIDING] * 2, uneven))
    assert (found.groups[-1].block_size, found.groups[-1].page_bytes) == (16, 16 * TOKEN)


def test_full_layers_of_different_widths_share_one_group() -> None:
    narrow = replace(FULL, kv_heads=1)
    found = layout(model(FULL, narrow))
    assert len(found.groups) == 1
    assert found.bytes_per_block == 16 * (TOKEN + TOKEN // 8)


def test_layers_that_read_anothers_cache_and_encoders_have_none() -> None:
    assert layout(model(FULL, replace(FULL, shares_kv_with=0))).bytes_per_block == 16 * TOKEN
    assert kv_cache.kv_layout(model(replace(FULL, role="encoder"), runner="pooling"), Deployment()) is None


def test_cross_attention_keeps_what_the_encoder_may_read_in_a_step() -> None:
    """Whisper large v3 on vLLM 0.15.1: 4152 blocks are 33,216 tokens and 26.62 requests of 448."""
    own = replace(FULL, heads=20, kv_heads=20, head_size=64, value_head_size=64)
    layers = tuple(Layer(own, also=replace(own, role="cross")) for _ in range(32))
    facts = ModelFacts("WhisperForConditionalGeneration", "whisper", 1280, 51866, layers, encoder_tokens=1500)
    launch = Deployment(vllm=(0, 15), max_model_len=448, max_num_batched_tokens=2048, dtype="float16")
    found = kv_cache.kv_layout(facts, launch)
    assert found is not None
    assert kv_cache.blocks(found, round(10.14 * 2**30)) in range(4151, 4156)
    assert kv_cache.tokens(found, launch, 4152) == 33216
    assert round(kv_cache.max_concurrency(found, launch, 4152), 2) == 26.62


def test_attention_blocks_grow_until_a_state_fits_and_states_are_padded() -> None:
    """Nemotron 3 Nano 30B, fp8 cache, two ranks: blocks of 4176 tokens, as its log says."""
    attention = replace(FULL, kv_heads=2)
    facts = model(*[MAMBA2] * 23, *[attention] * 6, model_type="nemotron_h")
    launch = Deployment(
        vllm=(0, 13), kv_cache_dtype="fp8", tensor_parallel=2, prefix_caching=False, max_model_len=131072
    )
    found = kv_cache.kv_layout(facts, launch)
    assert found is not None
    assert found.block_size == 4176
    assert {group.page_bytes for group in found.groups} == {4176 * 256}
    assert [group.layers for group in found.groups] == [6, 6, 6, 5, 6]
    assert kv_cache.max_concurrency(found, launch, 222) == 222 / (32 + 4)
    assert kv_cache.most_sequences(found, 222) == 222


def test_prefix_caching_and_drafts_cost_blocks_of_state() -> None:
    facts = model(*[DELTA] * 3, FULL)

    def held(**settings: Any) -> set[int | None]:
        return {group.fixed_blocks for group in layout(facts, **settings).groups if group.kind == "state"}

    assert held(prefix_caching=False) == {1}
    assert held() == {2}
    assert held(speculation=Speculation("ngram", 4)) == {6}
    mamba = layout(model(*[MAMBA2] * 3, FULL)).groups[0]
    assert mamba.fixed_blocks == 3, "Mamba 2 keeps a checkpoint of the prefill too"
    assert layout(model(*[MAMBA2] * 3, FULL), vllm=(0, 28)).groups[0].fixed_blocks == 2
    assert held(mamba_cache_mode="all") == {None}


def test_states_alone_fill_blocks_of_their_own_size() -> None:
    found = layout(model(MAMBA2, MAMBA2), prefix_caching=False)
    content = 3 * (4096 + 2 * 8 * 128) * 2 + 64 * 64 * 128 * 2
    assert found.bytes_per_block == 2 * content
    assert kv_cache.bytes_per_token(found) == 0
    assert kv_cache.longest_context(found, Deployment(), 2 * found.bytes_per_block, 10**6) == 10**6


@pytest.mark.parametrize(
    ("state", "ranks", "expected"),
    [
        (DELTA, 1, 3 * (2 * 16 * 128 + 32 * 128) * 2 + 32 * 128 * 128 * 2),
        (DELTA, 2, 3 * (2 * 16 * 128 + 32 * 128) + 16 * 128 * 128 * 2),
        (replace(DELTA, kind="kimi_delta"), 1, 3 * (2 * 16 * 128 + 32 * 128) * 2 + 32 * 128 * 128 * 4),
        (replace(MAMBA2, groups=1), 4, 3 * (4096 + 2 * 4 * 128) // 4 * 2 + 16 * 64 * 128 * 2),
        (State("mamba1", inner_size=8192, state_size=16, conv_kernel=4), 2, 3 * 4096 * 2 + 4096 * 16 * 2),
        (State("short_conv", inner_size=2048, conv_kernel=3), 2, 2 * 1024 * 2),
        (State("lightning", heads=64, head_size=128), 8, 8 * 128 * 128 * 2),
    ],
)
def test_states_by_kind(state: State, ranks: int, expected: int) -> None:
    assert layout(model(state), tensor_parallel=ranks).bytes_per_block == expected


def test_dtype_of_states() -> None:
    conv, ssm = 3 * (4096 + 2048), 64 * 64 * 128

    def content(facts: ModelFacts | None = None, **settings: Any) -> int:
        return layout(facts or model(MAMBA2), **settings).bytes_per_block

    assert content(mamba_ssm_cache_dtype="float32") == 2 * conv + 4 * ssm
    assert content(mamba_cache_dtype="float32") == 4 * conv + 4 * ssm
    assert content(model(replace(MAMBA2, state_dtype="float32"))) == 2 * conv + 4 * ssm
    assert content(model(MAMBA2, model_type="nemotron_h")) == 2 * conv + 4 * ssm
    assert content(device="cpu") == 2 * conv + 2 * ssm
    assert content(device="cpu", cpu_features=frozenset({"avx512_bf16"})) == 2 * conv + 4 * ssm


def test_mixers_side_by_side_each_have_a_cache() -> None:
    """Falcon-H1."""
    layers = tuple(Layer(FULL, parallel=MAMBA2) for _ in range(4))
    found = layout(ModelFacts("FalconH1ForCausalLM", "falcon_h1", 4096, 32000, layers))
    assert [(group.kind, group.layers) for group in found.groups] == [("full", 4), ("state", 4)]


def test_fullest_pipeline_stage_counts() -> None:
    assert layout(model(*[FULL] * 7), pipeline_parallel=2).bytes_per_block == 4 * 16 * TOKEN
    assert layout(model(*[FULL] * 10), pipeline_parallel=4).bytes_per_block == 3 * 16 * TOKEN
    found = layout(model(*[SLIDING, FULL] * 3), pipeline_parallel=2)
    assert [group.layers for group in found.groups] == [2, 1]


def test_context_parallel_spreads_tokens() -> None:
    launch = Deployment(decode_context_parallel=4, tensor_parallel=8, max_model_len=4096)
    found = kv_cache.kv_layout(model(LATENT), launch)
    assert found is not None
    assert found.block_size == 4 * found.groups[0].block_size
    assert kv_cache.tokens(found, launch, 100) == 100 * 64
    assert kv_cache.bytes_per_token(found) == 576 * 2 // 4


def test_drafters_have_caches_too() -> None:
    facts = model(*[FULL] * 4, drafter=Drafter(1, Layer(FULL)))
    assert layout(facts).bytes_per_block == 4 * 16 * TOKEN
    assert layout(facts, speculation=Speculation("mtp", 1)).bytes_per_block == 5 * 16 * TOKEN
    assert layout(facts, speculation=Speculation("ngram", 3)).bytes_per_block == 4 * 16 * TOKEN
    draft = model(FULL, FULL)
    assert layout(facts, draft, speculation=Speculation("draft_model", 3)).bytes_per_block == 6 * 16 * TOKEN


def test_a_request_needs_a_block_more_since_the_pool_keeps_one() -> None:
    launch = Deployment(max_model_len=1000)
    found = kv_cache.kv_layout(model(FULL), launch)
    assert found is not None
    assert kv_cache.bytes_needed(found, launch, 1000) == (63 + 1) * found.bytes_per_block
    assert kv_cache.bytes_needed(found, launch, 1000, requests=3) == (3 * 63 + 1) * found.bytes_per_block
    assert kv_cache.bytes_needed(found, replace(launch, vllm=(0, 28)), 1000) == 63 * found.bytes_per_block


def test_layers_of_a_latent_model_with_a_window_fall_back_to_keeping_all() -> None:
    odd = replace(SLIDING, kv_heads=3)
    found = layout(model(LATENT, odd))
    assert [group.kind for group in found.groups] == ["mla"]
    assert found.bytes_per_block == 16 * (576 * 2 + 3 * 2 * 128 * 2)


MODELS = {
    "dense": model(*[FULL] * 4),
    "sliding": model(*[SLIDING] * 5, FULL),
    "chunked": model(*[CHUNKED] * 3, FULL),
    "hybrid": model(*[DELTA] * 3, FULL),
    "states": model(MAMBA2, MAMBA2),
    "latent": model(LATENT, LATENT),
}


@given(
    name=st.sampled_from(sorted(MODELS)),
    limit=st.integers(1, 300_000),
    available=st.integers(0, 2**34),
    more=st.integers(0, 2**34),
    batched=st.integers(1, 20_000),
)
def test_longest_context_is_the_longest_that_fits(
    name: str, limit: int, available: int, more: int, batched: int
) -> None:
    launch = Deployment(max_num_batched_tokens=batched)
    found = kv_cache.kv_layout(MODELS[name], launch)
    assert found is not None
    longest = kv_cache.longest_context(found, launch, available, limit)
    assert 0 <= longest <= limit
    if longest:
        assert kv_cache.bytes_needed(found, launch, longest) <= available
    if longest < limit:
        assert kv_cache.bytes_needed(found, launch, longest + 1) > available
    assert kv_cache.longest_context(found, launch, available + more, limit) >= longest
    assert kv_cache.blocks(found, available + more) >= kv_cache.blocks(found, available)
