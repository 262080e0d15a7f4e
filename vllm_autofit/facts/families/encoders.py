"""Which layers a model has, in order: encoders without a KV cache, and decoders that read an encoder."""

from __future__ import annotations

from dataclasses import replace

from vllm_autofit.architecture import Attention, Dense, Layer
from vllm_autofit.facts.families.attention import attention, hidden_size, layer_count, layer_types
from vllm_autofit.facts.families.feed_forward import dense
from vllm_autofit.facts.families.fields import MOST_LAYERS, Fields
from vllm_autofit.facts.families.stacks import decoder
from vllm_autofit.facts.families.style import Family


def encoder(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """BERT and its kin: the same layer throughout."""
    mixer = replace(attention(fields, family), role="encoder")
    return (Layer(mixer=mixer, ffn=dense(fields, family), norms=family.norms),) * layer_count(fields)


def modern_bert(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """ModernBERT: a window in two layers of three, starting with a full one."""
    count = layer_count(fields)
    every = fields.size_or(3, "global_attn_every_n_layers", least=1)
    types = layer_types(fields, count) or ["sliding_attention" if number % every else "full" for number in range(count)]
    # vLLM 0.32 modernbert.py: half the width on either side, the boundary included.
    window = fields.size_or(128, "local_attention", least=2) // 2 + 1
    full = replace(attention(fields, family), role="encoder")
    slides = replace(full, window=window)
    return tuple(
        Layer(mixer=slides if kind == "sliding_attention" else full, ffn=dense(fields, family), norms=family.norms)
        for kind in types
    )


def nomic_bert(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Nomic's BERT: gated where its activation is."""
    gated = fields.text("activation_function", "hidden_act") in ("swiglu", "silu", "geglu")
    return encoder(fields, replace(family, gated=gated))


def bert_extra(fields: Fields, _layers: tuple[Layer, ...]) -> int:
    """Token types and the norm after the embeddings."""
    return (fields.size_or(0, "type_vocab_size") + 2) * hidden_size(fields)


def encoder_decoder(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """The decoder of Whisper and BART: self-attention, then attention over the encoder's output."""
    mixer = attention(fields, family)
    layer = Layer(
        mixer=mixer, also=replace(mixer, role="cross"), ffn=dense(fields, family), norms=3 * family.norms // 2
    )
    return (layer,) * layer_count(fields)


def encoder_layers(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """The encoder beside it."""
    heads = fields.size("encoder_attention_heads")
    size = hidden_size(fields) // heads
    mixer = Attention(
        heads=heads, kv_heads=heads, head_size=size, value_head_size=size, role="encoder", bias=True, output_bias=True
    )
    width = fields.size("encoder_ffn_dim")
    layer = Layer(mixer=mixer, ffn=Dense(width, gated=False, bias=True), norms=family.norms)
    return (layer,) * fields.size("encoder_layers", most=MOST_LAYERS)


def whisper_extra(fields: Fields, _layers: tuple[Layer, ...]) -> int:
    """Two convolutions over the mel bins, the encoder's positions, and its last norm."""
    width = hidden_size(fields)
    convolutions = 3 * width * (fields.size("num_mel_bins") + width) + 2 * width
    return convolutions + fields.size("max_source_positions") * width + 2 * width


def bart_extra(fields: Fields, _layers: tuple[Layer, ...]) -> int:
    """The encoder's positions, and a norm after either embedding."""
    return (fields.size("max_position_embeddings") + 2 + 4) * hidden_size(fields)


def mllama(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Llama 3.2 Vision: some layers attend to the image instead of the text."""
    crossing = set(fields.numbers("cross_attention_layers") or [])
    return tuple(
        replace(layer, mixer=replace(layer.mixer, role="cross", query_key_norm=True))
        if number in crossing and isinstance(layer.mixer, Attention)
        else layer
        for number, layer in enumerate(decoder(fields, family))
    )
