"""What a layer is made of: its matrices and small tensors, by the kind of mixer and feed-forward block.

One description per kind, not per architecture. Names are relative to the layer and follow Hugging Face's commonest.
Projections that some checkpoints store fused (``qkv_proj``, ``gate_up_proj``, one tensor for all experts) are listed
apart: their elements are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vllm_autofit.architecture import Attention, Dense, Experts, LatentAttention, Layer, State


class Matrix(NamedTuple):
    """A linear layer, which quantisation may store in another way."""

    name: str
    rows: int
    """Outputs."""
    columns: int
    """Inputs."""
    bias: bool = False
    copies: int = 1
    """How many of the same shape: one per expert."""


class Plain(NamedTuple):
    """A tensor that no quantisation touches; the name is the tensor's own."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    """As safetensors names it; None: the checkpoint's."""


Module = Matrix | Plain

NORM_NAMES = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
"""Of a layer's vectors, in order; further ones are numbered."""


def layer_modules(layer: Layer, hidden: int) -> Iterator[Module]:
    """Every matrix and small tensor of one layer of width ``hidden``."""
    if layer.parallel is not None:
        yield from _state(layer.parallel, hidden)
    if layer.shares_weights_with is not None:
        return
    for number in range(layer.norms):
        name = NORM_NAMES[number] if number < len(NORM_NAMES) else f"layernorm_{number}"
        yield Plain(f"{name}.weight", (hidden,))
    if isinstance(layer.mixer, Attention):
        yield from _attention("cross_attn" if layer.mixer.role == "cross" else "self_attn", layer.mixer, hidden)
    elif layer.mixer is not None:
        yield from _state(layer.mixer, hidden)
    if layer.also is not None:
        yield from _attention("encoder_attn", layer.also, hidden)
    if isinstance(layer.ffn, Dense):
        yield from _dense("mlp", layer.ffn, hidden)
    elif layer.ffn is not None:
        beside = layer.extra_ffn is not None  # Gemma 4: the dense block is called mlp, experts stand beside it
        yield from _experts("" if beside else "mlp.", layer.ffn, hidden)
    if layer.extra_ffn is not None:
        yield from _dense("mlp" if isinstance(layer.ffn, Experts) else "extra_mlp", layer.extra_ffn, hidden)


def _attention(name: str, attention: Attention, hidden: int) -> Iterator[Module]:
    if attention.latent is not None:
        yield from _latent_attention(name, attention, attention.latent, hidden)
        return
    queries = attention.heads * attention.head_size
    keys = attention.kv_heads * attention.head_size
    has_keys = attention.shares_kv_with is None
    yield Matrix(f"{name}.q_proj", queries * (2 if attention.output_gate else 1), hidden, attention.bias)
    if has_keys:
        yield Matrix(f"{name}.k_proj", keys, hidden, attention.bias)
        if not attention.value_is_key:
            yield Matrix(f"{name}.v_proj", attention.kv_heads * attention.value_head_size, hidden, attention.bias)
    yield Matrix(f"{name}.o_proj", hidden, attention.heads * attention.value_head_size, attention.output_bias)
    if attention.query_key_norm:
        wide = attention.query_key_norm_wide
        yield Plain(f"{name}.q_norm.weight", (queries if wide else attention.head_size,))
        if has_keys:
            yield Plain(f"{name}.k_norm.weight", (keys if wide else attention.head_size,))
    if attention.sinks:
        yield Plain(f"{name}.sinks", (attention.heads,))
    if attention.head_gate:
        yield Matrix(f"{name}.g_proj", attention.heads, hidden)
    if attention.index_heads:
        size = attention.index_head_size
        yield Matrix(f"{name}.indexer.q_proj", attention.index_heads * size, hidden)
        yield Matrix(f"{name}.indexer.k_proj", size, hidden)
        yield Plain(f"{name}.indexer.q_norm.weight", (size,))
        yield Plain(f"{name}.indexer.k_norm.weight", (size,))


def _latent_attention(name: str, attention: Attention, latent: LatentAttention, hidden: int) -> Iterator[Module]:
    queries = attention.heads * (latent.nope_head_size + latent.rope_head_size)
    if latent.query_rank is None:
        yield Matrix(f"{name}.q_proj", queries, hidden)
    else:
        yield Matrix(f"{name}.q_a_proj", latent.query_rank, hidden, attention.bias)
        yield Plain(f"{name}.q_a_layernorm.weight", (latent.query_rank,))
        yield Matrix(f"{name}.q_b_proj", queries, latent.query_rank)
    yield Matrix(f"{name}.kv_a_proj_with_mqa", latent.kv_rank + latent.rope_head_size, hidden, attention.bias)
    yield Plain(f"{name}.kv_a_layernorm.weight", (latent.kv_rank,))
    keys_and_values = attention.heads * (latent.nope_head_size + attention.value_head_size)
    yield Matrix(f"{name}.kv_b_proj", keys_and_values, latent.kv_rank)
    yield Matrix(f"{name}.o_proj", hidden, attention.heads * attention.value_head_size, attention.output_bias)
    if latent.index_heads:
        yield Matrix(f"{name}.indexer.wq_b", latent.index_heads * latent.index_head_size, latent.query_rank or hidden)
        yield Matrix(f"{name}.indexer.wk", latent.index_head_size, hidden)
        yield Plain(f"{name}.indexer.k_norm.weight", (latent.index_head_size,))
        yield Plain(f"{name}.indexer.k_norm.bias", (latent.index_head_size,))
        # vLLM never quantises this one, and no published checkpoint does.
        yield Plain(f"{name}.indexer.weights_proj.weight", (latent.index_heads, hidden))


