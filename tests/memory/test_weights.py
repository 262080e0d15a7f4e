"""What a rank keeps of a checkpoint: by hand from vLLM's layers, and against vLLM itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_autofit.architecture import (
    Attention,
    Dense,
    Experts,
    LatentAttention,
    Layer,
    ModelFacts,
    Quantization,
    State,
    Tensor,
)
from vllm_autofit.deployment import Deployment
from vllm_autofit.facts.config import load_config, model_facts
from vllm_autofit.facts.weights import read_tensors
from vllm_autofit.memory.buffers import deepstack_bytes
from vllm_autofit.memory.sharding import stage_sizes
from vllm_autofit.memory.weights import prediction_weights, rank_weights

ROOT = Path(__file__).resolve().parents[2]
DENSE = Layer(Attention(heads=8, kv_heads=2, head_size=16, value_head_size=16), Dense(256))
SCALES = 16
"""Four float32 scales of an attention layer."""


def model(*layers: Layer, **changes: Any) -> ModelFacts:
    """Without rotary tables, so that what is left is the tensors and the attention's scales."""
    fields: dict[str, Any] = {"architecture": "A", "model_type": "a", "hidden_size": 128, "vocabulary": 1000}
    return ModelFacts(**{**fields, "layers": layers or (DENSE,), **changes})


def tensor(name: str, *shape: int, dtype: str = "BF16", count: int = 1) -> Tensor:
    size = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "I32": 4}[dtype]
    for each in shape:
        size *= each
    return Tensor(name, shape, dtype, size, count)


def kept(one: Tensor, facts: ModelFacts | None = None, **deployment: Any) -> int:
    """Bytes of one tensor on the fullest rank, where no allocator rounds them."""
    facts, launch = facts or model(), Deployment(**{"device": "cpu", **deployment})
    nothing = rank_weights(facts, (), launch, exact=True).bytes
    return rank_weights(facts, (one,), launch, exact=True).bytes - nothing


@pytest.mark.parametrize(
    ("name", "shape", "at_two", "at_four"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (128, 128), 64 * 128, 32 * 128),
        ("model.layers.0.self_attn.q_proj.bias", (128,), 64, 32),
        (
            "model.layers.0.self_attn.k_proj.weight",
            (32, 128),
            16 * 128,
            16 * 128,
        ),  # two KV heads: one each, then copies
        ("model.layers.0.self_attn.v_proj.bias", (32,), 16, 16),
        ("model.layers.0.self_attn.qkv_proj.weight", (192, 128), 96 * 128, 64 * 128),  # 4+1+1 heads, then 2+1+1
        ("model.layers.0.self_attn.o_proj.weight", (128, 128), 128 * 64, 128 * 32),
        ("model.layers.0.self_attn.o_proj.bias", (128,), 128, 128),
        ("model.layers.0.self_attn.q_norm.weight", (16,), 16, 16),
        ("model.layers.0.input_layernorm.weight", (128,), 128, 128),
        ("model.layers.0.mlp.gate_proj.weight", (256, 128), 128 * 128, 64 * 128),
        ("model.layers.0.mlp.down_proj.weight", (128, 256), 128 * 128, 128 * 64),
        ("model.layers.0.mlp.gate.weight", (4, 128), 4 * 128, 4 * 128),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 128), 128, 128),
        ("model.layers.0.self_attn.sinks", (8,), 4, 2),
        ("model.embed_tokens.weight", (1000, 128), 512 * 128, 256 * 128),  # 1000 rows are padded to 1024
        ("lm_head.weight", (1000, 128), 512 * 128, 256 * 128),
        ("model.norm.weight", (128,), 128, 128),
        ("transformer.wpe.weight", (1024, 128), 1024 * 128, 1024 * 128),
        ("transformer.h.0.attn.c_attn.weight", (128, 192), 128 * 96, 128 * 64),
        ("visual.blocks.0.attn.qkv.weight", (192, 64), 96 * 64, 48 * 64),
        ("visual.blocks.0.attn.proj.bias", (64,), 32, 16),
        ("visual.patch_embed.proj.weight", (64, 3, 2, 14, 14), 64 * 3 * 2 * 196, 64 * 3 * 2 * 196),
        ("visual.pos_embed.weight", (256, 64), 256 * 64, 256 * 64),
    ],
)
def test_tensor_parallel(name: str, shape: tuple[int, ...], at_two: int, at_four: int) -> None:
    one = tensor(name, *shape)
    if "embed" not in name and "lm_head" not in name:
        assert kept(one) == one.bytes
    assert (kept(one, tensor_parallel=2), kept(one, tensor_parallel=4)) == (2 * at_two, 2 * at_four)


