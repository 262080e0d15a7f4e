"""The longest context that vLLM derives from a config, and rotary positions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.families.fields import LARGEST_SIZE, Fields

CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""In vLLM 0.32's order, ``transformers_utils/model_arch_config_convertor.py``; the smallest counts."""
ALREADY_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""Kinds of rotary scaling whose config already says the scaled context: vLLM 0.32 ``config/model.py``."""


def context_tokens(fields: Fields, model_type: str) -> int:
    """The context that vLLM takes when none is asked for; 0 where the config says nothing (vLLM then assumes 2048).

    Follows ``_get_and_verify_max_len`` of vLLM 0.32.
    """
    lengths = [_length(fields, name) for name in CONTEXT if fields.get(name) is not None]
    if not lengths:
        return 0
    longest = _length(fields, "model_max_length") if fields.get("model_max_length") else min(lengths)
    kinds = list(rotary_parameters(fields))
    if any(_kind(one) in ("longrope", "su") for one in kinds) and fields.get("original_max_position_embeddings"):
        return fields.size("original_max_position_embeddings")
    if "gemma3" in model_type:
        return longest
    factor: object = 1.0
    for one in kinds:
        if _kind(one) not in ALREADY_SCALED:
            factor = one.get("factor", factor)
    if factor is None:
        return longest
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 2**20:
        raise ConfigError(
            f"{fields.where}rope_scaling.factor", "not a sensible number", "Compare with published configs"
        )
    return min(int(longest * factor), LARGEST_SIZE)


def _length(fields: Fields, name: str) -> int:
    """A context length; some files write one as a float, or an absurd one that means no limit."""
    value = fields.get(name)
    if isinstance(value, float) and math.isfinite(value) and value >= 1:
        value = int(min(value, LARGEST_SIZE))
    if isinstance(value, int) and not isinstance(value, bool) and value > LARGEST_SIZE:
        return LARGEST_SIZE
    return Fields({name: value}, {}, fields.where).size(name)


def rotary_parameters(fields: Fields) -> Iterator[Mapping[str, object]]:
    """What the config says of rotary scaling, one entry per kind of layer where they differ."""
    said = fields.get("rope_scaling", "rope_parameters")
    if not isinstance(said, Mapping):
        return
    nested = [value for value in said.values() if isinstance(value, Mapping)]
    if nested:
        yield from (one for one in nested if one)
    elif said:
        yield said


def _kind(parameters: Mapping[str, object]) -> object:
    return parameters.get("rope_type", parameters.get("type", "default"))


def rotary_size(fields: Fields, head_size: int, rope_head_size: int | None) -> int:
    """Elements of a head that are rotated.

    Args:
        fields: the text part of a config.
        head_size: of one head.
        rope_head_size: the rotated part where latent attention names it.
    """
    if rope_head_size is not None:
        return rope_head_size
    said = fields.maybe("rotary_dim", "rotary_emb_dim")
    if said is not None:
        return min(said, head_size)
    fraction = fields.get("partial_rotary_factor", "rotary_pct", "rotary_emb_fraction")
    if fraction is None:
        inner = [one.get("partial_rotary_factor") for one in rotary_parameters(fields)]
        fraction = next((value for value in inner if value is not None), 1.0)
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise ConfigError(f"{fields.where}partial_rotary_factor", "not a fraction", "Compare with published configs")
    return int(head_size * fraction)
