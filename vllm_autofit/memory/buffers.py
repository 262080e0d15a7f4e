"""What vLLM makes itself when it builds a model: rotary tables, scales of attention, position numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_autofit.architecture import Attention, Layer, ModelFacts, State
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.sharding import stage_of_layers

ATTENTION_SCALES = (4, 4, 4, 4)
"""Bytes of the scales of queries, keys, values and probabilities of an attention layer, in float32 (vLLM 0.32)."""

POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
DEFAULT_POSITIONS = 8192
"""What vLLM's models take where a config names no longest position; Qwen's vision towers always do."""

FLOAT32_TABLES = frozenset({"gpt_oss", "hy_v3"})
"""Model types that ask for a rotary table in float32 (vLLM 0.32)."""

TRANSFORMERS_BACKEND = frozenset(
    {
        "ArceeForCausalLM",
        "CwmForCausalLM",
        "FlexOlmoForCausalLM",
        "GlmForCausalLM",
        "GPTBigCodeForCausalLM",
        "GPTNeoXForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "Jais2ForCausalLM",
        "MellumForCausalLM",
        "NanbeigeForCausalLM",
        "OlmoForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "PhiForCausalLM",
        "PhimoeForCausalLM",
        "SeedOssForCausalLM",
        "SmolLM3ForCausalLM",
        "Starcoder2ForCausalLM",
        "VaultGemmaForCausalLM",
    }
)
"""Run on transformers' own code, which computes rotations and keeps no table (vLLM 0.32 ``models/registry``)."""

MROPE_POSITIONS = 4
"""Tables for (time, height, width) positions are enlarged for video (``MRotaryEmbedding``)."""

DEEPSTACK_LEVELS = 3
"""Of the vision towers of Qwen3-VL and Qwen3-Omni (``deepstack_visual_indexes`` of their published configs)."""

EXACT_MROPE = (0, 32)
"""From here on not those of interleaved ones: Qwen3-VL and later (``mrope_positions_factor``; not in 0.31)."""


def stage_buffers(facts: ModelFacts, deployment: Deployment) -> list[list[int]]:
    """Bytes of each buffer on each pipeline stage."""
    stage_of = stage_of_layers(len(facts.layers), deployment.pipeline_parallel)
    sizes = [_tower_tables(facts, deployment) for _ in range(deployment.pipeline_parallel)]
    tables: set[tuple[int, object]] = set()
    for layer, stage in zip(facts.layers, stage_of, strict=True):
        for attention in _attentions(layer):
            sizes[stage] += ATTENTION_SCALES
            table = rotary_table(facts, attention, deployment)
            if table is not None and (stage, table) not in tables:
                tables.add((stage, table))
                sizes[stage].append(table[0])
        if layer.parallel is not None:
            sizes[stage].append(_multipliers(layer.parallel, deployment))
    if facts.runner == "pooling":
        sizes[0].append(8 * facts.learned_positions)  # their numbers, as int64
    return sizes


def deepstack_bytes(facts: ModelFacts, deployment: Deployment) -> int:
    """Room for what a vision tower's levels add to the first decoder layers in a batch; vLLM counts it as weights.

    It follows the batch and is neither parameter nor buffer (vLLM 0.32 ``deepstack_input_embeds``): no part of
    ``stage_buffers``.
    """
    if deployment.text_only or not facts.architecture.startswith(("Qwen3VL", "Qwen3Omni")):
        return 0
    row = facts.hidden_size * deployment.element_bytes
    return DEEPSTACK_LEVELS * deployment.max_num_batched_tokens * row


def rotary_tables(facts: ModelFacts, deployment: Deployment) -> set[tuple[int, object]]:
    """The rotary tables of a model, as ``rotary_table`` tells them; two models in a process share equal ones."""
    attentions = [attention for layer in facts.layers for attention in _attentions(layer)]
    tables = {rotary_table(facts, attention, deployment) for attention in attentions}
    return {table for table in tables if table is not None}