LATENT = Layer(Attention(8, 8, 48, 32, latent=LatentAttention(64, 16, 32, 96)), Experts(4, 2, 64))


@pytest.mark.parametrize(
    ("name", "shape", "at_two"),
    [
        ("model.layers.0.self_attn.q_a_proj.weight", (96, 128), 96 * 128),
        ("model.layers.0.self_attn.q_b_proj.weight", (384, 96), 192 * 96),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (80, 128), 80 * 128),
        ("model.layers.0.self_attn.kv_b_proj.weight", (512, 64), 256 * 64),
        ("model.layers.0.self_attn.indexer.wq_b.weight", (256, 96), 256 * 96),
        ("model.layers.0.mlp.shared_experts.down_proj.weight", (128, 64), 128 * 32),
        ("model.layers.0.mlp.experts.3.down_proj.weight", (128, 64), 128 * 32),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 128), 4 * 64),
        ("model.layers.0.mlp.experts.down_proj_bias", (4, 128), 4 * 128),
    ],
)
def test_latent_attention_and_experts(name: str, shape: tuple[int, ...], at_two: int) -> None:
    assert kept(tensor(name, *shape), model(LATENT), tensor_parallel=2) == 2 * at_two


def test_experts_are_divided_over_all_ranks_that_share_them() -> None:
    expert = tensor("model.layers.0.mlp.experts.0.up_proj.weight", 64, 128, count=4)
    shared = tensor("model.layers.0.mlp.shared_experts.up_proj.weight", 64, 128)
    facts = model(LATENT)
    for parallel in (True, False):
        ranks = {"tensor_parallel": 2, "data_parallel": 2, "expert_parallel": parallel}
        assert kept(expert, facts, **ranks) == 2 * 64 * 128
        assert kept(shared, facts, **ranks) == 2 * 32 * 128


def test_a_single_group_of_a_mamba2_state_is_on_every_rank() -> None:
    mamba = State("mamba2", heads=8, head_size=32, state_size=16, groups=1, inner_size=256, conv_kernel=4)
    facts = model(Layer(mamba))
    projection = tensor("backbone.layers.0.mixer.in_proj.weight", 256 + 256 + 32 + 8, 128)
    assert kept(projection, facts, tensor_parallel=2) == 2 * (128 + 128 + 32 + 4) * 128
    assert kept(tensor("backbone.layers.0.mixer.conv1d.bias", 288), facts, tensor_parallel=2) == 2 * (128 + 32)
    assert kept(tensor("backbone.layers.0.mixer.A_log", 8), facts, tensor_parallel=2) == 4 * 4  # in float32
    assert kept(tensor("backbone.layers.0.mixer.D", 8), facts, tensor_parallel=2) == 2 * 4
    assert kept(tensor("backbone.layers.0.mixer.norm.weight", 256), facts, tensor_parallel=2) == 2 * 128
    assert kept(tensor("backbone.layers.0.norm.weight", 128), facts, tensor_parallel=2) == 2 * 128


@pytest.mark.parametrize(
    ("layers", "stages", "expected"),
    [(8, 2, [4, 4]), (9, 2, [5, 4]), (10, 4, [2, 3, 3, 2]), (11, 4, [3, 3, 3, 2]), (61, 8, [7, 7, 8, 8, 8, 8, 8, 7])],
)
def test_layers_of_a_pipeline(layers: int, stages: int, expected: list[int]) -> None:
    assert stage_sizes(layers, stages) == expected


