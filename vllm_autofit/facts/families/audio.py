"""Sound encoders: sizes and weights from an audio part. All but Gemma's and Granite's are Whisper's encoder."""

from __future__ import annotations

from dataclasses import replace

from vllm_autofit.architecture import Tower
from vllm_autofit.facts.families.counting import Block, Encoder, layer_norm, linear
from vllm_autofit.facts.families.fields import MOST_LAYERS, Fields


def basics(audio: Fields, text_width: int) -> Tower:
    """What every audio part says; nothing counted yet."""
    return Tower(
        modality="audio",
        layers=audio.size(
            "encoder_layers", "num_hidden_layers", "num_layers", "conf_num_hidden_layers", most=MOST_LAYERS
        ),
        hidden_size=audio.size("d_model", "hidden_size", "hidden_dim"),
        width=audio.maybe("encoder_ffn_dim", "intermediate_size")
        or 4 * audio.size("d_model", "hidden_size", "hidden_dim"),
        heads=audio.size("encoder_attention_heads", "num_attention_heads", "num_heads", "conf_num_attention_heads"),
        output_size=text_width,
    )


def _blocks(tower: Tower, key_bias: bool = False) -> int:
    block = Block(width=tower.hidden_size, inner=tower.width, heads_size=tower.hidden_size, key_bias=key_bias)
    return tower.layers * block.parameters


def _convolutions(audio: Fields, width: int) -> int:
    """Two of three taps, over mel bins and over their own output."""
    return linear(3 * audio.size_or(128, "num_mel_bins"), width) + linear(3 * width, width)


def whisper(heard: Encoder) -> Tower:
    """Qwen2-Audio, Ultravox and the like: Whisper's encoder and a projector."""
    tower = basics(heard.part, heard.text_width)
    width, positions = tower.hidden_size, heard.part.size_or(1500, "max_source_positions")
    body = _blocks(tower) + _convolutions(heard.part, width) + positions * width + layer_norm(width)
    return replace(tower, parameters=body + linear(width, heard.text_width), tokens_per_item=positions // 2)


def voxtral(heard: Encoder) -> Tower:
    """Voxtral: four frames become one token, through two matrices without a bias."""
    tower = basics(heard.part, heard.text_width)
    width, positions = tower.hidden_size, heard.part.size_or(1500, "max_source_positions")
    body = _blocks(tower) + _convolutions(heard.part, width) + positions * width + layer_norm(width)
    return replace(
        tower, parameters=body + tower.width * heard.text_width + heard.text_width**2, tokens_per_item=positions // 4
    )


def qwen2_5_omni(heard: Encoder) -> Tower:
    """Qwen2.5-Omni: computed positions, and marks of beginning and end."""
    tower = basics(heard.part, heard.text_width)
    width = tower.hidden_size
    body = _blocks(tower) + _convolutions(heard.part, width) + layer_norm(width)
    return replace(tower, parameters=body + linear(width, heard.text_width) + 2 * heard.text_width)


def qwen3_omni(heard: Encoder) -> Tower:
    """Qwen3-Omni: three convolutions over the picture of the sound, and a projector of two matrices."""
    tower = basics(heard.part, heard.text_width)
    width, channels = tower.hidden_size, heard.part.size_or(480, "downsample_hidden_size", least=1)
    bins = heard.part.size_or(128, "num_mel_bins", least=1)
    for _ in range(3):
        bins = (bins + 1) // 2
    convolutions = linear(9, channels) + 2 * linear(9 * channels, channels) + linear(channels * bins, width, False)
    body = _blocks(tower, key_bias=True) + convolutions + layer_norm(width)
    return replace(tower, parameters=body + linear(width, width) + linear(width, heard.text_width))


def generic(heard: Encoder) -> Tower:
    """A conformer or something else: two feed-forward blocks, attention and a convolution in each layer."""
    tower = basics(heard.part, heard.text_width)
    width = tower.hidden_size
    block = Block(
        width=width, inner=tower.width, heads_size=width, norms=4, extra=2 * width * tower.width + 3 * width**2
    )
    return replace(tower, parameters=tower.layers * block.parameters + linear(width, heard.text_width))


READERS = {
    "qwen2_audio": whisper,
    "ultravox": whisper,
    "voxtral": voxtral,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni_moe": qwen3_omni,
}
