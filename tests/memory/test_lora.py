"""Buffers for LoRA adapters: against what real vLLM made, and each rule by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_autofit.architecture import Attention, Dense, Experts, Layer, ModelFacts, State
from vllm_autofit.deployment import Deployment
from vllm_autofit.facts.config import model_facts
from vllm_autofit.memory.lora import stage_adapters

MODELS = json.loads((Path(__file__).parent.parent / "data" / "vllm_0_32.json").read_text())["models"]
ADAPTERS, RANK = 2, 8
EACH = ADAPTERS * RANK * 2
"""Bytes for one input of an A or one output of a B: so many numbers of 16 bits."""

ATTENTION = Layer(Attention(8, 2, 16, 16), Dense(256))
SIZES = (128 + 128) + 2 * (128 + 32) + (128 + 128) + 3 * (128 + 256)
"""Inputs and outputs of that layer's matrices at a hidden size of 128."""


def on_stages(facts: ModelFacts, **changes: Any) -> list[int]:
    deployment = Deployment(**{"device": "cpu", "lora_adapters": ADAPTERS, "lora_rank": RANK, **changes})
    return [sum(sizes) for sizes in stage_adapters(facts, deployment)]


def a_model(model_type: str, *layers: Layer, **changes: Any) -> ModelFacts:
    return ModelFacts("", model_type, 128, 1000, layers or (ATTENTION,), **changes)


@pytest.mark.parametrize(
    ("name", "took"),
    [
        ("llama", 375_488),
        ("llama_awq", 408_256),
        ("llama_fp8", 408_256),
        ("mistral", 327_680),
        ("llama4_text", 1_233_712),
        ("qwen2", 363_520),
        ("qwen3", 507_904),
        ("qwen3_moe", 971_748),
        ("qwen3_next", 870_448),
        ("qwen3_5_text", 519_424),
        ("qwen3_embedding", 289_728),
        ("qwen2_5_vl", 215_040),
        ("qwen3_vl", 414_080),
        ("mixtral", 782_564),
        ("deepseek_v2", 1_098_340),
        ("deepseek_v3", 983_576),
        ("gpt_oss", 606_768),
        ("gemma2", 344_064),
        ("gemma3", 516_096),
        ("phi3", 323_456),
        ("opt", 215_040),
        ("glm4", 282_624),
        ("glm4_moe", 478_616),
        ("granite", 402_368),
        ("granite_hybrid", 1_073_992),
        ("jamba", 894_884),
        ("falcon_h1", 700_928),
        ("nemotron_h", 451_072),
        ("lfm2", 474_912),
        ("cohere", 337_472),
        ("olmo2", 317_888),
        ("bert", 233_472),
    ],
)
def test_is_what_vllm_made(name: str, took: int) -> None:
    """vLLM 0.32.0 on the CPU with ``enable_lora, max_loras=2, max_lora_rank=8``: all tensors of LoRA's layers."""
    assert on_stages(model_facts(MODELS[name]["config"])) == [took]


@pytest.mark.parametrize(
    ("name", "expert_parallel", "took"),
    [
        ("llama", False, 286_912),
        ("qwen3_moe", False, 760_804),
        ("qwen3_moe", True, 576_484),
        ("granite_hybrid", False, 781_128),
        ("jamba", False, 631_716),
        ("nemotron_h", False, 345_728),
        ("lfm2", False, 356_128),
    ],
)
def test_is_what_vllm_made_on_each_of_two_ranks(name: str, expert_parallel: bool, took: int) -> None:
    facts = model_facts(MODELS[name]["config"])
    assert on_stages(facts, tensor_parallel=2, expert_parallel=expert_parallel) == [took]


def test_nothing_without_lora() -> None:
    assert on_stages(a_model("llama"), lora_adapters=0, pipeline_parallel=2) == [0, 0]


def test_grows_with_adapters_rank_and_the_size_of_a_number() -> None:
    (small,) = on_stages(a_model("qwen2"))
    assert small == SIZES * EACH
    for change in ({"lora_adapters": 2 * ADAPTERS}, {"lora_rank": 2 * RANK}, {"dtype": "float32"}):
        assert on_stages(a_model("qwen2"), **change) == [2 * small]


