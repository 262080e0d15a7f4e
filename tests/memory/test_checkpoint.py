"""The tensors of a checkpoint from its config: against transformers' own classes, and against published totals."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from vllm_autofit.architecture import (
    Attention,
    Dense,
    Drafter,
    Experts,
    LatentAttention,
    Layer,
    ModelFacts,
    Quantization,
    State,
    Tensor,
    Tower,
)
from vllm_autofit.facts.config import model_facts
from vllm_autofit.memory.checkpoint import tensors_from_facts

Shapes = Counter[tuple[int, ...]]


def elements(tensors: tuple[Tensor, ...]) -> int:
    return sum(math.prod(tensor.shape) * tensor.count for tensor in tensors)


def named(tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
    found = {tensor.name: tensor for tensor in tensors}
    assert len(found) == len(tensors), "a name came twice"
    return found


SMALL = ModelFacts(
    architecture="LlamaForCausalLM",
    model_type="llama",
    hidden_size=64,
    vocabulary=1000,
    layers=(Layer(Attention(heads=4, kv_heads=2, head_size=24, value_head_size=24), Dense(160)),) * 2,
)


def test_names_are_those_of_hugging_face() -> None:
    layer = [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.up_proj.weight",
        "mlp.down_proj.weight",
    ]
    tensors = tensors_from_facts(SMALL)
    assert [tensor.name for tensor in tensors] == [
        "model.embed_tokens.weight",
        *(f"model.layers.{index}.{name}" for index in range(2) for name in layer),
        "model.norm.weight",
        "lm_head.weight",
    ]
    assert named(tensors)["model.layers.1.self_attn.k_proj.weight"] == Tensor(
        "model.layers.1.self_attn.k_proj.weight", (48, 64), "BF16", 48 * 64 * 2
    )


def test_tied_embeddings_have_no_head() -> None:
    assert "lm_head.weight" not in named(tensors_from_facts(replace(SMALL, tied_embeddings=True)))


def test_a_reranker_has_a_score_and_no_head() -> None:
    tensors = named(tensors_from_facts(replace(SMALL, runner="pooling", labels=3)))
    assert tensors["score.weight"].shape == (3, 64)
    assert "lm_head.weight" not in tensors


def test_what_is_outside_of_the_layers() -> None:
    tower = Tower("image", layers=2, hidden_size=8, width=16, heads=2, output_size=64, parameters=12_345)
    unknown = replace(tower, modality="audio", parameters=None)
    facts = replace(SMALL, towers=(tower, unknown), learned_positions=77, extra_parameters=99)
    tensors = named(tensors_from_facts(facts))
    assert tensors["visual.image"].bytes == 24_690
    assert "visual.audio" not in tensors
    assert tensors["model.embed_positions.weight"].shape == (77, 64)
    assert tensors["model.extra"].shape == (99,)


def test_layers_of_a_tower_that_are_not_made_stand_apart() -> None:
    tower = Tower("image", 2, 8, 16, 2, 64, parameters=12_345, unread_layers=1, unread_parameters=345)
    tensors = named(tensors_from_facts(replace(SMALL, towers=(tower,))))
    assert (tensors["visual.image"].shape, tensors["visual.unread.image"].shape) == ((12_000,), (345,))


def test_experts_stand_together() -> None:
    layer = replace(SMALL.layers[0], ffn=Experts(count=300, per_token=8, width=40, shared_width=48, shared_gate=True))
    tensors = named(tensors_from_facts(replace(SMALL, layers=(layer,))))
    expert = tensors["model.layers.0.mlp.experts.0.down_proj.weight"]
    assert (expert.shape, expert.count) == ((64, 40), 300)
    assert tensors["model.layers.0.mlp.shared_experts.up_proj.weight"].shape == (48, 64)
    assert tensors["model.layers.0.mlp.shared_expert_gate.weight"].shape == (1, 64)
    assert tensors["model.layers.0.mlp.gate.weight"].shape == (300, 64)


def test_experts_may_work_in_another_width() -> None:
    layer = replace(SMALL.layers[0], ffn=Experts(count=3, per_token=2, width=40, latent_size=32, gated=False))
    tensors = named(tensors_from_facts(replace(SMALL, layers=(layer,))))
    assert tensors["model.layers.0.mlp.experts.0.up_proj.weight"].shape == (40, 32)
    assert tensors["model.layers.0.mlp.fc1_latent_proj.weight"].shape == (32, 64)


def test_experts_beside_a_dense_block_are_not_within_it() -> None:
    """Gemma 4's quantised checkpoints name ``mlp`` among the exceptions and mean the dense block alone."""
    scheme = Quantization("modelopt_fp4", weight_bits=4, group_size=16, scale_bits=8, ignored=("*.layers.0.mlp*",))
    layer = replace(SMALL.layers[0], ffn=Experts(count=3, per_token=2, width=48), extra_ffn=Dense(160))
    tensors = named(tensors_from_facts(replace(SMALL, layers=(layer,), quantization=scheme)))
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype == "BF16"
    assert tensors["model.layers.0.experts.0.up_proj.weight_packed"].count == 3