def _dense(name: str, dense: Dense, hidden: int, copies: int = 1) -> Iterator[Matrix]:
    if dense.gated:
        yield Matrix(f"{name}.gate_proj", dense.width, hidden, dense.bias, copies)
    yield Matrix(f"{name}.up_proj", dense.width, hidden, dense.bias, copies)
    yield Matrix(f"{name}.down_proj", hidden, dense.width, dense.bias, copies)


def _experts(prefix: str, experts: Experts, hidden: int) -> Iterator[Module]:
    yield Plain(f"{prefix}gate.weight", (experts.count, hidden))
    if experts.router_bias:
        yield Plain(f"{prefix}gate.e_score_correction_bias", (experts.count,))
    width = hidden
    if experts.latent_size is not None:
        width = experts.latent_size
        yield Matrix(f"{prefix}fc1_latent_proj", width, hidden)
        yield Matrix(f"{prefix}fc2_latent_proj", hidden, width)
    one = Dense(experts.width, gated=experts.gated, bias=experts.bias)
    yield from _dense(f"{prefix}experts.0", one, width, experts.count)
    if experts.shared_width:
        yield from _dense(f"{prefix}shared_experts", Dense(experts.shared_width, gated=experts.gated), hidden)
    if experts.shared_gate:
        yield Plain(f"{prefix}shared_expert_gate.weight", (1, hidden))


def _state(state: State, hidden: int) -> Iterator[Module]:
    yield from _STATES[state.kind](state, hidden)


def _mamba1(state: State, hidden: int) -> Iterator[Module]:
    inner, rank, size = state.inner_size, state.time_step_rank, state.state_size
    yield Matrix("mamba.in_proj", 2 * inner, hidden, state.bias)
    yield from _convolution("mamba.conv1d", inner, state)
    yield Matrix("mamba.x_proj", rank + 2 * size, inner)
    yield Matrix("mamba.dt_proj", inner, rank, True)
    yield Plain("mamba.A_log", (inner, size))
    yield Plain("mamba.D", (inner,))
    yield Matrix("mamba.out_proj", hidden, inner, state.bias)
    if state.time_step_norms:
        for name, width in (("dt", rank), ("b", size), ("c", size)):
            yield Plain(f"mamba.{name}_layernorm.weight", (width,))


def _mamba2(state: State, hidden: int) -> Iterator[Module]:
    inner = state.inner_size
    convolved = inner + 2 * state.groups * state.state_size
    yield Matrix("mamba.in_proj", inner + convolved + state.heads, hidden, state.bias)
    yield from _convolution("mamba.conv1d", convolved, state)
    for name in ("A_log", "D", "dt_bias"):
        yield Plain(f"mamba.{name}", (state.heads,))
    if state.output_norm:
        yield Plain("mamba.norm.weight", (inner,))
    yield Matrix("mamba.out_proj", hidden, inner, state.bias)


def _gated_delta_net(state: State, hidden: int) -> Iterator[Module]:
    values = state.heads * state.head_size
    convolved = 2 * state.key_heads * state.key_head_size + values
    yield Matrix("linear_attn.in_proj_qkv", convolved, hidden)
    yield Matrix("linear_attn.in_proj_z", values, hidden)
    yield Matrix("linear_attn.in_proj_b", state.heads, hidden)
    yield Matrix("linear_attn.in_proj_a", state.heads, hidden)
    yield from _convolution("linear_attn.conv1d", convolved, state)
    yield Plain("linear_attn.dt_bias", (state.heads,))
    yield Plain("linear_attn.A_log", (state.heads,), "F32")
    yield Plain("linear_attn.norm.weight", (state.head_size,), "F32")
    yield Matrix("linear_attn.out_proj", hidden, values)


def _kimi_delta(state: State, hidden: int) -> Iterator[Module]:
    values = state.heads * state.head_size
    for name in ("q", "k", "v"):
        yield Matrix(f"self_attn.{name}_proj", values, hidden)
        yield from _convolution(f"self_attn.{name}_conv1d", values, state)
    for gate in ("f", "g"):  # forget and output, both of low rank
        yield Matrix(f"self_attn.{gate}_a_proj", state.head_size, hidden)
        yield Matrix(f"self_attn.{gate}_b_proj", values, state.head_size)
    yield Matrix("self_attn.b_proj", state.heads, hidden)
    yield Plain("self_attn.A_log", (1, 1, state.heads, 1), "F32")
    yield Plain("self_attn.dt_bias", (values,), "F32")
    yield Plain("self_attn.o_norm.weight", (state.head_size,))
    yield Matrix("self_attn.o_proj", hidden, values)


def _short_convolution(state: State, hidden: int) -> Iterator[Module]:
    inner = state.inner_size or hidden
    yield Matrix("conv.in_proj", 3 * inner, hidden, state.bias)
    yield from _convolution("conv.conv", inner, state)
    yield Matrix("conv.out_proj", hidden, inner, state.bias)


def _lightning(state: State, hidden: int) -> Iterator[Module]:
    values = state.heads * state.head_size
    yield Matrix("self_attn.qkv_proj", 3 * values, hidden)
    yield Matrix("self_attn.output_gate", values, hidden)
    yield Matrix("self_attn.out_proj", hidden, values)
    yield Plain("self_attn.norm.weight", (values,))


def _convolution(name: str, channels: int, state: State) -> Iterator[Plain]:
    """Depthwise: one kernel a channel."""
    yield Plain(f"{name}.weight", (channels, 1, state.conv_kernel))
    if state.conv_bias:
        yield Plain(f"{name}.bias", (channels,))


_STATES = {
    "mamba1": _mamba1,
    "mamba2": _mamba2,
    "gated_delta_net": _gated_delta_net,
    "kimi_delta": _kimi_delta,
    "short_conv": _short_convolution,
    "lightning": _lightning,
}
