"""Encoders for images, video and sound beside a language model."""

from __future__ import annotations

from collections.abc import Callable

from vllm_autofit.architecture import Tower
from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families import audio, vision
from vllm_autofit.facts.families.attention import hidden_size
from vllm_autofit.facts.families.counting import Encoder
from vllm_autofit.facts.families.encoders import encoder_decoder, mllama
from vllm_autofit.facts.families.fields import MISSING, Fields
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
    kind = parts.wrapper_type
    seen = _part(parts, VISION_PARTS, TOWER_TYPES.get(kind))
    heard = _part(parts, AUDIO_PARTS, AUDIO_TYPES.get(kind))
    found: list[Tower] = []
    notes = []
    if seen is not None:
        reader = vision.BY_VISION_TYPE.get(seen.text("model_type")) or vision.READERS.get(kind, vision.generic)
        found += _read(reader, parts, seen)
        if reader is vision.generic and found:
            notes.append(f"the image encoder of {parts.architecture} is counted as a common vision transformer")
    if heard is not None:
        listener = audio.READERS.get(kind, audio.generic)
        sound = _read(listener, parts, heard)
        found += sound
        if listener is audio.generic and sound:
            notes.append(f"the sound encoder of {parts.architecture} is counted as a common conformer")
    described = sum(part is not None for part in (seen, heard))
    switched_off = "vision_config" in parts.host.given and parts.host.given["vision_config"] is None
    if len(found) < described or not (described or switched_off):
        notes.append(f"{parts.architecture} has encoders that this config doesn't describe: they aren't counted")
    return tuple(found), tuple(notes)


def _read(reader: Callable[[Encoder], Tower], parts: Parts, part: Fields) -> list[Tower]:
    """One tower, or none where the part lacks a size: a description of another kind, such as Gemma 3n's MobileNet."""
    host = Fields(parts.host.given, {**defaults(parts.wrapper_type), **parts.host.filled}, parts.host.where)
    try:
        return [reader(Encoder(part, host, hidden_size(parts.text), parts.wrapper_type))]
    except ConfigError as error:
        if error.reason != MISSING:
            raise
        return []


def _part(parts: Parts, names: tuple[str, ...], usual_type: str | None) -> Fields | None:
    """A vision or audio part with its defaults."""
    for holder in (parts.host, parts.whole):
        part = holder.part(*names)
        if part is not None:
            said = part.text("model_type")
            filled = defaults(said) or defaults(usual_type or "")
            return Fields(part.given, filled, part.where)
    return None


def encoder_tokens(parts: Parts, built: tuple[Tower, ...]) -> int:
    """What cross-attention keeps at most: of an encoder-decoder's input, or of an image (Llama 3.2 Vision)."""
    if parts.family.layers is encoder_decoder:
        return parts.text.size("max_source_positions", "max_position_embeddings")
    if parts.family.layers is mllama:
        return max((tower.tokens_per_item or 0 for tower in built), default=0)
    return 0