def test_the_last_norm_may_have_a_bias_or_be_missing() -> None:
    def vectors(number: int) -> list[str]:
        tensors = tensors_from_facts(replace(SMALL, final_norms=number))
        return [tensor.name for tensor in tensors if tensor.name.startswith("model.norm")]

    assert vectors(0) == []
    assert vectors(2) == ["model.norm.weight", "model.norm.bias"]


def test_a_layer_that_reads_anothers_cache_has_no_keys() -> None:
    sharing = replace(SMALL.layers[0], mixer=replace(_attention(), shares_kv_with=0, query_key_norm=True))
    tensors = named(tensors_from_facts(replace(SMALL, layers=(SMALL.layers[0], sharing))))
    assert not [name for name in tensors if name.startswith("model.layers.1.self_attn.k")]
    assert "model.layers.1.self_attn.q_norm.weight" in tensors


def test_a_layer_that_borrows_weights_keeps_its_own_state() -> None:
    state = State("short_conv", inner_size=64, conv_kernel=3)
    borrowing = replace(SMALL.layers[0], parallel=state, shares_weights_with=0)
    tensors = named(tensors_from_facts(replace(SMALL, layers=(SMALL.layers[0], borrowing))))
    assert {name.split(".")[3] for name in tensors if name.startswith("model.layers.1.")} == {"conv"}


def test_prediction_layers_of_deepseek_bring_embedding_and_head() -> None:
    drafter = Drafter(1, SMALL.layers[0])
    facts = replace(SMALL, model_type="deepseek_v3", drafter=drafter, raw={"num_nextn_predict_layers": 1})
    tensors = named(tensors_from_facts(facts))
    assert tensors["model.layers.2.eh_proj.weight"].shape == (64, 128)
    assert tensors["model.layers.2.shared_head.head.weight"].shape == (1000, 64)
    assert "model.layers.2.self_attn.q_proj.weight" in tensors


def test_prediction_layers_of_glm_5_share_them() -> None:
    drafter = Drafter(2, SMALL.layers[0])
    facts = replace(SMALL, model_type="glm_moe_dsa", drafter=drafter, raw={"num_nextn_predict_layers": 2})
    tensors = named(tensors_from_facts(facts))
    assert tensors["model.layers.3.shared_head.norm.weight"].shape == (64,)
    assert "model.layers.3.shared_head.head.weight" not in tensors


def test_prediction_layers_of_qwen_share_them() -> None:
    tensors = named(tensors_from_facts(replace(SMALL, drafter=Drafter(1, SMALL.layers[0]))))
    assert tensors["mtp.fc.weight"].shape == (64, 128)
    assert "mtp.layers.0.mlp.down_proj.weight" in tensors
    assert not [name for name in tensors if name.startswith("mtp") and "embed_tokens" in name]


# Quantised checkpoints


