"""Which layers a model has, in order: decoders whose layers mix tokens by attention alone."""

from __future__ import annotations

import math
from dataclasses import replace

from vllm_autofit.architecture import Attention, Dense, Experts, Layer
from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families.attention import (
    EVERYTHING,
    FULL,
    HEADS,
    Reach,
    attention,
    head_size_of,
    hidden_size,
    layer_count,
    reaches,
)
from vllm_autofit.facts.families.feed_forward import dense, experts, sparse_layers
from vllm_autofit.facts.families.fields import COMPLETE, Fields, whole_number
from vllm_autofit.facts.families.style import Family


def decoder(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """The common decoder: attention, then a dense block or experts, in every layer."""
    count = layer_count(fields)
    blocks = feed_forwards(fields, family, count)
    known: dict[object, Layer] = {}
    layers = []
    for number, reach in enumerate(reaches(fields, family, count)):
        ffn, indexed = blocks[number], has_indexer(fields, number)
        key = (reach, id(ffn), indexed)
        if key not in known:
            mixer = attention(fields, family, reach)
            if mixer.latent is not None and not indexed:
                mixer = replace(mixer, latent=replace(mixer.latent, index_heads=0, index_head_size=0))
            known[key] = Layer(mixer=mixer, ffn=ffn, norms=family.norms)
        layers.append(known[key])
    return tuple(layers)


def feed_forwards(fields: Fields, family: Family, count: int) -> list[Dense | Experts]:
    """Each layer's feed-forward block."""
    mixture = experts(fields, family)
    if mixture is None:
        return [dense(fields, family)] * count
    sparse = sparse_layers(fields, count)
    if all(sparse):
        return [mixture] * count
    plain = dense(fields, family)
    return [mixture if chosen else plain for chosen in sparse]


def has_indexer(fields: Fields, number: int) -> bool:
    """Whether a layer of a model with a sparse indexer has one of its own.

    Some share another layer's choice: vLLM 0.32 ``model_executor/models/deepseek_v2.py``, "IndexCache config".
    """
    pattern = fields.get("index_topk_pattern")
    if isinstance(pattern, (str, list)):
        return number >= len(pattern) or pattern[number] != "S"
    every = fields.size_or(1, "index_topk_freq", least=1)
    return max(number - fields.size_or(2, "index_skip_topk_offset") + 1, 0) % every == 0


def gemma4(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Full layers with heads of another size and keys that serve as values; experts beside a dense block; shared KV."""
    count = layer_count(fields)
    mixture, plain = experts(fields, family), dense(fields, family)
    first_sharing = count - fields.size_or(0, "num_kv_shared_layers", most=count)
    double = fields.flag("use_double_wide_mlp")
    norms = family.norms + (3 if mixture else 0) + (1 if fields.maybe("hidden_size_per_layer_input") else 0)
    full_heads = _gemma4_full_heads(fields)
    known: dict[object, Layer] = {}
    layers = []
    all_reaches = reaches(fields, family, count)
    if all_reaches[-1].window is not None:
        all_reaches[-1] = EVERYTHING  # transformers makes the last layer a full one, whatever is said
    for number, reach in enumerate(all_reaches):
        mixer = attention(fields, family, reach)
        if reach.window is None:
            size, kv_heads = full_heads
            is_key = fields.flag("attention_k_eq_v")
            mixer = replace(
                mixer, head_size=size, value_head_size=size, kv_heads=kv_heads or mixer.kv_heads, value_is_key=is_key
            )
        wide = plain
        if number >= first_sharing > 0:
            target = _last_alike(all_reaches[:first_sharing], reach)
            mixer = replace(mixer, shares_kv_with=target, value_is_key=False)
            wide = replace(plain, width=2 * plain.width) if double else plain
        layer = Layer(mixer=mixer, ffn=mixture or wide, extra_ffn=wide if mixture else None, norms=norms)
        layers.append(known.setdefault(layer, layer))
    return tuple(layers)


def _gemma4_full_heads(fields: Fields) -> tuple[int, int | None]:
    """Size and number of the KV heads of full layers; transformers' own objects say it layer by layer."""
    by_layer = fields.part("per_layer_config")
    if by_layer is not None:
        for number in by_layer.given:
            one = by_layer.part(number)
            if one is not None and one.maybe("head_dim"):
                return one.size("head_dim"), one.maybe("num_key_value_heads")
    kv_heads = fields.maybe("num_global_key_value_heads") if fields.flag("attention_k_eq_v") else None
    return fields.size_or(512, "global_head_dim", least=1), kv_heads


def _last_alike(before: list[Reach], reach: Reach) -> int | None:
    """Index of the last layer that sees as far."""
    return max((number for number, other in enumerate(before) if other == reach), default=None)


def gemma3n(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Widths by layer, and the last layers read the cache of the last two kinds before them."""
    count = layer_count(fields)
    widths = fields.get("intermediate_size")
    if not isinstance(widths, (list, tuple)):
        widths = [widths] * count
    if len(widths) < count:
        raise ConfigError(f"{fields.where}intermediate_size", f"{len(widths)} items for {count} layers", "Compare both")
    first_sharing = count - fields.size_or(15, "num_kv_shared_layers", most=count)
    layers = []
    for number, reach in enumerate(reaches(fields, family, count)):
        mixer = attention(fields, family, reach)
        if number >= first_sharing > 0:
            # vLLM 0.32 gemma3n.py: the last full layer is one before sharing begins, the last sliding one two.
            target = first_sharing - (1 if reach.window is None else 2)
            mixer = replace(mixer, shares_kv_with=target if target >= 0 else None)
        width = whole_number(widths[number], f"{fields.where}intermediate_size", 1, 2**31)
        layers.append(Layer(mixer=mixer, ffn=Dense(width), norms=family.norms))
    return tuple(layers)


def minimax_m3(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Most layers choose blocks by an indexer, which caches one key a token beside the layer's own."""
    layers = decoder(fields, family)
    sparse = fields.part("sparse_attention_config")
    flags = sparse.items("sparse_attention_freq", length=len(layers)) if sparse is not None else None
    if sparse is None or flags is None:
        return layers
    heads, size = sparse.size("sparse_num_index_heads"), sparse.size("sparse_index_dim")
    return tuple(
        replace(layer, mixer=replace(layer.mixer, index_heads=heads, index_head_size=size))
        if flag and isinstance(layer.mixer, Attention)
        else layer
        for layer, flag in zip(layers, flags, strict=True)
    )


def mimo_v2(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Sliding layers with heads of their own kind; values of another size than keys."""
    count = layer_count(fields)
    blocks = feed_forwards(fields, family, count)
    pattern = fields.items("hybrid_layer_pattern", length=count)
    if pattern is None:
        pattern = [0 if kind == FULL else 1 for kind in fields.items("layer_types", length=count) or [FULL] * count]
    full = attention(fields, replace(family, sinks="add_full_attention_sink_bias"))
    heads = fields.size_or(full.heads, "swa_num_attention_heads", least=1)
    head_size = fields.size_or(full.head_size, "swa_head_dim", least=1)
    sliding = replace(
        full,
        heads=heads,
        kv_heads=fields.size_or(full.kv_heads, "swa_num_key_value_heads", least=1, most=heads),
        head_size=head_size,
        value_head_size=fields.size_or(head_size, "swa_v_head_dim", least=1),
        window=fields.maybe("sliding_window_size", "sliding_window"),
        sinks=fields.flag("add_swa_attention_sink_bias"),
    )
    return tuple(
        Layer(mixer=sliding if kind == 1 else full, ffn=blocks[number], norms=family.norms)
        for number, kind in enumerate(pattern)
    )


def step3p5(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Sliding layers with more heads than full ones, and a gate per head."""
    other = fields.part("attention_other_setting")
    layers = []
    for layer in decoder(fields, family):
        mixer = layer.mixer
        if other is not None and isinstance(mixer, Attention):
            slides = other.text("attention_type") == "sliding_attention"
            if slides == (mixer.window is not None):
                heads = other.size(*HEADS)
                groups = other.size_or(mixer.kv_heads, "num_attention_groups", least=1, most=heads)
                size = other.size_or(mixer.head_size, "head_dim", least=1)
                mixer = replace(mixer, heads=heads, kv_heads=groups, head_size=size, value_head_size=size)
        if isinstance(mixer, Attention):
            mixer = replace(mixer, head_gate=fields.flag("use_head_wise_attn_gate"))
        layers.append(replace(layer, mixer=mixer))
    return tuple(layers)


def nemotron_nas(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Layers found by search: heads and widths by layer, and blocks left out."""
    count = layer_count(fields)
    blocks = fields.items("block_configs", length=count)
    if blocks is None:
        raise ConfigError(f"{fields.where}block_configs", "missing", COMPLETE)
    layers = []
    for number, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise ConfigError(
                f"{fields.where}block_configs[{number}]", "not an object", "Compare with the published one"
            )
        one = Fields(block, {}, f"{fields.where}block_configs[{number}].")
        mixer, ffn = _searched_attention(fields, family, one), _searched_ffn(fields, one)
        layers.append(Layer(mixer=mixer, ffn=ffn, norms=(mixer is not None) + (ffn is not None)))
    return tuple(layers)


def _searched_attention(fields: Fields, family: Family, block: Fields) -> Attention | None:
    part = block.part("attention")
    if part is None or part.flag("no_op") or part.flag("replace_with_linear"):
        return None
    heads = fields.size(*HEADS)
    kv_heads = heads // part.size("n_heads_in_group", most=heads)
    return replace(attention(fields, family), kv_heads=kv_heads, head_size=head_size_of(fields, heads))


def _searched_ffn(fields: Fields, block: Fields) -> Dense | None:
    part = block.part("ffn")
    if part is None or part.flag("no_op"):
        return None
    said = part.maybe("intermediate_size")
    if said is not None:
        return Dense(said)
    # vLLM 0.32 nemotron_nas.py: two thirds of the multiple, rounded up to 256.
    width = int(2 * part.number(4, "ffn_mult") * hidden_size(fields) / 3)
    return Dense(math.ceil(width / 256) * 256)


def falcon(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Attention and a plain block side by side; one KV head, or as many as the newer ones say."""
    mixer = attention(fields, family)
    newer = fields.flag("new_decoder_architecture")
    if not newer and fields.flag("multi_query"):
        mixer = replace(mixer, kv_heads=1)
    norms = 2 if newer and fields.size_or(2, "num_ln_in_parallel_attn") == 2 else 1
    if not newer and not fields.flag("parallel_attn"):
        norms = 2
    return (Layer(mixer=mixer, ffn=dense(fields, family), norms=2 * norms),) * layer_count(fields)


def gpt_bigcode(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """StarCoder: GPT-2 with one KV head."""
    layers = decoder(fields, family)
    if not fields.flag("multi_query", True):
        return layers
    return tuple(
        replace(layer, mixer=replace(layer.mixer, kv_heads=1)) if isinstance(layer.mixer, Attention) else layer
        for layer in layers
    )
