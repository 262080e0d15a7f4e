"""Weights that no layer, embedding or tower accounts for, counted from the config."""

from __future__ import annotations

from vllm_autofit.architecture import Attention, Dense, Layer
from vllm_autofit.facts.families.attention import hidden_size
from vllm_autofit.facts.families.fields import Fields


def _per_layer_inputs(fields: Fields, layers: int) -> int:
    """Gemma's per-layer embeddings: a table, a projection, and a gate in each layer."""
    size = fields.maybe("hidden_size_per_layer_input")
    if size is None:
        return 0
    width = hidden_size(fields)
    rows = fields.size_or(fields.size("vocab_size"), "vocab_size_per_layer_input", least=1)
    return rows * layers * size + width * layers * size + size + layers * 2 * width * size


def gemma4_extra(fields: Fields, layers: tuple[Layer, ...]) -> int:
    """Per-layer embeddings and a scalar per layer; with experts a scale per input and expert."""
    scales = sum(
        hidden_size(fields) + fields.size_or(0, "num_experts") for layer in layers if layer.extra_ffn is not None
    )
    return _per_layer_inputs(fields, len(layers)) + len(layers) + scales


def gemma3n_extra(fields: Fields, layers: tuple[Layer, ...]) -> int:
    """Per-layer embeddings, the alternating updates between several streams, and a low-rank branch per layer."""
    width, streams = hidden_size(fields), fields.size_or(4, "altup_num_inputs", least=1)
    alternating = width + streams**2 + streams**3 + streams * width + width
    low_rank = 2 * width * fields.size_or(64, "laurel_rank") + width
    joints = 2 * (streams - 1) * width**2
    return _per_layer_inputs(fields, len(layers)) + len(layers) * (alternating + low_rank) + joints


def zamba2_extra(fields: Fields, layers: tuple[Layer, ...]) -> int:
    """The shared blocks read twice the width; each place has a projection and low-rank changes of its own."""
    width = hidden_size(fields)
    rank = fields.size_or(128, "adapter_rank")
    extra = 0
    for layer in layers:
        if not isinstance(layer.mixer, Attention) or not isinstance(layer.ffn, Dense):
            continue
        heads = layer.mixer.heads + 2 * layer.mixer.kv_heads
        extra += width * width + rank * (width + 2 * layer.ffn.width)
        if fields.flag("use_shared_attention_adapter"):
            extra += rank * (3 * 2 * width + heads * layer.mixer.head_size)
        if layer.shares_weights_with is None:
            extra += width * heads * layer.mixer.head_size
    return extra


def head_bias(fields: Fields, _layers: tuple[Layer, ...]) -> int:
    """Phi's and GPT-J's heads have a bias."""
    return fields.size("vocab_size")