@pytest.mark.parametrize(("tied", "fullest"), [(False, 64 * 2048), (True, 64 * 2048)])
def test_embeddings_and_head_are_at_the_ends_of_a_pipeline(tied: bool, fullest: int) -> None:
    facts = model(DENSE, DENSE, vocabulary=1024, tied_embeddings=tied)
    tensors = [tensor(f"model.layers.{layer}.mlp.up_proj.weight", 256, 128) for layer in (0, 1)]
    tensors += [tensor("model.embed_tokens.weight", 1024, 64), tensor("lm_head.weight", 1024, 64)]
    found = rank_weights(facts, tensors, Deployment(device="cpu", pipeline_parallel=2), exact=True)
    assert found.bytes == 2 * 256 * 128 + fullest + SCALES


def test_tied_embeddings_count_once_and_poolers_have_no_head() -> None:
    head, embedding = tensor("lm_head.weight", 1024, 64), tensor("model.embed_tokens.weight", 1024, 64)
    assert kept(head, model(tied_embeddings=True)) == 0
    assert kept(head, model(runner="pooling")) == 0
    assert kept(embedding, model(tied_embeddings=True)) == embedding.bytes


def test_prediction_layers_count_only_as_a_draft() -> None:
    facts = model(DENSE)
    inner = tensor("model.layers.1.mlp.up_proj.weight", 256, 128)
    fusion = tensor("mtp.fc.weight", 128, 256)
    shared = [
        tensor("model.layers.1.embed_tokens.weight", 1024, 64),
        tensor("model.layers.1.shared_head.head.weight", 1024, 64),
    ]
    assert kept(inner, facts) == kept(fusion, facts) == 0
    draft = prediction_weights(
        facts, [inner, fusion, *shared, tensor("lm_head.weight", 1024, 64)], Deployment(device="cpu"), exact=True
    )
    assert draft.bytes == inner.bytes + fusion.bytes


def test_towers_are_left_out_where_only_text_is_served() -> None:
    tower = tensor("vision_tower.encoder.layers.0.mlp.fc1.weight", 64, 64)
    assert kept(tower) == tower.bytes
    assert kept(tower, text_only=True) == 0


@pytest.mark.parametrize(
    ("stored", "running", "size"), [("F32", "bfloat16", 2), ("BF16", "float32", 4), ("F16", "float16", 2)]
)
def test_weights_are_kept_in_the_dtype_that_the_model_runs_in(stored: str, running: str, size: int) -> None:
    assert kept(tensor("model.norm.weight", 128, dtype=stored), dtype=running) == 128 * size


def test_a_routing_bias_stays_float32() -> None:
    assert kept(tensor("model.layers.0.mlp.gate.e_score_correction_bias", 256), model(LATENT)) == 4 * 256


def test_stored_quantisation_is_kept_as_it_is() -> None:
    fp8 = model(LATENT, quantization=Quantization("fp8", 8, block=(128, 128)))
    assert (
        kept(tensor("model.layers.0.mlp.up_proj.weight", 256, 128, dtype="F8_E4M3"), fp8, tensor_parallel=2)
        == 128 * 128
    )
    assert kept(tensor("model.layers.0.mlp.up_proj.weight_scale_inv", 2, 1, dtype="F32"), fp8) == 8
    awq = model(quantization=Quantization("awq", 4, 128, zero_points=True))
    assert (
        kept(tensor("model.layers.0.mlp.up_proj.qweight", 128, 32, dtype="I32"), awq, tensor_parallel=2) == 128 * 16 * 4
    )
    assert kept(tensor("model.layers.0.mlp.up_proj.scales", 1, 256, dtype="F16"), awq, tensor_parallel=2) == 2 * 128