def rotary_table(facts: ModelFacts, attention: Attention, deployment: Deployment) -> tuple[int, object] | None:
    """Bytes of the table that a layer looks its rotations up in, and what tells it from other layers' tables.

    None where the layer has none. Layers of the same settings share one (``rotary_embedding.get_rope``).
    """
    if not facts.rotary_size or attention.role == "cross" or facts.architecture in TRANSFORMERS_BACKEND:
        return None
    if facts.model_type == "granitemoehybrid" and facts.raw.get("position_embedding_type") != "rope":
        return None
    own = _of_layer_kind(facts.raw, attention)
    parameters = own if own is not None else _parameters(facts.raw)
    rows = table_rows(parameters, facts, deployment)
    columns = _columns(facts, attention, parameters, own is not None)
    itemsize = 4 if facts.model_type in FLOAT32_TABLES else deployment.element_bytes
    settings = (facts.raw.get("rope_theta"), *sorted((name, repr(value)) for name, value in parameters.items()))
    return rows * columns * itemsize, (attention.head_size, columns, rows, settings)


def table_rows(parameters: Mapping[str, Any], facts: ModelFacts, deployment: Deployment) -> int:
    """Positions in a table, as the classes of vLLM 0.32's ``rotary_embedding`` compute them."""
    raw = facts.raw
    named = next((size for name in POSITION_NAMES if (size := _whole(raw.get(name)))), 0)
    positions = named or facts.context_tokens or DEFAULT_POSITIONS
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    factor = parameters.get("factor")
    factor = float(factor) if isinstance(factor, int | float) else 1.0
    original = _whole(parameters.get("original_max_position_embeddings"))
    original = original or _whole(raw.get("original_max_position_embeddings")) or positions
    rows = positions
    if kind in ("linear", "dynamic"):
        rows = int(positions * factor)
    elif kind in ("yarn", "deepseek_yarn", "deepseek_llama_scaling"):
        rows = int(original * factor)
    elif kind in ("longrope", "su"):
        rows = original + positions
    exact = parameters.get("mrope_interleaved") and deployment.vllm >= EXACT_MROPE
    if "mrope_section" in parameters and not exact:
        rows *= MROPE_POSITIONS
    return rows


def _attentions(layer: Layer) -> list[Attention]:
    return [each for each in (layer.mixer, layer.also) if isinstance(each, Attention)]


def _of_layer_kind(raw: Mapping[str, Any], attention: Attention) -> dict[str, Any] | None:
    """Settings that a config gives for this kind of layer alone (Gemma 3 and 4, ModernBERT ...)."""
    found = raw.get("rope_parameters")
    sliding = attention.window is not None or attention.chunk is not None
    if isinstance(found, Mapping):
        own = found.get("sliding_attention" if sliding else "full_attention")
        if isinstance(own, Mapping):
            return dict(own)
    if sliding and raw.get("rope_local_base_freq") is not None:
        return {"rope_theta": raw["rope_local_base_freq"]}
    return None


def _parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    found = raw.get("rope_parameters") or raw.get("rope_scaling")
    return dict(found) if isinstance(found, Mapping) else {}


def _columns(facts: ModelFacts, attention: Attention, parameters: Mapping[str, Any], by_kind: bool) -> int:
    if attention.latent is not None:
        return attention.latent.rope_head_size
    if parameters.get("rope_type") == "proportional":
        return attention.head_size  # Gemma 4 keeps the part that isn't rotated too
    partial = parameters.get("partial_rotary_factor")
    if isinstance(partial, float):
        return int(attention.head_size * partial)
    return attention.head_size if by_kind else facts.rotary_size


def _tower_tables(facts: ModelFacts, deployment: Deployment) -> list[int]:
    """Vision towers that merge patches (Qwen2-VL and later, GLM-4V) rotate half of each head."""
    if deployment.text_only:
        return []
    itemsize = deployment.element_bytes
    return [
        DEFAULT_POSITIONS * (tower.hidden_size // tower.heads // 2) * itemsize
        for tower in facts.towers
        if tower.modality == "image"
        and tower.merge > 1
        and tower.heads
        and facts.architecture.startswith(("Qwen", "Glm"))
    ]


def _multipliers(state: State, deployment: Deployment) -> int:
    """Falcon-H1 scales each output of its Mamba projection by a vector of the same width."""
    width = 2 * state.inner_size + 2 * state.groups * state.state_size + state.heads
    return width // deployment.tensor_parallel * deployment.element_bytes


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
