"""Which layers a model has, in order: decoders where states stand beside attention or instead of it."""

from __future__ import annotations

from dataclasses import replace

from vllm_autofit.architecture import Attention, Dense, Layer, State
from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families.attention import (
    FULL,
    attention,
    head_size_of,
    hidden_size,
    layer_count,
    layer_types,
    reaches,
)
from vllm_autofit.facts.families.feed_forward import dense, experts
from vllm_autofit.facts.families.fields import COMPLETE, MOST_LAYERS, Fields
from vllm_autofit.facts.families.recurrent import (
    gated_delta_net,
    kimi_delta,
    lightning,
    mamba1,
    mamba2,
    short_convolution,
)
from vllm_autofit.facts.families.stacks import feed_forwards
from vllm_autofit.facts.families.style import Family

_ATTENTION = {"attention", FULL, "full", "*"}
_MAMBA = {"mamba", "mamba2", "linear_attention", "M"}
_EXPERTS = {"moe", "E"}
_DENSE = {"mlp", "-"}
_KNOWN = _ATTENTION | _MAMBA | _EXPERTS | _DENSE | {"sliding_attention", "conv", "hybrid"}


def _kinds(fields: Fields, count: int) -> list[str] | None:
    types = layer_types(fields, count)
    unknown = next((kind for kind in types or () if kind not in _KNOWN), None)
    if unknown is not None:
        raise ConfigError(
            f"{fields.where}layer_types", f"no such kind of layer: {unknown[:40]!r}", "Compare with others"
        )
    return types


def _alternating(fields: Fields, family: Family, is_attention: list[bool], state: State) -> tuple[Layer, ...]:
    blocks = feed_forwards(fields, family, len(is_attention))
    mixer = attention(fields, family) if any(is_attention) else None
    return tuple(
        Layer(mixer=mixer if chosen else state, ffn=blocks[number], norms=family.norms)
        for number, chosen in enumerate(is_attention)
    )