def test_latent_attention_keeps_a_dequantised_copy() -> None:
    fp8 = model(LATENT, quantization=Quantization("fp8", 8, block=(128, 128)))
    assert kept(tensor("model.layers.0.self_attn.kv_b_proj.weight", 512, 64, dtype="F8_E4M3"), fp8) == 512 * 64 * (
        1 + 2
    )


def test_gptq_drops_what_its_kernels_do_not_read() -> None:
    plain = Quantization("gptq", 4, 128)
    zeros = tensor("model.layers.0.mlp.up_proj.qzeros", 1, 32, dtype="I32")
    order = tensor("model.layers.0.mlp.up_proj.g_idx", 128, dtype="I32")
    assert kept(zeros, model(quantization=plain), device="rocm") == 0
    assert kept(zeros, model(quantization=plain)) == zeros.bytes
    assert kept(order, model(quantization=plain)) == 0
    assert kept(order, model(quantization=plain, raw={"quantization_config": {"desc_act": True}})) == order.bytes


@pytest.mark.parametrize(
    ("method", "projection", "expert"),
    [
        ("fp8", 1.0, 1.0),
        ("experts_int8", 2.0, 1.0),
        ("int8_per_channel_weight_only", 2.0, 1.0),
        ("nvfp4_per_token", 2.0, 0.5 + 1 / 16),
        ("mxfp4", 0.5 + 1 / 32, 0.5 + 1 / 32),
        ("bitsandbytes", 0.5 + 4 / 64, 0.5 + 4 / 64),
    ],
)
def test_quantisation_at_load(method: str, projection: float, expert: float) -> None:
    facts = model(LATENT)
    changes = {"quantization": method}
    assert kept(tensor("model.layers.0.self_attn.o_proj.weight", 128, 256), facts, **changes) == 128 * 256 * projection
    assert kept(tensor("model.layers.0.mlp.experts.0.up_proj.weight", 64, 256), facts, **changes) == 64 * 256 * expert
    assert kept(tensor("model.layers.0.mlp.gate.weight", 4, 128), facts, **changes) == 2 * 4 * 128
    assert kept(tensor("lm_head.weight", 1024, 64), facts, **changes) == 2 * 1024 * 64


def test_layers_of_the_same_settings_share_a_rotary_table() -> None:
    sliding = Layer(Attention(8, 2, 16, 16, window=64), Dense(256))
    raw = {"max_position_embeddings": 4096, "rope_theta": 1e6}
    alike = model(DENSE, sliding, DENSE, rotary_size=16, raw=raw)
    assert rank_weights(alike, (), Deployment(device="cpu"), exact=True).bytes == 4096 * 16 * 2 + 3 * SCALES
    apart = model(DENSE, sliding, DENSE, rotary_size=16, raw={**raw, "rope_local_base_freq": 1e4})
    assert rank_weights(apart, (), Deployment(device="cpu"), exact=True).bytes == 2 * 4096 * 16 * 2 + 3 * SCALES


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}, 4096),
        ({"rope_type": "linear", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "longrope", "original_max_position_embeddings": 1024}, 5120),
        ({"rope_type": "default", "mrope_section": [2, 3, 3]}, 16384),
        ({"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True}, 4096),
        ({"type": "linear", "factor": "8"}, 4096),
    ],
)
def test_rows_of_a_rotary_table(settings: dict[str, Any], rows: int) -> None:
    facts = model(rotary_size=16, raw={"max_position_embeddings": 4096, "rope_scaling": settings})
    assert rank_weights(facts, (), Deployment(device="cpu"), exact=True).bytes == rows * 16 * 2 + SCALES


def test_tables_of_interleaved_positions_were_long_too() -> None:
    settings = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    facts = model(rotary_size=16, raw={"max_position_embeddings": 4096, "rope_scaling": settings})
    launch = Deployment(device="cpu", vllm=(0, 31))
    assert rank_weights(facts, (), launch, exact=True).bytes == 4 * 4096 * 16 * 2 + SCALES