@pytest.mark.parametrize(
    ("model_type", "architecture", "tables", "fused"),
    [
        ("llama", "LlamaForCausalLM", 2, 0),
        ("qwen3_vl_text", "Qwen3VLForConditionalGeneration", 2, 0),
        ("cohere2", "Cohere2ForCausalLM", 1, 0),
        ("olmo2", "Olmo2ForCausalLM", 1, 0),
        ("phimoe", "PhiMoEForCausalLM", 2, 0),
        ("phimoe", "PhimoeForCausalLM", 1, 0),
        ("gpt_neox", "GPTNeoXForCausalLM", 0, 2),
        ("qwen2", "Qwen2ForCausalLM", 0, 0),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_embedding_and_head_where_the_class_names_them(
    model_type: str, architecture: str, tables: int, fused: int, tied: bool
) -> None:
    """``fused``: how many A fewer, each of 128 inputs, because queries, keys and values have one together."""
    facts = ModelFacts(architecture, model_type, 128, 1000, (ATTENTION,), tied_embeddings=tied)
    assert on_stages(facts) == [(SIZES - fused * 128 + tables * (1000 + 128)) * EACH]


def test_a_pooling_model_has_no_head() -> None:
    assert on_stages(a_model("llama", runner="pooling")) == [(SIZES + 1000 + 128) * EACH]


def test_tables_are_whole_on_every_rank_and_logits_are_put_in_order() -> None:
    layer = (128 + 64) + 2 * (128 + 16) + (64 + 128) + 2 * (128 + 128) + (128 + 128)
    order = 8 * 1024
    assert on_stages(a_model("llama"), tensor_parallel=2) == [(layer + 2 * (1000 + 128)) * EACH + order]


@pytest.mark.parametrize(
    ("model_type", "tied", "tables"),
    [
        ("llama", False, [1, 1]),
        ("llama", True, [1, 2]),
        ("qwen3_moe", False, [2, 2]),
    ],
)
def test_stages_hold_the_layers_and_tables_that_vllm_puts_there(model_type: str, tied: bool, tables: list[int]) -> None:
    facts = a_model(model_type, *[ATTENTION] * 4, tied_embeddings=tied)
    expected = [(2 * SIZES + count * (1000 + 128)) * EACH for count in tables]
    assert on_stages(facts, pipeline_parallel=2) == expected


@pytest.mark.parametrize(("model_type", "pairs"), [("qwen2_moe", 2), ("gpt_oss", 1)])
def test_gate_and_up_projection_of_experts_in_one_pair_or_two(model_type: str, pairs: int) -> None:
    facts = a_model(model_type, Layer(None, Experts(4, 2, 64)))
    router, flags = 128 + 4, 4 * (ADAPTERS + 1)
    assert on_stages(facts) == [(4 * (pairs * 128 + 2 * 64 + 64 + 128) + router) * EACH + flags]


def test_the_router_of_experts_that_are_not_gated_has_none() -> None:
    facts = a_model("nemotron_h", Layer(None, Experts(4, 2, 64, gated=False)))
    tables = 2 * (1000 + 128)
    assert on_stages(facts) == [(4 * (128 + 64 + 64 + 128) + tables) * EACH + 4 * (ADAPTERS + 1)]


@pytest.mark.parametrize(("ranks", "parts_in", "parts_conv"), [(1, 5, 3), (2, 5, 3), (4, 1, 1)])
def test_mamba2_has_a_pair_for_each_part_unless_ranks_share_a_group(ranks: int, parts_in: int, parts_conv: int) -> None:
    state = State("mamba2", heads=8, head_size=32, state_size=16, groups=2, inner_size=256, conv_kernel=4)
    convolved = 256 + 2 * 2 * 16
    if ranks == 4:  # B and C of both groups stay whole
        kept = 256 // 4 + 2 * 2 * 16
        outputs_in, outputs_conv = (256 + 256 + 8) // 4 + 2 * 2 * 16, kept
    else:
        outputs_in, outputs_conv = (256 + convolved + 8) // ranks, convolved // ranks
    numbers = parts_in * 128 + outputs_in + parts_conv * 4 + outputs_conv + 256 // ranks + 128
    assert on_stages(a_model("bamba", Layer(state, None)), tensor_parallel=ranks) == [numbers * EACH]


def test_how_the_checkpoint_is_stored_does_not_matter() -> None:
    plain, awq = (model_facts(MODELS[name]["config"]) for name in ("llama_fp8", "llama_awq"))
    assert (plain.quantization, awq.quantization) != (None, None)
    assert on_stages(plain) == on_stages(awq)