def test_embeddings_head_and_router_stay_as_they_are() -> None:
    layer = replace(SMALL.layers[0], ffn=Experts(count=4, per_token=2, width=128))
    scheme = Quantization("awq", weight_bits=4, group_size=32, zero_points=True)
    tensors = named(tensors_from_facts(replace(SMALL, layers=(layer,), quantization=scheme)))
    plain = {name for name, tensor in tensors.items() if name.endswith(".weight") and len(tensor.shape) == 2}
    assert plain == {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight"}


def test_ignored_modules_stay_as_they_are() -> None:
    scheme = Quantization("fp8", weight_bits=8, ignored=("model.layers.0.mlp", "re:.*k_proj"))
    tensors = named(tensors_from_facts(replace(SMALL, quantization=scheme)))
    plain = [name for name in tensors if name.endswith("_proj.weight") and tensors[name].dtype == "BF16"]
    assert sorted(name[13:-7] for name in plain) == [
        "0.mlp.down_proj",
        "0.mlp.gate_proj",
        "0.mlp.up_proj",
        "0.self_attn.k_proj",
        "1.self_attn.k_proj",
    ]


def test_mixed_precision() -> None:
    eight = Quantization("modelopt", weight_bits=8)
    scheme = Quantization(
        "modelopt_fp4", weight_bits=4, group_size=16, scale_bits=8, overrides=((("*.self_attn*", "lm_head"), eight),)
    )
    tensors = named(tensors_from_facts(replace(SMALL, quantization=scheme)))
    assert tensors["model.layers.1.self_attn.q_proj.weight"].dtype == "F8_E4M3"
    assert tensors["model.layers.1.mlp.up_proj.weight_packed"].shape == (160, 32)
    assert tensors["lm_head.weight"].dtype == "F8_E4M3"
    assert tensors["model.embed_tokens.weight"].dtype == "BF16"


def test_gguf_quantises_embeddings_too() -> None:
    tensors = named(tensors_from_facts(replace(SMALL, quantization=Quantization("gguf", weight_bits=8.5))))
    assert tensors["model.embed_tokens.qweight"].bytes == 68_000


def test_only_experts() -> None:
    layer = replace(SMALL.layers[0], ffn=Experts(count=4, per_token=2, width=96, bias=True))
    scheme = Quantization("mxfp4", weight_bits=4, group_size=32, scale_bits=8, experts_only=True)
    tensors = named(tensors_from_facts(replace(SMALL, layers=(layer,), quantization=scheme)))
    assert tensors["model.layers.0.mlp.experts.0.up_proj.weight_packed"].bytes == 96 * 32
    assert tensors["model.layers.0.mlp.experts.0.up_proj.weight_scale"].bytes == 96 * 2
    assert tensors["model.layers.0.mlp.experts.0.up_proj.bias"].shape == (96,)
    assert tensors["model.layers.0.self_attn.q_proj.weight"].dtype == "BF16"


# transformers' classes, on the meta device: sizes that are all different, so that no mix-up can hide

SIZES = {
    "vocab_size": 2018,
    "hidden_size": 160,
    "intermediate_size": 416,
    "num_hidden_layers": 4,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 513,
    "pad_token_id": 0,
}
OLD_SIZES = {"vocab_size": 2018, "n_embd": 160, "n_layer": 3, "n_head": 10, "n_positions": 513}
LATENT = {"q_lora_rank": 36, "kv_lora_rank": 28, "qk_nope_head_dim": 14, "qk_rope_head_dim": 6, "v_head_dim": 18}
MIXTURE = {"n_routed_experts": 6, "moe_intermediate_size": 72, "n_shared_experts": 2, "first_k_dense_replace": 1}
GROUPS = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
INDEXER = {"index_n_heads": 3, "index_head_dim": 22, "index_topk": 8}
DELTA = {
    "linear_num_value_heads": 6,
    "linear_num_key_heads": 3,
    "linear_key_head_dim": 20,
    "linear_value_head_dim": 26,
}
QWEN_MIXTURE = {"num_experts": 6, "moe_intermediate_size": 72, "shared_expert_intermediate_size": 88}
MAMBA2 = {
    "mamba_n_heads": 16,
    "mamba_d_head": 20,
    "mamba_d_state": 26,
    "mamba_n_groups": 2,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
}
ALTERNATING = {"num_hidden_layers": 6, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * 2}
GEMMA4_HEADS = {"global_head_dim": 44, "num_global_key_value_heads": 1}
MAMBA_TYPES = {"layer_types": ["mamba", "attention", "mamba", "mamba"]}


def sized(*without: str, **others: Any) -> dict[str, Any]:
    return {name: value for name, value in SIZES.items() if name not in without} | others


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", sized()),
    "bamba": ("bamba", sized("head_dim", attn_layer_indices=[1], **MAMBA2)),
    "cohere": ("cohere", sized("head_dim", use_qk_norm=True)),
    "cohere2": ("cohere2", sized()),
    "deepseek_v2": ("deepseek_v2", sized("head_dim", **LATENT, **MIXTURE, **GROUPS)),
    "deepseek_v3": ("deepseek_v3", sized("head_dim", **LATENT, **MIXTURE, **GROUPS)),
    "deepseek_v32": ("deepseek_v32", sized("head_dim", **LATENT, **MIXTURE, **GROUPS, **INDEXER)),
    "dots1": ("dots1", sized(**MIXTURE, **GROUPS)),
    "ernie4_5": ("ernie4_5", sized()),
    "exaone4": ("exaone4", sized()),
    "falcon": (
        "falcon",
        sized(
            "head_dim",
            "num_key_value_heads",
            "intermediate_size",
            num_kv_heads=2,
            bias=False,
            new_decoder_architecture=True,
        ),
    ),
    "falcon_h1": ("falcon_h1", sized(**MAMBA2 | {"mamba_d_head": 22, "mamba_d_ssm": 352})),
    "falcon_mamba": ("falcon_mamba", sized("head_dim", state_size=12, time_step_rank=11, intermediate_size=320)),
    "gemma": ("gemma", sized()),
    "gemma2": ("gemma2", sized()),
    "gemma3": ("gemma3_text", sized()),
    "gemma3n": (
        "gemma3n_text",
        sized(
            **ALTERNATING | {"intermediate_size": [416] * 6, "activation_sparsity_pattern": [0.0] * 6},
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=20,
            vocab_size_per_layer_input=1501,
            laurel_rank=11,
        ),
    ),
    "gemma4": (
        "gemma4_text",
        sized(
            **ALTERNATING,
            **GEMMA4_HEADS,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=20,
            vocab_size_per_layer_input=1501,
        ),
    ),
    "gemma4 mixture": (
        "gemma4_text",
        sized(
            **ALTERNATING,
            **GEMMA4_HEADS,
            num_kv_shared_layers=0,
            hidden_size_per_layer_input=0,
            attention_k_eq_v=True,
            enable_moe_block=True,
            num_experts=6,
            top_k_experts=2,
            moe_intermediate_size=72,
        ),
    ),
    "glm": ("glm", sized()),
    "glm4": ("glm4", sized()),
    "glm4_moe": ("glm4_moe", sized(**MIXTURE, use_qk_norm=True)),
    "glm_moe_dsa": ("glm_moe_dsa", sized("head_dim", **LATENT, **MIXTURE, **GROUPS, **INDEXER)),
    "gpt2": ("gpt2", OLD_SIZES),
    "gpt_bigcode": ("gpt_bigcode", OLD_SIZES),
    "gpt_neox": ("gpt_neox", sized("head_dim", "num_key_value_heads")),
    "gpt_oss": ("gpt_oss", sized(num_local_experts=6)),
    "granite": ("granite", sized("head_dim")),
    "granitemoe": ("granitemoe", sized("head_dim", num_local_experts=6)),
    "granitemoehybrid": (
        "granitemoehybrid",
        sized("head_dim", num_local_experts=6, shared_intermediate_size=88, **MAMBA_TYPES, **MAMBA2),
    ),
    "jamba": (
        "jamba",
        sized(
            "head_dim",
            attn_layer_period=4,
            attn_layer_offset=2,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=6,
            mamba_d_state=12,
            mamba_dt_rank=11,
            use_mamba_kernels=False,
        ),
    ),
    "lfm2": ("lfm2", sized("head_dim", layer_types=["conv", "full_attention", "conv", "conv"], block_ff_dim=416)),
    "llama": ("llama", sized()),
    "llama with biases": ("llama", sized(attention_bias=True, mlp_bias=True)),
    "llama, tied": ("llama", sized(tie_word_embeddings=True)),
    "llama4": ("llama4_text", sized(intermediate_size_mlp=520, num_local_experts=6, interleave_moe_layer_step=2)),
    "mamba": ("mamba", sized("head_dim", state_size=12, time_step_rank=11, intermediate_size=320)),
    "mamba2": ("mamba2", sized(state_size=26, num_heads=16, n_groups=2, head_dim=20)),
    "minimax_m2": ("minimax_m2", sized(num_local_experts=6)),
    "ministral3": ("ministral3", sized()),
    "mistral": ("mistral", sized()),
    "mixtral": ("mixtral", sized(num_local_experts=6)),
    "nemotron": ("nemotron", sized()),
    "nemotron_h": (
        "nemotron_h",
        sized(
            layers_block_type=["mamba", "mlp", "attention", "moe"],
            mamba_num_heads=16,
            mamba_head_dim=22,
            ssm_state_size=26,
            n_groups=2,
            n_routed_experts=6,
            moe_intermediate_size=72,
            moe_shared_expert_intermediate_size=88,
            n_shared_experts=1,
        ),
    ),
    "olmo2": ("olmo2", sized("head_dim")),
    "olmoe": ("olmoe", sized("head_dim", num_experts=6)),
    "opt": ("opt", sized("head_dim", "num_key_value_heads", "intermediate_size", ffn_dim=352, word_embed_proj_dim=160)),
    "phi3": ("phi3", sized("head_dim")),
    "qwen2": ("qwen2", sized("head_dim")),
    "qwen2_moe": ("qwen2_moe", sized("head_dim", decoder_sparse_step=2, mlp_only_layers=[3], **QWEN_MIXTURE)),
    "qwen3": ("qwen3", sized()),
    "qwen3_5": ("qwen3_5_text", sized(**DELTA)),
    "qwen3_5_moe": ("qwen3_5_moe_text", sized("intermediate_size", **DELTA, **QWEN_MIXTURE)),
    "qwen3_moe": ("qwen3_moe", sized(num_experts=6, moe_intermediate_size=72, mlp_only_layers=[1])),
    "qwen3_next": ("qwen3_next", sized(**DELTA, **QWEN_MIXTURE)),
    "seed_oss": ("seed_oss", sized()),
    "smollm3": ("smollm3", sized()),
    "starcoder2": ("starcoder2", sized("head_dim")),
}

