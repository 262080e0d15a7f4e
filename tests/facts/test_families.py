"""What published configs say, family by family. The totals are the ones that the models' publishers state."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked
from vllm_autofit.architecture import Attention, Dense, Experts, ModelFacts, Quantization, State
from vllm_autofit.facts.config import load_config, model_facts
from vllm_autofit.memory.checkpoint import tensors_from_facts

QWEN35_TEXT: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "attn_output_gate": True,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_value_head_dim": 128,
    "mamba_ssm_dtype": "float32",
    "max_position_embeddings": 262144,
    "mtp_num_hidden_layers": 1,
    "num_attention_heads": 24,
    "num_hidden_layers": 64,
    "num_key_value_heads": 4,
    "rope_parameters": {"mrope_section": [11, 11, 10], "rope_type": "default", "partial_rotary_factor": 0.25},
    "vocab_size": 248320,
}
QWEN35 = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": QWEN35_TEXT,
    "tie_word_embeddings": False,
    "vision_config": {
        "deepstack_visual_indexes": [],
        "depth": 27,
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 5120,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
GEMMA3 = {  # leaves out vocabulary, context and the layers' pattern, as published
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "mm_tokens_per_image": 256,
    "text_config": {
        "model_type": "gemma3_text",
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
QWEN25_VL = {  # of the older form, with the text part's fields at the top
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
JAMBA = {
    "architectures": ["JambaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 65536,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": 256,
}
NEMOTRON = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 128,
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 1856,
    "mamba_head_dim": 64,
    "mamba_num_heads": 64,
    "mamba_ssm_cache_dtype": "float32",
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_groups": 8,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 52,
    "num_key_value_heads": 2,
    "ssm_state_size": 128,
    "tie_word_embeddings": False,
    "use_conv_bias": True,
    "vocab_size": 131072,
}
DEEPSEEK = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": {"factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"},
    "tie_word_embeddings": False,
    "v_head_dim": 128,
    "vocab_size": 129280,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn"], "quant_method": "mxfp4"},
    "rope_scaling": {"factor": 32.0, "original_max_position_embeddings": 4096, "rope_type": "yarn"},
    "sliding_window": 128,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}
PHI = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"long_factor": [1.0], "short_factor": [1.0], "type": "longrope"},
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
LLAMA4 = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "model_type": "llama4",
    "text_config": {
        "attention_chunk_size": 8192,
        "head_dim": 128,
        "hidden_size": 5120,
        "interleave_moe_layer_step": 1,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "max_position_embeddings": 10485760,
        "model_type": "llama4_text",
        "no_rope_layers": [],
        "num_attention_heads": 40,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "vocab_size": 202048,
    },
}
GEMMA4 = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "enable_moe_block": False,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_size": 5376,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 21504,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
        "max_position_embeddings": 262144,
        "num_attention_heads": 32,
        "num_experts": None,
        "num_global_key_value_heads": 4,
        "num_hidden_layers": 60,
        "num_key_value_heads": 16,
        "num_kv_shared_layers": 0,
        "sliding_window": 1024,
        "tie_word_embeddings": True,
        "vocab_size": 262144,
    },
    "vision_config": None,
}


def _attention(facts: ModelFacts, number: int = 0) -> Attention:
    mixer = facts.layers[number].mixer
    assert isinstance(mixer, Attention)
    return mixer


def _weights(facts: ModelFacts) -> int:
    """Numbers in the checkpoint, drafters included."""
    return sum(prod(tensor.shape) * tensor.count for tensor in tensors_from_facts(replace(facts, quantization=None)))


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (GEMMA3, 27_432_406_640),
        (QWEN25_VL, 8_292_166_656),
        (QWEN35, 27_781_427_952),
        (JAMBA, 51_570_323_328),
        (NEMOTRON, 31_577_937_344),
        (PHI, 3_821_079_552),
        (GPT_OSS, 116_829_156_672),
        (DEEPSEEK, 684_531_386_000),
    ],
    ids=["gemma3-27b", "qwen2.5-vl-7b", "qwen3.5-27b", "jamba-mini", "nemotron-30b", "phi3.5", "gpt-oss", "r1"],
)
def test_the_weights_of_published_models_add_up(config: dict[str, Any], published: int) -> None:
    # Published counts take in quantisation scales (DeepSeek), and drop a bias of a few thousand (Nemotron).
    assert _weights(model_facts(config)) == pytest.approx(published, rel=1e-4)


def test_qwen35_mixes_delta_nets_and_gated_attention() -> None:
    facts = model_facts(QWEN35)
    kinds = ["attention" if isinstance(layer.mixer, Attention) else "state" for layer in facts.layers]
    assert kinds == (["state"] * 3 + ["attention"]) * 16
    state = facts.layers[0].mixer
    assert state == State(
        "gated_delta_net", 48, 128, 16, 128, inner_size=48 * 128, conv_kernel=4, state_dtype="float32"
    )
    assert _attention(facts, 3).output_gate
    assert (facts.context_tokens, facts.rotary_size) == (262144, 64)
    assert facts.drafter is not None
    assert facts.drafter.layers == 1


def test_qwen35_without_lists_follows_its_interval() -> None:
    text = {name: value for name, value in QWEN35_TEXT.items() if name != "layer_types"}
    assert model_facts({**QWEN35, "text_config": text}).layers == model_facts(QWEN35).layers


def test_gemma3s_left_out_fields_are_its_classs() -> None:
    facts = model_facts(GEMMA3)
    assert (facts.vocabulary, facts.context_tokens, facts.tied_embeddings) == (262208, 131072, True)
    assert [_attention(facts, number).window for number in range(7)] == [1024] * 5 + [None, 1024]
    assert facts.notes == ("the config leaves out vocab_size: taken from the defaults of gemma3_text",)
    (tower,) = facts.towers
    assert (tower.parameters, tower.tokens_per_item, tower.merge) == (423_060_336, 256, 4)


LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "text_config": {**PHI, "model_type": "llama"},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}


@pytest.mark.parametrize(
    ("said", "unread"), [({}, 1), ({"vision_feature_layer": -1}, 0), ({"vision_feature_layer": [-4, 7, 22]}, 2)]
)
def test_llava_reads_its_image_encoder_up_to_a_layer(said: dict[str, Any], unread: int) -> None:
    (tower,) = model_facts({**LLAVA, **said}).towers
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 1024 + 4096 + 4 * 1024
    assert (tower.layers, tower.unread_layers, tower.unread_parameters) == (24, unread, unread * layer)


def test_qwen2_ignores_a_window_that_isnt_in_use() -> None:
    assert {_attention(model_facts(QWEN25_VL), number).window for number in range(28)} == {None}
    every = model_facts({**QWEN25_VL, "use_sliding_window": True, "max_window_layers": 0})
    assert {_attention(every, number).window for number in range(28)} == {32768}


def test_jamba_has_attention_and_experts_in_turn() -> None:
    layers = model_facts(JAMBA).layers
    assert [number for number, layer in enumerate(layers) if isinstance(layer.mixer, Attention)] == [4, 12, 20, 28]
    assert [isinstance(layer.ffn, Experts) for layer in layers] == [False, True] * 16


def test_nemotron_h_has_one_block_a_layer() -> None:
    layers = model_facts(NEMOTRON).layers
    assert len(layers) == 52
    assert sum(isinstance(layer.mixer, State) for layer in layers) == 23
    assert sum(isinstance(layer.mixer, Attention) for layer in layers) == 6
    assert sum(isinstance(layer.ffn, Experts) for layer in layers) == 23
    assert all((layer.mixer is None) != (layer.ffn is None) for layer in layers)


def test_transformers_words_for_nemotron_hs_letters_mean_the_same() -> None:
    words = {"M": "linear_attention", "*": "full_attention", "E": "moe", "-": "mlp"}
    spelled = {name: value for name, value in NEMOTRON.items() if name != "hybrid_override_pattern"}
    spelled["layers_block_type"] = [words[letter] for letter in str(NEMOTRON["hybrid_override_pattern"])]
    assert model_facts(spelled).layers == model_facts(NEMOTRON).layers


def test_deepseek_caches_one_vector_a_token() -> None:
    facts = model_facts(DEEPSEEK)
    mixer = _attention(facts)
    assert mixer.latent is not None
    assert (mixer.latent.kv_rank, mixer.latent.rope_head_size, mixer.kv_heads) == (512, 64, 1)
    assert [type(layer.ffn) for layer in facts.layers[:4]] == [Dense, Dense, Dense, Experts]
    assert facts.context_tokens == 163840
    assert facts.quantization == Quantization("fp8", weight_bits=8, scale_bits=32, block=(128, 128))


def test_glm_52_shares_indexers_between_layers() -> None:
    config = {
        **DEEPSEEK,
        "architectures": ["GlmMoeDsaForCausalLM"],
        "model_type": "glm_moe_dsa",
        "index_n_heads": 32,
        "index_head_dim": 128,
        "index_topk_freq": 4,
        "index_skip_topk_offset": 3,
    }
    latents = [_attention(model_facts(config), number).latent for number in range(11)]
    indexed = [number for number, latent in enumerate(latents) if latent is not None and latent.index_heads]
    assert indexed == [0, 1, 2, 6, 10]


def test_gpt_oss_slides_in_every_second_layer_and_quantises_experts_only() -> None:
    facts = model_facts(GPT_OSS)
    assert [_attention(facts, number).window for number in range(4)] == [128, None, 128, None]
    assert _attention(facts).sinks
    assert facts.quantization is not None
    assert (facts.quantization.weight_bits, facts.quantization.group_size) == (4, 32)
    assert facts.quantization.experts_only


def test_phi3_takes_the_original_context_of_longrope() -> None:
    assert model_facts(PHI).context_tokens == 4096


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 8192),
        ({"type": "linear", "factor": 4.0}, 32768),
        ({"rope_type": "dynamic", "factor": 2.5}, 20480),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 8192),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, 8192),
        ({"rope_type": "linear", "factor": None}, 8192),
    ],
)
def test_rotary_scaling_lengthens_the_context_as_vllm_has_it(scaling: object, context: int) -> None:
    config = {**QWEN25_VL, "max_position_embeddings": 8192, "rope_scaling": scaling}
    assert model_facts(config).context_tokens == context


def test_llama4_sees_chunks_but_in_every_fourth_layer() -> None:
    facts = model_facts(LLAMA4)
    assert [_attention(facts, number).chunk for number in range(5)] == [8192, 8192, 8192, None, 8192]
    experts = facts.layers[0].ffn
    assert isinstance(experts, Experts)
    assert (experts.count, experts.width, experts.shared_width) == (16, 8192, 8192)
    assert any("aren't counted" in note for note in facts.notes)


def test_gemma4s_full_layers_have_heads_of_their_own() -> None:
    facts = model_facts(GEMMA4)
    sliding, full = _attention(facts, 0), _attention(facts, 5)
    assert (sliding.head_size, sliding.kv_heads, sliding.window, sliding.value_is_key) == (256, 16, 1024, False)
    assert (full.head_size, full.kv_heads, full.window, full.value_is_key) == (512, 4, None, True)
    assert facts.towers == ()


def test_gemma4s_last_layers_read_the_last_cache_of_their_kind() -> None:
    text = GEMMA4["text_config"]
    assert isinstance(text, dict)
    facts = model_facts({**GEMMA4, "text_config": {**text, "num_kv_shared_layers": 12}})
    assert [_attention(facts, number).shares_kv_with for number in (46, 47, 48, 53, 59)] == [None, None, 46, 47, 47]


def test_encoders_keep_no_cache_and_pool() -> None:
    bert = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6}
    facts = model_facts({**bert, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522})
    assert {_attention(facts, number).role for number in range(6)} == {"encoder"}
    assert (facts.runner, facts.learned_positions, facts.rotary_size) == ("pooling", 512, 0)
    assert _weights(facts) == 22_565_376  # all-MiniLM-L6-v2 without its pooler of 147,840


@pytest.mark.parametrize(
    ("architecture", "runner", "labels"),
    [
        ("Qwen3ForCausalLM", "generate", 0),
        ("Qwen3Model", "pooling", 0),
        ("Qwen3ForSequenceClassification", "pooling", 3),
    ],
)
def test_decoders_that_pool_keep_their_cache(architecture: str, runner: str, labels: int) -> None:
    config = {**PHI, "model_type": "qwen3", "architectures": [architecture], "id2label": {"0": "a", "1": "b", "2": "c"}}
    facts = model_facts(config)
    assert (facts.runner, facts.labels, _attention(facts).role) == (runner, labels, "decoder")
    assert _attention(model_facts({**config, "is_causal": False})).role == "encoder"


def test_whisper_reads_its_encoder() -> None:
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "d_model": 1280,
        "encoder_layers": 32,
        "decoder_layers": 32,
        "encoder_attention_heads": 20,
        "decoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "decoder_ffn_dim": 5120,
        "num_mel_bins": 128,
        "vocab_size": 51866,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }
    facts = model_facts(config)
    assert (len(facts.layers), len(facts.encoder_layers), facts.encoder_tokens) == (32, 32, 1500)
    assert facts.layers[0].also is not None
    assert facts.layers[0].also.role == "cross"
    assert (facts.context_tokens, facts.learned_positions) == (448, 448)
    assert _weights(facts) == pytest.approx(1_543_490_560, rel=1e-4)  # large-v3; its keys have no bias


def test_nemotron_nas_leaves_blocks_out() -> None:
    blocks = [
        {"attention": {"n_heads_in_group": 8}, "ffn": {"ffn_mult": 5.25}},
        {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.3125}},
        {"attention": {"n_heads_in_group": 16}, "ffn": {"no_op": True}},
    ]
    config = {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": "nemotron-nas",
        "hidden_size": 8192,
        "num_attention_heads": 64,
        "num_hidden_layers": 3,
        "vocab_size": 128256,
        "block_configs": blocks,
    }
    first, second, third = model_facts(config).layers
    assert isinstance(first.mixer, Attention)
    assert isinstance(third.mixer, Attention)
    assert (first.mixer.kv_heads, third.mixer.kv_heads) == (8, 4)
    assert (first.ffn, second.ffn, third.ffn) == (Dense(28672), Dense(7168), None)
    assert second.mixer is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
            Quantization("awq", 4, 128, zero_points=True),
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Quantization("gptq", 8, None, zero_points=True)),
        ({"quant_method": "fp8"}, Quantization("fp8", 8, scale_bits=32)),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            Quantization("bitsandbytes", 4, 64, scale_bits=8),
        ),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization("bitsandbytes", 8, scale_bits=32)),
        (
            {"producer": {"name": "modelopt"}, "quant_algo": "NVFP4", "ignore": ["lm_head"], "kv_cache_scheme": "FP8"},
            Quantization("modelopt_fp4", 4, 16, scale_bits=8, ignored=("lm_head",), kv_cache_dtype="fp8"),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": False},
                    },
                    "group_1": {
                        "targets": ["re:.*down_proj"],
                        "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                    },
                },
                "ignore": ["lm_head"],
                "kv_cache_scheme": {"num_bits": 8, "type": "float"},
            },
            Quantization(
                "compressed-tensors",
                4,
                32,
                zero_points=True,
                ignored=("lm_head",),
                overrides=((("re:.*down_proj",), Quantization("compressed-tensors", 8, -1)),),
                kv_cache_dtype="fp8",
            ),
        ),
    ],
    ids=["awq", "gptq", "fp8", "bnb4", "bnb8", "nvfp4", "compressed"],
)
def test_quantisation_is_read_as_vllm_reads_it(said: dict[str, object], expected: Quantization) -> None:
    assert model_facts({**PHI, "quantization_config": said}).quantization == expected


def test_modelopts_mixtures_and_gptqs_exceptions_are_kept_apart() -> None:
    layers = {"a.q_proj": {"quant_algo": "FP8"}, "a.experts": {"quant_algo": "NVFP4", "group_size": 16}}
    mixed = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers},
    }
    stored = model_facts({**PHI, "_hf_quant_config": mixed}).quantization
    assert stored is not None
    assert [(names, one.weight_bits) for names, one in stored.overrides] == [(("a.q_proj",), 8), (("a.experts",), 4)]
    dynamic = {"-:.*gate.*": {}, "+:.*down.*": {"bits": 8, "group_size": 32}}
    gptq = model_facts({**PHI, "quantization_config": {"quant_method": "gptq", "bits": 4, "dynamic": dynamic}})
    assert gptq.quantization is not None
    assert gptq.quantization.ignored == ("re:.*gate.*",)
    assert [(names, one.weight_bits) for names, one in gptq.quantization.overrides] == [(("re:.*down.*",), 8)]


def test_a_quantisation_that_isnt_known_is_said_to_be_so() -> None:
    facts = model_facts({**PHI, "quantization_config": {"quant_method": "novel"}})
    assert facts.notes == ("the quantisation 'novel' isn't understood: counted as not quantised",)


@pytest.mark.vllm
def test_the_defaults_are_those_of_the_installed_config_classes(forked: Forked) -> None:
    def collected() -> dict[str, dict[str, Any]]:
        from dev.config_defaults import collect

        return collect()

    from dev.config_defaults import OUTPUT

    assert json.loads(OUTPUT.read_text())["defaults"] == forked(collected)


COMPARED = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "phi3": "Phi3ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "jamba": "JambaForCausalLM",
    "falcon": "FalconForCausalLM",
    "mamba": "MambaForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "opt": "OPTForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "cohere2": "Cohere2ForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "whisper": "WhisperForConditionalGeneration",
    "bert": "BertModel",
    "modernbert": "ModernBertModel",
}


NEED_TORCHVISION = {"gemma3", "llama4", "qwen2_vl", "qwen3_5"}
"""Whose classes vLLM imports torchvision for, unless it remembers them from an earlier import."""


def _summary(facts: ModelFacts) -> dict[str, object]:
    """What vLLM's ModelConfig says of a model too."""
    mixers = [layer.mixer for layer in facts.layers if isinstance(layer.mixer, Attention)]
    states = [layer for layer in facts.layers if isinstance(layer.mixer, State) or layer.parallel]
    first = mixers[0] if mixers else None
    latent = first.latent if first is not None else None
    head_size = 0 if first is None else first.head_size
    return {
        "layers": len(facts.layers),
        "heads": first.heads if first is not None else 0,
        # vLLM names the config's KV heads for latent attention too, though it caches one vector
        "kv_heads": None if latent is not None else first.kv_heads if first is not None else 0,
        "head_size": latent.kv_rank + latent.rope_head_size if latent is not None else head_size,
        "context": facts.context_tokens or 2048,
        "vocabulary": facts.vocabulary,
        "hidden_size": facts.hidden_size,
        "hybrid": bool(mixers and states),
        "attention_free": not mixers,
        "runner": facts.runner,
        "encoder_decoder": bool(facts.encoder_layers),
    }


