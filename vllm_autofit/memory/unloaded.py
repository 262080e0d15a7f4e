"""Tensors that a checkpoint holds and the class that vLLM makes of it doesn't load: another model's, adapters.

Read in vLLM 0.32 (``model_executor/models``): what a class's ``hf_to_vllm_mapper`` maps to None, and layers that it
doesn't make. What no class loads (attention masks, rotary tables) is told in ``sharding``, by the names alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_autofit.architecture import ModelFacts, Tensor

TALKER = ("talker.", "token2wav.", "code2wav.")
TOWERS = ("embed_audio.", "embed_vision.", "audio_tower.", "vision_tower.")

BEGINNINGS: dict[str, tuple[str, ...]] = {
    "Qwen2_5OmniModel": TALKER,
    "Qwen2_5OmniForConditionalGeneration": TALKER,
    "Qwen3OmniMoeForConditionalGeneration": TALKER,
    "MiniCPMO": ("tts",),
    "MiniCPMV": ("apm.", "audio", "tts"),
    "WhisperForConditionalGeneration": ("proj_out.",),
}
"""Of names, by architecture. vLLM runs the Omni models' thinker alone; what talks is another stage of vLLM-Omni's."""

PARTS: dict[str, tuple[str, ...]] = {
    "Gemma3nForCausalLM": TOWERS,
    "Gemma4ForCausalLM": TOWERS,
    "Phi3VForCausalLM": ("img_processor.vision_model.encoder.layers.23.",),
    "Phi4MMForCausalLM": ("lora", "img_processor.encoder.layers.26.", "img_processor.head."),
}
"""Of names, by architecture. Phi's image encoders (24 and 27 layers) hand over the output of the last but one
(``layer_idx`` -2), so that the last isn't made."""


def loaded(facts: ModelFacts, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Those of a checkpoint's ``tensors`` that vLLM loads."""
    beginnings = BEGINNINGS.get(facts.architecture, ())
    parts = (*PARTS.get(facts.architecture, ()), *_unread_layers(facts))
    return tuple(
        tensor
        for tensor in tensors
        if not tensor.name.startswith(beginnings) and not any(part in tensor.name for part in parts)
    )


def _unread_layers(facts: ModelFacts) -> list[str]:
    """Parts of their names, in published checkpoints and where the tensors were worked out from a config."""
    unread = [
        number
        for tower in facts.towers
        for number in range(tower.layers - tower.unread_layers, tower.layers)
        if tower.modality == "image"
    ]
    return [f"encoder.layers.{number}." for number in unread] + ["visual.unread."] * bool(unread)