def test_offloaded_weights_are_taken_off_but_never_more_than_there_are() -> None:
    one = [tensor("model.layers.0.mlp.up_proj.weight", 256, 128)]
    assert rank_weights(model(), one, Deployment(device="rocm", cpu_offload_bytes=65536), exact=True).bytes == SCALES
    assert rank_weights(model(), one, Deployment(device="rocm", cpu_offload_bytes=10**9), exact=True).bytes == 0


def test_offloading_to_the_host_frees_nothing_where_the_host_is_the_device() -> None:
    one = tensor("model.layers.0.mlp.up_proj.weight", 256, 128)
    assert kept(one, cpu_offload_bytes=10**9) == one.bytes


def test_only_sizes_of_the_checkpoint_itself_are_exact() -> None:
    one = [tensor("model.norm.weight", 128)]
    assert rank_weights(model(), one, Deployment(device="cpu"), exact=True).error == 0
    assert rank_weights(model(), one, Deployment(device="cpu"), exact=False).error > 0


@pytest.mark.parametrize(
    "name", ["pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "m-Q4_K.gguf", "missing files"]
)
def test_sizes_of_files_are_shared_out_once_among_all_ranks(name: str) -> None:
    files = Tensor(name, (8000,), "U8", 8000)
    assert kept(files, model(DENSE, DENSE), pipeline_parallel=2) == 4000
    assert kept(files, model(DENSE, DENSE), pipeline_parallel=2, tensor_parallel=2) == 2000


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("transformer.h.0.attn.bias", (1, 1, 64, 64)),
        ("transformer.h.0.attn.bias", (64, 64)),
        ("gpt_neox.layers.0.attention.bias", (1, 1, 64, 64)),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,)),
        ("model.layers.0.self_attn.rotary_emb.cos_cached", (1, 1, 64, 16)),
    ],
)
def test_masks_and_rotary_tables_are_not_loaded(name: str, shape: tuple[int, ...]) -> None:
    assert kept(tensor(name, *shape, dtype="F32")) == 0


def test_a_bias_is_no_mask() -> None:
    assert kept(tensor("transformer.h.0.attn.c_attn.bias", 192)) == 2 * 192
    assert kept(tensor("model.layers.0.attn.bias", 64)) == 2 * 64


def test_a_head_for_masked_words_is_not_loaded_where_nothing_is_generated() -> None:
    dense = tensor("lm_head.dense.weight", 64, 64)
    assert kept(dense, model(runner="pooling")) == 0
    assert kept(dense) == dense.bytes


@pytest.mark.parametrize("name", ["mtp_linear_proj.0.weight", "mtp_block.0.mlp.up_proj.weight"])
def test_ernies_prediction_layers_are_loaded_only_to_speculate(name: str) -> None:
    one = tensor(f"model.{name}", 64, 64)
    assert kept(one) == 0
    assert prediction_weights(model(), [one], Deployment(device="cpu"), exact=True).bytes == one.bytes


def test_a_tower_told_by_its_config_is_split_but_where_torch_makes_it() -> None:
    tower = tensor("visual.image", 8000)
    assert kept(tower, tensor_parallel=2) == 8000
    assert kept(tower, quantization="fp8") == 8000
    assert kept(tower, model(model_type="gemma4_text"), quantization="fp8") == 16000
    assert kept(tower, model(architecture="InternVLForConditionalGeneration"), tensor_parallel=2) == 16000


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("vision_tower.encoder.layer.0.attention.q_proj.weight", 1.0),
        ("multi_modal_projector.linear_1.weight", 1.0),
        ("vision_tower.encoder.layer.0.mlp.fc1.weight", 0.5),
    ],
)
def test_what_torch_makes_of_a_tower_is_not_split(name: str, share: float) -> None:
    one = tensor(name, 64, 64)
    assert kept(one, model(architecture="InternVLForConditionalGeneration"), tensor_parallel=2) == one.bytes * share
    assert kept(one, tensor_parallel=2) == one.bytes / 2


