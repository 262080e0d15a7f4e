"""What drafts, by hand from vLLM's EAGLE and its prediction layers; ``tests/e2e`` holds it against vLLM itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vllm_autofit.architecture import Attention, Dense, Drafter, Layer, ModelFacts, Tensor
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.drafts import draft_weights
from vllm_autofit.memory.estimate import loaded_weights
from vllm_autofit.values import Model

LAYER = Layer(Attention(heads=4, kv_heads=2, head_size=16, value_head_size=16), Dense(96))
SCALES = 16
"""Four float32 scales of an attention layer."""
TABLE = 512 * 16 * 2
"""Rotations of 512 positions for heads of 16, in 16 bits."""


def facts(**changes: Any) -> ModelFacts:
    fields: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "hidden_size": 64,
        "vocabulary": 1024,
        "layers": (LAYER,),
        "rotary_size": 16,
        "raw": {"max_position_embeddings": 512},
    }
    return ModelFacts(**{**fields, **changes})


def tensor(name: str, *shape: int, dtype: str = "BF16") -> Tensor:
    size = {"BF16": 2, "I64": 8, "BOOL": 1}[dtype]
    for each in shape:
        size *= each
    return Tensor(name, shape, dtype, size)


def drafted(method: str, *tensors: Tensor, target: ModelFacts | None = None, **changes: Any) -> int:
    """Bytes of a draft that has these tensors; changes are the deployment's, or ``draft``: the draft's facts."""
    draft = Model("draft", changes.pop("draft", facts()), tensors=tensors, weights_source="folder", exact=True)
    model = Model("model", target or facts(), exact=True, draft=draft)
    launch = {"device": "cpu", "max_model_len": 512, "speculation": Speculation(method, 3, "draft"), **changes}
    found = draft_weights(model, Deployment(**launch))
    assert found is not None
    return found.bytes


def only(one: Tensor, method: str = "eagle3", **changes: Any) -> int:
    """Of one tensor."""
    return drafted(method, one, **changes) - drafted(method, **changes)


def test_a_model_that_drafts_has_everything_of_its_own() -> None:
    table = tensor("model.embed_tokens.weight", 1024, 64)
    assert only(table, "draft_model") == table.bytes
    assert drafted("draft_model", draft=facts(rotary_size=8)) == SCALES + TABLE // 2


def test_two_models_share_equal_rotary_tables() -> None:
    assert drafted("draft_model") == SCALES
    other = facts(raw={"max_position_embeddings": 512, "rope_theta": 5e5})
    assert drafted("draft_model", draft=other) == SCALES + TABLE


def test_eagle_has_the_models_embedding_and_head() -> None:
    table = tensor("embed_tokens.weight", 1024, 64)
    assert only(table, "eagle") == only(table, "eagle3") == only(tensor("lm_head.weight", 1024, 64), "eagle") == 0
    wider = facts(hidden_size=128)
    assert drafted("eagle", table, target=wider) - drafted("eagle", table) == table.bytes
    assert drafted("eagle3") + table.bytes == drafted("eagle3", pipeline_parallel=2)


def test_eagle_3_has_a_head_for_the_words_it_drafts() -> None:
    head = tensor("lm_head.weight", 320, 64)
    assert only(head) == head.bytes
    assert only(head, tensor_parallel=2) == head.bytes // 2
    assert only(tensor("d2t", 320, dtype="I64"), tensor_parallel=2) == 8 * 320
    assert only(tensor("t2d", 1024, dtype="BOOL")) == 0


@pytest.mark.parametrize(
    ("name", "shape", "at_four"),
    [
        ("midlayer.self_attn.q_proj.weight", (64, 128), 16 * 128),
        ("midlayer.self_attn.k_proj.weight", (32, 128), 16 * 128),  # two KV heads on four ranks: one each
        ("midlayer.self_attn.o_proj.weight", (64, 64), 64 * 16),
        ("midlayer.hidden_norm.weight", (64,), 64),
        ("layers.0.mlp.gate_proj.weight", (96, 64), 24 * 64),
        ("fc.weight", (64, 192), 64 * 192),
    ],
)
def test_what_a_rank_has_of_eagle(name: str, shape: tuple[int, ...], at_four: int) -> None:
    whole = tensor(name, *shape)
    assert only(whole) == whole.bytes
    assert only(whole, tensor_parallel=4) == 2 * at_four


def test_the_first_norm_of_eagle_is_not_made() -> None:
    assert only(tensor("layers.0.input_layernorm.weight", 64), "eagle") == 0
    two = facts(layers=(LAYER, LAYER))
    assert only(tensor("layers.1.input_layernorm.weight", 64), "eagle", draft=two) == 128
    assert only(tensor("midlayer.input_layernorm.weight", 64), "eagle3") == 128


def test_eagle_gets_as_many_positions_as_the_model() -> None:
    short = facts(raw={"max_position_embeddings": 128})
    target = facts(rotary_size=8)
    assert drafted("eagle", draft=short, target=target) == SCALES + TABLE
    assert drafted("draft_model", draft=short, target=target) == SCALES + TABLE // 4


def test_what_changes_the_model_leaves_a_draft_as_it_is() -> None:
    matrix = tensor("layers.0.mlp.gate_proj.weight", 96, 64)
    changes: list[dict[str, Any]] = [
        {"quantization": "fp8"},
        {"pipeline_parallel": 1, "lora_adapters": 2},
        {"device": "rocm", "cpu_offload_bytes": 2**20},
    ]
    for change in changes:
        assert only(matrix, "draft_model", **change) == matrix.bytes


@pytest.mark.parametrize(
    ("method", "raw", "fusion", "more"),
    [
        ("eagle", {}, 64 * 128, -64 - 64),  # without the first norm and the last
        ("eagle3", {"draft_vocab_size": 320}, 64 * 192, 128 * 64 + 64 + 320 * 64 + 4 * 320),
        ("eagle3", {"eagle_aux_hidden_state_layer_ids": [1, 2]}, 64 * 128, 128 * 64 + 64 + 1024 * 64),
    ],
)
def test_a_config_alone_tells_what_eagle_has(method: str, raw: dict[str, object], fusion: int, more: int) -> None:
    own = facts(raw={"max_position_embeddings": 512, **raw})
    made = Model("draft", own, tensors=tensors_from_facts(own), weights_source="config")
    found = draft_weights(Model("model", facts(), draft=made), launch(method))
    layer = 64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 96 + 2 * 64
    assert found is not None
    assert found.bytes == SCALES + 2 * (layer + 64 + fusion + more)


def launch(method: str, **changes: Any) -> Deployment:
    return Deployment(device="cpu", max_model_len=512, speculation=Speculation(method, 3), **changes)


def test_prediction_layers_have_scales_and_one_projection_on_every_rank() -> None:
    join = tensor("model.layers.1.eh_proj.weight", 64, 128)
    model = Model("model", facts(drafter=Drafter(1, LAYER)), tensors=(join,), exact=True)
    for ranks in (1, 2):
        found = draft_weights(model, launch("mtp", tensor_parallel=ranks))
        assert found is not None
        assert found.bytes == join.bytes + SCALES


def test_without_weights_of_its_own_a_way_of_drafting_takes_none() -> None:
    model = Model("model", facts(drafter=Drafter(1, LAYER)), tensors=(tensor("mtp.fc.weight", 64, 128),), exact=True)
    assert draft_weights(model, launch("ngram")) is None
    assert draft_weights(model, replace(launch("mtp"), speculation=None)) is None
    assert loaded_weights(model, launch("ngram")) == loaded_weights(model, replace(launch("mtp"), speculation=None))
