"""Feed-forward blocks: dense or a mixture of experts, and which layers have which."""

from __future__ import annotations

from collections.abc import Callable

from vllm_autofit.architecture import Dense, Experts
from vllm_autofit.facts.families.attention import hidden_size
from vllm_autofit.facts.families.fields import MOST_LAYERS, Fields, whole_number
from vllm_autofit.facts.families.style import Family, holds

WIDTH = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "decoder_ffn_dim", "block_ff_dim")
EXPERT_COUNT = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "active_experts",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
EXPERT_WIDTH = ("moe_intermediate_size", "expert_intermediate_size", "expert_hidden_size")
SHARED_COUNT = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
SHARED_WIDTH = (
    "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
    "shared_intermediate_size",
    "share_expert_dim",
)
MOST_EXPERTS = 65536


def dense(fields: Fields, family: Family) -> Dense:
    """The dense block of a layer without experts."""
    width = fields.maybe("dense_intermediate_size", "intermediate_size_mlp") or fields.maybe(*WIDTH)
    return Dense(width or 4 * hidden_size(fields), family.gated, holds(fields, family.mlp_bias))


def experts(fields: Fields, family: Family) -> Experts | None:
    """The mixture of a sparse layer, None in a dense model."""
    count = fields.largest(0, *EXPERT_COUNT, most=MOST_EXPERTS)
    if count <= 1:
        return None
    width = fields.largest(0, *EXPERT_WIDTH) or fields.size(*WIDTH)
    return Experts(
        count=count,
        per_token=fields.largest(1, *EXPERTS_PER_TOKEN, most=MOST_EXPERTS),
        width=width,
        shared_width=_shared_width(fields, width),
        shared_gate=family.shared_gate,
        gated=family.gated,
        bias=family.expert_bias,
        router_bias=holds(fields, family.router_bias),
        latent_size=fields.maybe("moe_latent_size"),
    )


def _shared_width(fields: Fields, expert_width: int) -> int:
    said = fields.maybe(*SHARED_WIDTH)
    if said is not None:
        return said
    return fields.largest(0, *SHARED_COUNT, most=MOST_EXPERTS) * expert_width


def sparse_layers(fields: Fields, count: int) -> list[bool]:
    """Which layers have experts, from whichever of the fields in use is there."""
    types = fields.items("mlp_layer_types", length=count)
    if types is not None:
        return [kind == "sparse" for kind in types]
    rule = _rule(fields, count)
    return [rule(number) for number in range(count)]


def _rule(fields: Fields, count: int) -> Callable[[int], bool]:
    listed = _listed(fields)
    if listed is not None:
        return listed.__contains__
    frequency = fields.get("moe_layer_freq")
    if isinstance(frequency, list):
        flags = fields.items("moe_layer_freq", length=count) or [1] * count
        return lambda number: bool(flags[number])
    if fields.get("interleave_moe_layer_step") is not None:
        step = fields.size("interleave_moe_layer_step", most=MOST_LAYERS)
        return lambda number: (number + 1) % step == 0
    if fields.get("expert_layer_period") is not None:  # Jamba
        period = fields.size("expert_layer_period", most=MOST_LAYERS)
        offset = fields.size_or(0, "expert_layer_offset")
        return lambda number: number % period == offset
    if fields.get("moe_layer_start_index") is not None:  # Ernie 4.5
        return _between(fields, count)
    first = fields.size_or(0, "first_k_dense_replace", "num_dense_layers")
    step = fields.size_or(1, "moe_layer_freq", "decoder_sparse_step", least=0)
    if fields.get("decoder_sparse_step") is None:
        return lambda number: number >= first and step > 0 and number % step == 0
    dense_ones = set(fields.numbers("mlp_only_layers") or [])
    return lambda number: number not in dense_ones and step > 0 and (number + 1) % step == 0


def _listed(fields: Fields) -> set[int] | None:
    """Layers with experts, spelled out: Llama 4 as a list, Step 3 as text."""
    text = fields.get("moe_layers_enum")
    if isinstance(text, str):
        return {int(number) for number in text.split(",") if number.strip().isdecimal()}
    numbers = fields.numbers("moe_layers")
    return None if numbers is None else set(numbers)


def _between(fields: Fields, count: int) -> Callable[[int], bool]:
    start, end = fields.get("moe_layer_start_index"), fields.get("moe_layer_end_index")
    first = min(start) if isinstance(start, list) and start else start
    last = max(end) if isinstance(end, list) and end else end
    first = whole_number(first, f"{fields.where}moe_layer_start_index", 0, MOST_LAYERS)
    last = count - 1 if last in (None, -1) else whole_number(last, f"{fields.where}moe_layer_end_index", 0, MOST_LAYERS)
    step = fields.size_or(1, "moe_layer_interval", least=1)
    return lambda number: first <= number <= last and (number + 1) % step == 0
