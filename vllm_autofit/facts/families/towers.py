"""Encoders for images, video and sound beside a language model."""

from __future__ import annotations

from vllm_autofit.architecture import Tower
from vllm_autofit.facts.families import audio, vision
from vllm_autofit.facts.families.attention import hidden_size
from vllm_autofit.facts.families.counting import Encoder
from vllm_autofit.facts.families.encoders import encoder_decoder, mllama
from vllm_autofit.facts.families.fields import Fields
from vllm_autofit.facts.families.parts import Parts, defaults

VISION_PARTS = ("vision_config", "vision_model", "visual")
AUDIO_PARTS = ("audio_config", "encoder_config", "audio_encoder_config", "speech_config")

TOWER_TYPES = {
    "qwen2_vl": "qwen2_vl_vision",
    "qwen2_5_vl": "qwen2_5_vl_vision",
    "qwen2_5_omni": "qwen2_5_omni_vision_encoder",
    "qwen3_vl": "qwen3_vl_vision",
    "qwen3_vl_moe": "qwen3_vl_moe_vision",
    "qwen3_5": "qwen3_5_vision",
    "qwen3_5_moe": "qwen3_5_vision",
    "qwen3_omni_moe": "qwen3_omni_moe_vision_encoder",
    "llava": "clip_vision_model",
    "gemma3": "siglip_vision_model",
    "paligemma": "siglip_vision_model",
    "idefics3": "idefics3_vision",
    "smolvlm": "smolvlm_vision",
    "mistral3": "pixtral",
    "pixtral": "pixtral",
    "llama4": "llama4_vision_model",
    "mllama": "mllama_vision_model",
    "internvl": "internvl_vision",
    "gemma4": "gemma4_vision",
    "glm4v": "glm4v_vision",
    "glm4v_moe": "glm4v_moe_vision",
    "kimi_k25": "kimi_k25_vision",
    "minimax_m3_vl": "minimax_m3_vl_vision",
    "lfm2_vl": "siglip2_vision_model",
}
"""Whose defaults a vision part has, by the ``model_type`` of the whole, where it names no other type."""

AUDIO_TYPES = {
    "qwen2_audio": "qwen2_audio_encoder",
    "qwen2_5_omni": "qwen2_5_omni_audio_encoder",
    "qwen3_omni_moe": "qwen3_omni_moe_audio_encoder",
    "voxtral": "voxtral_encoder",
    "gemma3n": "gemma3n_audio",
    "gemma4": "gemma4_audio",
}


def towers(parts: Parts) -> tuple[tuple[Tower, ...], tuple[str, ...]]:
    """The encoders of a multimodal model, and notes on what is only roughly known of them.

    Raises:
        ConfigError: a size in a vision or audio part is absurd.
    """
    if parts.wrapper is None:
        return (), ()
    kind = parts.wrapper.model_types[0]
    width = hidden_size(parts.text)
    found, notes = [], []
    seen = _part(parts, VISION_PARTS, TOWER_TYPES.get(kind))
    if seen is not None:
        reader = vision.BY_VISION_TYPE.get(seen.text("model_type")) or vision.READERS.get(kind, vision.generic)
        found.append(reader(Encoder(seen, _named(parts.host, kind), width)))
        if reader is vision.generic:
            notes.append(f"the image encoder of {parts.architecture} is counted as a common vision transformer")
    heard = _part(parts, AUDIO_PARTS, AUDIO_TYPES.get(kind))
    if heard is not None:
        listener = audio.READERS.get(kind, audio.generic)
        found.append(listener(Encoder(heard, parts.host, width)))
        if listener is audio.generic:
            notes.append(f"the audio encoder of {parts.architecture} is counted as a common conformer")
    if not found and not parts.host.says("vision_config") and "vision_config" not in parts.host.given:
        notes.append(f"{parts.architecture} has encoders that this config doesn't describe: they aren't counted")
    return tuple(found), tuple(notes)


def _part(parts: Parts, names: tuple[str, ...], usual_type: str | None) -> Fields | None:
    """A vision or audio part with its defaults."""
    for holder in (parts.host, parts.whole):
        part = holder.part(*names)
        if part is not None:
            said = part.text("model_type")
            filled = defaults(said) or defaults(usual_type or "")
            return Fields(part.given, filled, part.where)
    return None


def _named(host: Fields, kind: str) -> Fields:
    """What holds the vision part, with its kind filled in where it lacks a name."""
    return Fields(host.given, {**defaults(kind), **host.filled, "model_type": kind}, host.where)


def encoder_tokens(parts: Parts, built: tuple[Tower, ...]) -> int:
    """What cross-attention keeps at most: of an encoder-decoder's input, or of an image (Llama 3.2 Vision)."""
    if parts.family.layers is encoder_decoder:
        return parts.text.size("max_source_positions", "max_position_embeddings")
    if parts.family.layers is mllama:
        return max((tower.tokens_per_item or 0 for tower in built), default=0)
    return 0