FEW_ELEMENTS_OFF = {
    "apertus": 16,  # four numbers in each activation
    "deepseek_v2": 18,  # its routers have no correction bias
    "falcon": 160,  # bias of the last norm, here and below
    "gpt2": 160,
    "gpt_bigcode": 160,
    "gpt_neox": 160,
    "nemotron": 160,
    "opt": 160,
    "starcoder2": 160,
}
"""Known differences in the small models here. In the real ones they are a few thousand elements of billions."""


@pytest.mark.parametrize("family", FAMILIES)
def test_elements_and_shapes_are_those_of_transformers(family: str) -> None:
    model_type, settings = FAMILIES[family]
    config, theirs = transformers_model(model_type, settings)
    facts = model_facts(config.to_dict() | {"architectures": [theirs.architecture]})
    ours = tensors_from_facts(replace(facts, drafter=None))  # transformers has no prediction layers
    shapes: Shapes = Counter()
    for tensor in ours:
        shapes[_plain(tensor.shape)] += tensor.count
    missing, added = theirs.shapes - shapes, shapes - theirs.shapes
    assert abs(elements(ours) - theirs.elements) <= FEW_ELEMENTS_OFF.get(family, 0), (missing, added)
    if family not in FEW_ELEMENTS_OFF and not facts.extra_parameters:
        assert (missing, added) == ({}, {})