@pytest.mark.vllm
@pytest.mark.parametrize("model_type", COMPARED)
def test_vllm_derives_the_same_from_its_config(
    model_type: str, forked: Forked, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model_type in NEED_TORCHVISION and find_spec("torchvision") is None:
        pytest.skip("vLLM's vision models need torchvision")
    monkeypatch.setenv("VLLM_PLUGINS", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def both() -> tuple[dict[str, object], list[dict[str, object]]]:
        from transformers import CONFIG_MAPPING
        from vllm.config import ModelConfig
        from vllm.model_executor.models import registry

        # Else a process of its own imports each model class.
        registry._run_in_subprocess = lambda function: function()
        with tempfile.TemporaryDirectory() as folder:
            said = {
                **CONFIG_MAPPING[model_type]().to_dict(),
                "architectures": [COMPARED[model_type]],
                "dtype": "bfloat16",
            }
            (Path(folder) / "config.json").write_text(json.dumps(said))
            theirs = ModelConfig(model=folder, tokenizer=folder, skip_tokenizer_init=True)
            ours = [model_facts(load_config(folder)), model_facts(theirs.hf_config.to_dict())]
        expected: dict[str, object] = {
            "layers": theirs.model_arch_config.total_num_hidden_layers,
            "heads": theirs.model_arch_config.total_num_attention_heads,
            "kv_heads": None if theirs.use_mla else theirs.get_total_num_kv_heads(),
            "head_size": theirs.get_head_size(),
            "context": theirs.max_model_len,
            "vocabulary": theirs.get_vocab_size(),
            "hidden_size": theirs.get_hidden_size(),
            "hybrid": theirs.is_hybrid,
            "attention_free": theirs.is_attention_free,
            "runner": theirs.runner_type,
            "encoder_decoder": theirs.is_encoder_decoder,
        }
        return expected, [_summary(facts) for facts in ours]

    expected, (from_file, from_object) = forked(both)
    assert from_file == expected
    assert from_object == expected


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("model_type", "loader"),
    [
        ("qwen2_moe", "AutoModelForCausalLM"),
        ("gemma3n_text", "AutoModelForCausalLM"),
        ("gemma4_text", "AutoModelForCausalLM"),
        ("falcon_h1", "AutoModelForCausalLM"),
        ("zamba2", "AutoModelForCausalLM"),
        ("granitemoehybrid", "AutoModelForCausalLM"),
        ("minimax_m2", "AutoModelForCausalLM"),
        ("opt", "AutoModelForCausalLM"),
        ("qwen2_vl", "AutoModelForImageTextToText"),
        ("qwen3_vl", "AutoModelForImageTextToText"),
        ("llama4", "AutoModelForImageTextToText"),
        ("mllama", "AutoModelForImageTextToText"),
        ("glm4v", "AutoModelForImageTextToText"),
        ("llava", "AutoModelForImageTextToText"),
        ("internvl", "AutoModelForImageTextToText"),
        ("mistral3", "AutoModelForImageTextToText"),
    ],
)
def test_transformers_builds_as_many_weights(model_type: str, loader: str, forked: Forked) -> None:
    def both() -> tuple[tuple[int, int], tuple[int, int]]:
        import torch
        import transformers

        config = transformers.CONFIG_MAPPING[model_type]()
        # Where only the whole's default says tied, published checkpoints bring a head, and we count one.
        tied = [getattr(one, "tie_word_embeddings", True) for one in (config, config.get_text_config())]
        config.tie_word_embeddings = all(tied)
        with torch.device("meta"):
            model = getattr(transformers, loader).from_config(config)
        sizes = {name: one.numel() for name, one in model.named_parameters()}
        facts = model_facts({**config.to_dict(), "architectures": [type(model).__name__]})
        beside = sum(size for name, size in sizes.items() if "language_model." not in name and "lm_head" not in name)
        ours = _weights(replace(facts, drafter=None)), sum(tower.parameters or 0 for tower in facts.towers)
        return ours, (sum(sizes.values()), beside if facts.towers else 0)

    (ours, our_towers), (theirs, their_towers) = forked(both)
    assert ours == pytest.approx(theirs, rel=2e-4)
    assert our_towers == pytest.approx(their_towers, rel=1e-3)
