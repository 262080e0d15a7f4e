"""Attention layers: heads, their sizes, which layers see a window only, and which share another's cache."""

from __future__ import annotations

from typing import NamedTuple

from vllm_autofit.architecture import Attention, LatentAttention
from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families.fields import MOST_LAYERS, Fields, whole_number
from vllm_autofit.facts.families.style import Family, holds

LAYER_COUNT = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads")
KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups")
HEAD_SIZE = ("head_dim", "attention_head_dim", "hidden_size_per_head", "kv_channels")
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"
FULL = "full_attention"


class Reach(NamedTuple):
    """How far back one layer sees: everything, a window, or its chunk."""

    window: int | None = None
    chunk: int | None = None


EVERYTHING = Reach()


def layer_count(fields: Fields) -> int:
    """Layers of the decoder."""
    return fields.size(*LAYER_COUNT, most=MOST_LAYERS)


def hidden_size(fields: Fields) -> int:
    """Width of the residual stream."""
    return fields.size(*HIDDEN_SIZE)


def attention(fields: Fields, family: Family, reach: Reach = EVERYTHING) -> Attention:
    """The attention layer that a config describes.

    Raises:
        ConfigError: heads are missing or absurd.
    """
    heads = fields.size(*HEADS)
    bias = holds(fields, family.bias)
    output_bias = bias if family.output_bias is None else holds(fields, family.output_bias)
    norm = holds(fields, family.query_key_norm)
    latent = latent_attention(fields)
    if latent is not None:
        return Attention(
            heads=heads,
            kv_heads=1,
            head_size=latent.nope_head_size + latent.rope_head_size,
            value_head_size=fields.size("v_head_dim"),
            window=reach.window,
            latent=latent,
            bias=bias,
            output_bias=output_bias,
        )
    head_size = head_size_of(fields, heads)
    return Attention(
        heads=heads,
        kv_heads=kv_heads_of(fields, heads),
        head_size=head_size,
        value_head_size=fields.size_or(head_size, "v_head_dim", least=1),
        window=reach.window,
        chunk=reach.chunk,
        bias=bias,
        output_bias=output_bias,
        query_key_norm=norm,
        query_key_norm_wide=norm and family.wide_norm,
        output_gate=holds(fields, family.output_gate),
        sinks=holds(fields, family.sinks),
        role="encoder" if is_bidirectional(fields) else "decoder",
    )


def kv_heads_of(fields: Fields, heads: int) -> int:
    """KV heads; as many as query heads where the config has none."""
    return fields.size_or(heads, *KV_HEADS, least=1, most=heads)


def head_size_of(fields: Fields, heads: int) -> int:
    """Size of a head as vLLM derives it: said, or the hidden size divided among the heads."""
    said = fields.size_or(0, *HEAD_SIZE)
    if said:
        return said
    size = hidden_size(fields) // heads
    if size == 0:
        raise ConfigError(
            fields.where + HEADS[0], f"{heads} heads for a width of {hidden_size(fields)}", "Compare both"
        )
    return size


def is_bidirectional(fields: Fields) -> bool:
    """Whether a decoder's layers are run as an encoder's, without a KV cache (embedding models)."""
    return not fields.flag("is_causal", True) or fields.get("use_bidirectional_attention") in (True, "all")


def latent_attention(fields: Fields) -> LatentAttention | None:
    """Multi-head latent attention (DeepSeek, Kimi, GLM 5), None without one."""
    rank = fields.maybe("kv_lora_rank")
    if rank is None:
        return None
    return LatentAttention(
        kv_rank=rank,
        rope_head_size=fields.size_or(0, "qk_rope_head_dim"),
        nope_head_size=fields.size("qk_nope_head_dim"),
        query_rank=fields.maybe("q_lora_rank"),
        index_heads=fields.size_or(0, "index_n_heads"),
        index_head_size=fields.size_or(0, "index_head_dim"),
    )


def layer_types(fields: Fields, count: int) -> list[str] | None:
    """The config's own list of what each layer is, None without one."""
    types = fields.items("layer_types", "layers_block_type", length=count)
    if types is None:
        return None
    for number, kind in enumerate(types):
        if not isinstance(kind, str):
            raise ConfigError(f"{fields.where}layer_types[{number}]", "not text", "Compare with the published config")
    return types


def reaches(fields: Fields, family: Family, count: int) -> list[Reach]:
    """How far each layer sees, as vLLM's code for the family decides it."""
    window = fields.maybe("sliding_window", "sliding_window_size")
    types = layer_types(fields, count) if family.windows != "even" else None
    if family.windows == "uses" and not fields.flag("use_sliding_window"):
        window, types = None, None
    if types is None:
        types = _usual_types(fields, family, count) if window or family.windows == "chunks" else [FULL] * count
    chunk = fields.maybe("attention_chunk_size") if CHUNKED in types else None
    some_slide = SLIDING in types and any(kind != SLIDING for kind in types)
    if some_slide and not family.per_layer_windows:
        window = None
    if window and family.inclusive_window:
        window += 1
    return [Reach(window if kind == SLIDING else None, chunk if kind == CHUNKED else None) for kind in types]


def _usual_types(fields: Fields, family: Family, count: int) -> list[str]:
    """Which layers slide in a config with a window and without ``layer_types``."""
    if family.windows == "all":
        return [SLIDING] * count
    if family.windows == "even":
        return [FULL if number % 2 else SLIDING for number in range(count)]
    if family.windows == "uses":
        first = fields.size_or(0, "max_window_layers")
        return [SLIDING if number >= first else FULL for number in range(count)]
    if family.windows == "chunks":
        every = fields.size_or(4, "no_rope_layer_interval", least=1)
        rotary = fields.items("no_rope_layers", length=count) or [(number + 1) % every for number in range(count)]
        return [CHUNKED if flag else FULL for flag in rotary]
    if family.windows == "layers":
        return [FULL] * count
    cycle = _cycle(fields, family)
    return [FULL if cycle and (number + 1) % cycle == 0 else SLIDING for number in range(count)]


def _cycle(fields: Fields, family: Family) -> int:
    pattern = fields.get("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers")
    if isinstance(pattern, str):
        return len(pattern)  # EXAONE 4 spells one out: LLLG
    if pattern is None:
        return family.cycle
    return whole_number(pattern, f"{fields.where}sliding_window_pattern", 0, MOST_LAYERS)
