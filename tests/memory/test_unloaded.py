"""What a checkpoint holds and vLLM doesn't load: against vLLM's own mappers, and in the sum."""

from __future__ import annotations

import importlib
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from vllm_autofit.architecture import Attention, Dense, Layer, ModelFacts, Tensor, Tower
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.estimate import Estimator
from vllm_autofit.memory.unloaded import BEGINNINGS, PARTS, loaded
from vllm_autofit.values import Model

LAYER = Layer(Attention(heads=8, kv_heads=2, head_size=16, value_head_size=16), Dense(256))


def model(architecture: str) -> ModelFacts:
    return ModelFacts(architecture, "a", hidden_size=128, vocabulary=1000, layers=(LAYER,))


def tensors(*names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, (64, 64), "BF16", 2 * 64 * 64) for name in names)


@pytest.mark.parametrize(
    ("architecture", "stay", "go"),
    [
        (
            "Qwen3OmniMoeForConditionalGeneration",
            ("thinker.model.layers.0.mlp.gate.weight", "thinker.audio_tower.proj1.weight"),
            (
                "talker.model.layers.0.mlp.gate.weight",
                "talker.code_predictor.lm_head.0.weight",
                "code2wav.decoder.0.conv.weight",
            ),
        ),
        (
            "Qwen2_5OmniModel",
            ("thinker.lm_head.weight",),
            ("talker.model.embed_tokens.weight", "token2wav.code2wav_bigvgan_model.conv_pre.weight"),
        ),
        ("MiniCPMO", ("llm.lm_head.weight", "apm.conv1.weight"), ("tts.emb_text.weight",)),
        ("MiniCPMV", ("llm.lm_head.weight", "vpm.encoder.layers.0.mlp.fc1.weight"), ("apm.conv1.weight",)),
        ("WhisperForConditionalGeneration", ("model.decoder.embed_tokens.weight",), ("proj_out.weight",)),
        (
            "Gemma4ForCausalLM",
            ("model.language_model.layers.0.mlp.up_proj.weight",),
            ("model.vision_tower.patch_embedder.input_proj.weight",),
        ),
        (
            "Phi4MMForCausalLM",
            (
                "model.layers.0.mlp.down_proj.base_layer.weight",
                "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.25.mlp.fc1.weight",
            ),
            (
                "model.layers.0.mlp.down_proj.lora_A.vision.weight",
                "model.embed_tokens_extend.image_embed.img_processor.encoder.layers.26.mlp.fc1.weight",
                "model.embed_tokens_extend.image_embed.img_processor.head.mlp.fc1.weight",
            ),
        ),
        (
            "Phi3VForCausalLM",
            ("model.vision_embed_tokens.img_processor.vision_model.encoder.layers.22.mlp.fc1.weight",),
            ("model.vision_embed_tokens.img_processor.vision_model.encoder.layers.23.mlp.fc1.weight",),
        ),
        ("LlamaForCausalLM", ("talker.model.embed_tokens.weight", "tts.lora.weight"), ()),
    ],
)
def test_what_a_class_leaves_out(architecture: str, stay: tuple[str, ...], go: tuple[str, ...]) -> None:
    left = loaded(model(architecture), tensors(*stay, *go))
    assert tuple(tensor.name for tensor in left) == stay


def test_the_last_layers_of_an_image_encoder_are_not_made_where_an_earlier_one_is_read() -> None:
    tower = Tower("image", 24, 8, 16, 2, 128, parameters=1000, unread_layers=2, unread_parameters=100)
    facts = replace(model("LlavaForConditionalGeneration"), towers=(tower,))
    stay = (
        "language_model.model.layers.23.mlp.up_proj.weight",
        "vision_tower.vision_model.encoder.layers.21.mlp.fc1.weight",
    )
    go = tuple(f"vision_tower.vision_model.encoder.layers.{number}.mlp.fc1.weight" for number in (22, 23))
    assert loaded(facts, tensors(*stay, *go)) == tensors(*stay)
    assert sum(tensor.shape[0] for tensor in loaded(facts, tensors_from_facts(facts)) if "visual" in tensor.name) == 900


def test_what_is_not_loaded_is_not_in_the_sum() -> None:
    thinker = tensors("thinker.model.layers.0.self_attn.q_proj.weight")
    talker = tensors("talker.model.layers.0.self_attn.q_proj.weight", "talker.model.layers.7.mlp.up_proj.weight")
    facts = model("Qwen3OmniMoeForConditionalGeneration")

    def weights(held: tuple[Tensor, ...]) -> int:
        found = Estimator(Model("omni", facts, tensors=held)).demand(Deployment(device="cpu", max_model_len=128))
        return found.weights.bytes

    assert weights((*thinker, *talker)) == weights(thinker)


HOMES = {
    "Qwen2_5OmniModel": "qwen2_5_omni_thinker.Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration": "qwen2_5_omni_thinker.Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "qwen3_omni_moe_thinker.Qwen3OmniMoeThinkerForConditionalGeneration",
    "MiniCPMO": "minicpmo.MiniCPMOBaseModel",
    "MiniCPMV": "minicpmv.MiniCPMV2_6",
    "WhisperForConditionalGeneration": "whisper.WhisperForConditionalGeneration",
    "Gemma3nForCausalLM": "gemma3n.Gemma3nForCausalLM",
    "Gemma4ForCausalLM": "gemma4.Gemma4ForCausalLM",
    "Phi4MMForCausalLM": "phi4mm.Phi4MMForCausalLM",
}
"""Where vLLM 0.32 has the mapper."""


@pytest.mark.vllm
@pytest.mark.parametrize("architecture", HOMES)
def test_vllm_drops_the_same(architecture: str, forked: Any) -> None:
    if "Omni" in architecture and find_spec("torchvision") is None:
        pytest.skip("vLLM's Omni models need torchvision")

    def dropped() -> list[str]:
        module, _, name = HOMES[architecture].partition(".")
        mapper = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name).hf_to_vllm_mapper
        renames = {**mapper.orig_to_new_prefix, **mapper.orig_to_new_substr}
        return [one for one, other in renames.items() if other is None]

    ours = (*BEGINNINGS.get(architecture, ()), *(part for part in PARTS.get(architecture, ()) if "img" not in part))
    found: list[str] = forked(dropped)
    assert set(found) <= set(ours)
    assert set(ours) - set(found) <= {"token2wav.", "code2wav."}
