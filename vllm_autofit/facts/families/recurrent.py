"""Layers with a state of fixed size per sequence: Mamba, gated delta nets, short convolutions, linear attention."""

from __future__ import annotations

import math

from vllm_autofit.architecture import State
from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families.attention import hidden_size
from vllm_autofit.facts.families.fields import Fields

STATE_DTYPE = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype")


def mamba1(fields: Fields, *, norms: bool = False) -> State:
    """A Mamba layer of the first generation; ``norms``: with Jamba's norms of time step, B and C."""
    width = hidden_size(fields)
    inner = fields.maybe("mamba_intermediate_size") or round(fields.number(2, "mamba_expand", "expand") * width)
    rank = fields.get("mamba_dt_rank", "time_step_rank")
    return State(
        kind="mamba1",
        inner_size=inner,
        state_size=fields.size("mamba_d_state", "state_size"),
        conv_kernel=fields.size("mamba_d_conv", "conv_kernel"),
        time_step_rank=math.ceil(width / 16)
        if rank in (None, "auto")
        else fields.size("mamba_dt_rank", "time_step_rank"),
        bias=_either(fields, "mamba_proj_bias", "use_bias"),
        conv_bias=_either(fields, "mamba_conv_bias", "use_conv_bias"),
        time_step_norms=norms,
        state_dtype=fields.text(*STATE_DTYPE) or None,
    )


def mamba2(fields: Fields, *, output_norm: bool = True) -> State:
    """A Mamba layer of the second generation."""
    heads = fields.size("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    expanded = round(fields.number(2, "mamba_expand", "expand") * hidden_size(fields))
    inner = fields.maybe("mamba_d_ssm") or expanded
    size = fields.get("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim_mamba")
    if size in (None, "auto"):
        if inner < heads:
            raise ConfigError(f"{fields.where}mamba_n_heads", f"{heads} for a width of {inner}", "Compare both")
        head_size = inner // heads
    else:
        head_size = fields.size("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim_mamba")
    return State(
        kind="mamba2",
        heads=heads,
        head_size=head_size,
        state_size=fields.size("mamba_d_state", "ssm_state_size", "state_size"),
        groups=fields.size_or(1, "mamba_n_groups", "mamba_ngroups", "n_groups", least=1),
        inner_size=heads * head_size,
        conv_kernel=fields.size("mamba_d_conv", "conv_kernel"),
        bias=_either(fields, "mamba_proj_bias", "use_bias", "add_bias_linear"),
        conv_bias=_either(fields, "mamba_conv_bias", "use_conv_bias"),
        output_norm=output_norm,
        state_dtype=fields.text(*STATE_DTYPE) or None,
    )


def gated_delta_net(fields: Fields) -> State:
    """The linear attention of Qwen3-Next and Qwen3.5."""
    heads, head_size = fields.size("linear_num_value_heads"), fields.size("linear_value_head_dim")
    return State(
        kind="gated_delta_net",
        heads=heads,
        head_size=head_size,
        key_heads=fields.size("linear_num_key_heads"),
        key_head_size=fields.size("linear_key_head_dim"),
        inner_size=heads * head_size,
        conv_kernel=fields.size("linear_conv_kernel_dim"),
        state_dtype=fields.text(*STATE_DTYPE) or None,
    )


def kimi_delta(fields: Fields) -> State:
    """The linear attention of Kimi-Linear."""
    heads, head_size = fields.size("num_heads", "linear_num_heads"), fields.size("linear_head_dim", "head_dim")
    return State(
        kind="kimi_delta",
        heads=heads,
        head_size=head_size,
        key_heads=heads,
        key_head_size=head_size,
        inner_size=heads * head_size,
        conv_kernel=fields.size("short_conv_kernel_size", "linear_conv_kernel_dim"),
    )


def short_convolution(fields: Fields) -> State:
    """The gated convolution of LFM2."""
    bias = fields.flag("conv_bias")
    return State(
        kind="short_conv",
        inner_size=hidden_size(fields),
        conv_kernel=fields.size("conv_L_cache"),
        bias=bias,
        conv_bias=bias,
    )


def lightning(heads: int, head_size: int) -> State:
    """The linear attention of MiniMax 01 and M1."""
    return State(
        kind="lightning",
        heads=heads,
        head_size=head_size,
        key_heads=heads,
        key_head_size=head_size,
        inner_size=heads * head_size,
    )


def _either(fields: Fields, *names: str) -> bool:
    return any(fields.flag(name) for name in names)