class Theirs(NamedTuple):
    architecture: str
    elements: int
    shapes: Shapes


def transformers_model(model_type: str, settings: dict[str, Any]) -> tuple[Any, Theirs]:
    """A config of transformers' and what its class allocates for it; tied tensors once, fused ones apart."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    found |= {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name.endswith("layer_scalar")}
    buffers = {name for name, _ in model.named_buffers()}
    found |= {n: tuple(t.shape) for n, t in model.state_dict().items() if n in buffers and "correction_bias" in n}
    shapes: Shapes = Counter()
    for name, shape in found.items():
        for part, count in _apart(name, shape, config):
            shapes[_plain(part)] += count
    return config, Theirs(type(model).__name__, sum(map(math.prod, found.values())), shapes)


def _plain(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without ones, and whichever way round: some families store a matrix transposed."""
    return tuple(sorted(size for size in shape if size != 1)) or (1,)


def _apart(name: str, shape: tuple[int, ...], config: Any) -> list[tuple[tuple[int, ...], int]]:
    """Shapes and numbers of the tensors that transformers keeps fused in one."""
    if name.endswith("_norm.weight"):
        return [((math.prod(shape),), 1)]  # Cohere's norms of queries and keys are vectors by head
    routed = "experts." in name and "shared" not in name
    if routed or name.endswith(("input_linear.weight", "output_linear.weight")):
        return _expert_parts(name, shape)
    if ".gate_up_proj." in name:
        return [((shape[0] // 2, *shape[1:]), 2)]
    if any(f".{fused}." in name for fused in ("qkv_proj", "query_key_value", "c_attn")):
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        keys = {"falcon": "num_kv_heads", "gpt2": "n_head", "gpt_neox": "num_attention_heads"}.get(config.model_type)
        kv_heads = 1 if config.model_type == "gpt_bigcode" else getattr(config, keys or "num_key_value_heads")
        rest = () if name.endswith("bias") else (config.hidden_size,)
        return [((heads * size, *rest), 1), ((kv_heads * size, *rest), 2)]
    if name.endswith("in_proj_qkvz.weight"):
        values = config.linear_num_value_heads * config.linear_value_head_dim
        return [((shape[0] - values, shape[1]), 1), ((values, shape[1]), 1)]
    if name.endswith("in_proj_ba.weight"):
        return [((shape[0] // 2, shape[1]), 2)]
    return [(shape, 1)]


def _expert_parts(name: str, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
    """One tensor for all experts; gate and up projection in one. Which way round they are differs."""
    experts, *one = shape if "linear" not in name or len(shape) == 3 else (1, *shape)
    if "gate_up" not in name and "input_linear" not in name:
        return [(tuple(one), experts)]
    return [(tuple(size if size == SIZES["hidden_size"] else size // 2 for size in one), 2 * experts)]


# Published totals


def test_deepseek_r1_has_the_published_number_of_elements() -> None:
    """684,531,386,000 on the hub: fp8 in blocks with its scales, and the prediction layer with its tables."""
    latent = LatentAttention(kv_rank=512, rope_head_size=64, nope_head_size=128, query_rank=1536)
    mixer = Attention(heads=128, kv_heads=1, head_size=192, value_head_size=128, latent=latent)
    mixture = Layer(mixer, Experts(count=256, per_token=8, width=2048, shared_width=2048, router_bias=True))
    facts = ModelFacts(
        architecture="DeepseekV3ForCausalLM",
        model_type="deepseek_v3",
        hidden_size=7168,
        vocabulary=129_280,
        layers=(Layer(mixer, Dense(18_432)),) * 3 + (mixture,) * 58,
        quantization=Quantization("fp8", weight_bits=8, block=(128, 128)),
        drafter=Drafter(1, mixture),
        raw={"num_nextn_predict_layers": 1},
    )
    tensors = tensors_from_facts(facts)
    assert elements(tensors) == 684_531_386_000
    assert len(tensors) < 2_000


@pytest.mark.parametrize(("layers", "experts", "published"), [(24, 32, 21_511_953_984), (36, 128, 120_412_337_472)])
def test_gpt_oss_has_the_published_number_of_elements(layers: int, experts: int, published: int) -> None:
    """The hub counts two weights in each byte of mxfp4."""
    mixer = Attention(64, 8, 64, 64, bias=True, output_bias=True, sinks=True)
    layer = Layer(mixer, Experts(experts, per_token=4, width=2880, bias=True, router_bias=True))
    scheme = Quantization("mxfp4", weight_bits=4, group_size=32, scale_bits=8, experts_only=True)
    facts = ModelFacts("GptOssForCausalLM", "gpt_oss", 2880, 201_088, (layer,) * layers, quantization=scheme)
    tensors = tensors_from_facts(facts)
    packed = tuple(tensor for tensor in tensors if tensor.name.endswith("weight_packed"))
    assert elements(tensors) + elements(packed) == published


@pytest.mark.parametrize(
    ("scheme", "kept", "published"),
    [
        (Quantization("fp8", weight_bits=8, block=(128, 128)), {"F8_E4M3", "F32", "BF16"}, 228_703_644_928),
        (
            Quantization(
                "modelopt_fp4", weight_bits=4, group_size=16, scale_bits=8, ignored=("model.layers.*.self_attn*",)
            ),
            {"U8", "BF16"},
            116_349_510_656,
        ),
    ],
    ids=["fp8", "nvfp4"],
)
def test_minimax_m2_has_the_published_number_of_elements(scheme: Quantization, kept: set[str], published: int) -> None:
    """The total of the nvfp4 checkpoint leaves its scales and the router's 62 biases of 256 (F32) out."""
    mixer = Attention(48, 8, 128, 128, query_key_norm=True, query_key_norm_wide=True)
    layer = Layer(mixer, Experts(256, per_token=8, width=1536, router_bias=True))
    facts = ModelFacts("MiniMaxM2ForCausalLM", "minimax_m2", 3072, 200_064, (layer,) * 62, quantization=scheme)
    tensors = tensors_from_facts(facts)
    unquantised_biases = 0 if "F32" in kept else 62 * 256
    assert elements(tuple(tensor for tensor in tensors if tensor.dtype in kept)) - unquantised_biases == published


def _attention() -> Attention:
    return Attention(heads=4, kv_heads=2, head_size=24, value_head_size=24)