def delta_net(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Qwen3-Next and Qwen3.5: every fourth layer has attention."""
    count = layer_count(fields)
    kinds = _kinds(fields, count)
    if kinds is None:
        every = fields.size_or(4, "full_attention_interval", least=1)
        chosen = [(number + 1) % every == 0 for number in range(count)]
    else:
        chosen = [kind in _ATTENTION for kind in kinds]
    return _alternating(fields, family, chosen, gated_delta_net(fields))


def granite_hybrid(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Granite 4 and Bamba: Mamba 2, and attention where the config lists it."""
    count = layer_count(fields)
    kinds = _kinds(fields, count)
    if kinds is None:
        listed = fields.numbers("attn_layer_indices") or []
        chosen = [number in listed for number in range(count)]
    else:
        chosen = [kind in _ATTENTION for kind in kinds]
    if all(chosen):
        return _alternating(fields, family, chosen, State(kind="mamba2"))
    return _alternating(fields, family, chosen, mamba2(fields))


def granite_moe_hybrid(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Granite 4: experts beside a shared block, or the shared block alone."""
    shared = Dense(fields.size("shared_intermediate_size", "intermediate_size"))
    layers = []
    for layer in granite_hybrid(fields, family):
        layers.append(replace(layer, ffn=shared) if isinstance(layer.ffn, Dense) else layer)
    return tuple(layers)


def jamba(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Jamba: Mamba, attention every eighth layer, experts every second."""
    period = fields.size("attn_layer_period", most=MOST_LAYERS)
    offset = fields.size_or(0, "attn_layer_offset")
    chosen = [number % period == offset for number in range(layer_count(fields))]
    return _alternating(fields, family, chosen, mamba1(fields, norms=True))


def lfm2(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """LFM2: short convolutions, and attention where the config lists it."""
    count = layer_count(fields)
    kinds = _kinds(fields, count)
    if kinds is None:
        listed = fields.numbers("full_attn_idxs")
        chosen = [listed is None or number in listed for number in range(count)]
    else:
        chosen = [kind in _ATTENTION for kind in kinds]
    layers = _alternating(fields, family, chosen, short_convolution(fields))
    if not fields.flag("block_auto_adjust_ff_dim"):
        return layers
    width = _adjusted_width(fields)
    return tuple(
        replace(layer, ffn=replace(layer.ffn, width=width)) if isinstance(layer.ffn, Dense) else layer
        for layer in layers
    )


def _adjusted_width(fields: Fields) -> int:
    """LFM2 rounds its widths: transformers 5.19 ``modeling_lfm2.py``, Lfm2MLP."""
    width = int(2 * fields.size("block_ff_dim", "intermediate_size") / 3)
    width = int(fields.number(1, "block_ffn_dim_multiplier") * width)
    step = fields.size_or(256, "block_multiple_of", least=1)
    return step * -(-width // step)


def falcon_h1(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Falcon-H1: attention and Mamba 2 side by side in every layer."""
    layer = Layer(
        mixer=attention(fields, family),
        ffn=dense(fields, family),
        parallel=mamba2(fields, output_norm=fields.flag("mamba_rms_norm")),
        norms=family.norms,
    )
    return (layer,) * layer_count(fields)


def mamba_only(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Mamba of the first generation, without attention or feed-forward blocks."""
    return (Layer(mixer=mamba1(fields), norms=family.norms),) * layer_count(fields)


def mamba2_only(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Mamba of the second generation, alone; its head size goes by the name that others use for attention."""
    heads = Fields(
        {**fields.given, **({"head_dim_mamba": fields.given["head_dim"]} if "head_dim" in fields.given else {})},
        {**fields.filled, "head_dim_mamba": fields.filled.get("head_dim")},
        fields.where,
    )
    return (Layer(mixer=mamba2(heads), norms=family.norms),) * layer_count(fields)


def nemotron_h(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Nemotron-H: one block a layer, Mamba 2, attention, dense or experts, as a pattern of letters or words says."""
    pattern = fields.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) <= MOST_LAYERS:
        kinds = list(pattern.replace("|", ""))
    else:
        words = fields.items("layers_block_type", "layer_types")
        if words is None:
            raise ConfigError(f"{fields.where}hybrid_override_pattern", "missing", COMPLETE)
        kinds = words[:MOST_LAYERS]
    state = mamba2(fields)
    seen = reaches(fields, family, 1)[0]
    layers = []
    for kind in kinds:
        if kind in _MAMBA:
            layers.append(Layer(mixer=state, norms=family.norms))
        elif kind in _ATTENTION:
            layers.append(Layer(mixer=attention(fields, family, seen), norms=family.norms))
        elif kind in _EXPERTS:
            layers.append(Layer(ffn=experts(fields, family), norms=family.norms))
        elif kind in _DENSE:
            layers.append(Layer(ffn=dense(fields, family), norms=family.norms))
        else:
            raise ConfigError(
                f"{fields.where}hybrid_override_pattern", "a kind of layer that isn't known", "Compare it"
            )
    return tuple(layers)


def kimi_linear(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Kimi-Linear: delta attention, and latent attention in the layers listed (counted from one)."""
    count = layer_count(fields)
    linear = fields.part("linear_attn_config")
    if linear is not None:
        deltas = set(linear.numbers("kda_layers") or [])
        return _alternating(fields, family, [number + 1 not in deltas for number in range(count)], kimi_delta(linear))
    kinds = _kinds(fields, count)
    if kinds is None:
        raise ConfigError(f"{fields.where}linear_attn_config", "missing", COMPLETE)
    return _alternating(fields, family, [kind in _ATTENTION for kind in kinds], kimi_delta(fields))


def minimax_01(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """MiniMax 01 and M1: lightning attention, and softmax attention where the list has a one."""
    count = layer_count(fields)
    listed = fields.items("attn_type_list", length=count)
    kinds = _kinds(fields, count) if listed is None else None
    if listed is not None:
        chosen = [kind == 1 for kind in listed]
    else:
        chosen = [kind in _ATTENTION for kind in kinds or ["linear_attention", FULL] * count][:count]
    heads = fields.size("num_attention_heads")
    layers = _alternating(fields, family, chosen, lightning(heads, head_size_of(fields, heads)))
    shared = fields.maybe("shared_intermediate_size")
    return tuple(replace(layer, extra_ffn=Dense(shared)) if shared else layer for layer in layers)


def zamba2(fields: Fields, family: Family) -> tuple[Layer, ...]:
    """Zamba2: Mamba 2 everywhere; some layers run a shared block of attention and feed-forward first."""
    count = layer_count(fields)
    kinds = _kinds(fields, count)
    if kinds is None:
        listed = fields.numbers("hybrid_layer_ids")
        if listed is None:
            raise ConfigError(f"{fields.where}layers_block_type", "missing", COMPLETE)
        hybrid = [number in listed for number in range(count)]
    else:
        hybrid = [kind == "hybrid" for kind in kinds]
    state = mamba2(fields)
    mixer = _zamba2_attention(fields, family)
    blocks = fields.size_or(1, "num_mem_blocks", least=1)
    layers: list[Layer] = []
    owners: list[int] = []
    for number, is_hybrid in enumerate(hybrid):
        if not is_hybrid:
            layers.append(Layer(mixer=state, norms=1))
            continue
        turn = len(owners)
        owners.append(number)
        layers.append(
            Layer(
                mixer=mixer,
                ffn=dense(fields, family),
                parallel=state,
                norms=4,
                shares_weights_with=owners[turn % blocks] if turn >= blocks else None,
            )
        )
    return tuple(layers)


def _zamba2_attention(fields: Fields, family: Family) -> Attention:
    """Over the hidden state and the embedding side by side: heads twice as large."""
    plain = attention(fields, family)
    size = fields.size_or(2 * hidden_size(fields) // plain.heads, "attention_head_dim", least=1)
    return replace(plain, head_size=size, value_head_size=size)