def test_scales_of_bitsandbytes_are_expanded() -> None:
    facts = model(quantization=Quantization("bitsandbytes", 4, 64, scale_bits=8))
    scales = Tensor("model.layers.0.mlp.up_proj.weight.absmax", (512,), "U8", 512)
    assert kept(scales, facts) == 4 * 512
    assert kept(tensor("model.layers.0.mlp.up_proj.weight.nested_absmax", 2, dtype="F32"), facts) == 0
    assert kept(tensor("model.layers.0.mlp.up_proj.weight.quant_map", 16, dtype="F32"), facts) == 64


def test_vision_levels_leave_room_for_a_batch() -> None:
    launch = Deployment(max_num_batched_tokens=1000)
    assert deepstack_bytes(model(architecture="Qwen3VLForConditionalGeneration"), launch) == 3 * 1000 * 128 * 2
    assert deepstack_bytes(model(architecture="Qwen3ForCausalLM"), launch) == 0
    text = Deployment(max_num_batched_tokens=1000, text_only=True)
    assert deepstack_bytes(model(architecture="Qwen3VLForConditionalGeneration"), text) == 0


def test_whisper_keeps_its_tables_whole() -> None:
    table = tensor("model.decoder.embed_tokens.weight", 1000, 128)
    assert kept(table, model(model_type="whisper"), tensor_parallel=2) == table.bytes
    filters = tensor("model.encoder.conv1.weight", 128, 80, 3)
    assert kept(filters, model(model_type="whisper"), tensor_parallel=2) == filters.bytes


def test_an_encoder_may_have_more_layers_than_the_decoder() -> None:
    one = tensor("model.encoder.layers.5.fc1.weight", 64, 64)
    assert kept(one, model(DENSE)) == one.bytes


def test_a_table_is_as_long_as_the_context_where_no_position_is_named() -> None:
    facts = model(rotary_size=16, context_tokens=1000)
    assert rank_weights(facts, (), Deployment(device="cpu"), exact=True).bytes == 1000 * 16 * 2 + SCALES


@pytest.mark.parametrize(
    "name", ["", ".", "weight", "0", "model.layers.0", "a.1.2.3.4", "model.layers.999999999.x.weight"]
)
@pytest.mark.parametrize("shape", [(), (0,), (0, 0), (1,), (3, 5), (2, 3, 5)])
def test_any_name_and_shape_has_a_size(name: str, shape: tuple[int, ...]) -> None:
    one = tensor(name, *shape)
    for facts in (model(), ModelFacts("A", "a", 1, 1, ())):
        assert 0 <= kept(one, facts, tensor_parallel=3, pipeline_parallel=2) <= 2 * one.bytes


def _loaded_bytes(folder: str) -> int:
    """What real vLLM holds once it has loaded: each storage of its parameters and buffers once."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    config = EngineArgs(model=folder, skip_tokenizer_init=True, enforce_eager=True).create_engine_config()
    with set_current_vllm_config(config), set_default_torch_dtype(config.model_config.dtype):
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1)
        loaded = initialize_model(config)
        get_model_loader(config.load_config).load_weights(loaded, config.model_config)
    storages: dict[int, int] = {}
    for each in (*loaded.parameters(), *loaded.buffers()):
        assert isinstance(each, torch.Tensor)
        storages[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["qwen2", "qwen3_moe", "deepseek_v3", "granite_hybrid"])
def test_as_vllm_loads_it(tmp_path: Path, forked: Callable[[Callable[[], int]], int], name: str) -> None:
    subprocess.run([sys.executable, "-m", "dev.architectures", name, str(tmp_path)], cwd=ROOT, check=True)
    facts, checkpoint = model_facts(load_config(str(tmp_path))), read_tensors(str(tmp_path))
    ours = rank_weights(facts, checkpoint.tensors, Deployment(device="cpu"), exact=True).bytes
    assert ours == pytest.approx(forked(lambda: _loaded_bytes(str(tmp_path))), rel=1e-3)
