"""Weights of the fullest rank once vLLM has loaded them: parameters and buffers, in bytes.

What a rank keeps of a tensor is in ``sharding``, in which dtype in ``precision``; what vLLM makes itself (rotary
tables, scales) in ``buffers``, and adapters in ``lora``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vllm_autofit.architecture import Layer, ModelFacts, Tensor
from vllm_autofit.demand import Term
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.allocator import allocated_bytes
from vllm_autofit.memory.buffers import stage_buffers
from vllm_autofit.memory.fp4_experts import loaded_share
from vllm_autofit.memory.lora import stage_adapters
from vllm_autofit.memory.precision import dequantised_bytes, kept_bytes, load_time_scale_bytes
from vllm_autofit.memory.sharding import PLAIN_TABLES, Role, cut, fused, padded, rank_share, role, stage_of_layers
from vllm_autofit.memory.stages import embedding_stages, head_stages

CONFIG_ERROR = 0.01
"""Relative, where the tensors were made up from a config or stand for sizes of files. Of 52 published starts 50 are
within it, of 9 quantised ones all (the worst is 0.5 % off); a DeepSeek-V2 on 8 GPUs takes 5.7 % more, unexplained."""


def rank_weights(facts: ModelFacts, tensors: Sequence[Tensor], deployment: Deployment, *, exact: bool) -> Term:
    """Bytes of parameters and buffers that the fullest rank holds once vLLM has loaded.

    Args:
        tensors: the checkpoint's, under their Hugging Face names.
        exact: whether these are the checkpoint's own sizes.
    """
    held = _held(facts, tensors, deployment)
    for more in (stage_buffers(facts, deployment), stage_adapters(facts, deployment)):
        for made, sizes in zip(held, more, strict=True):
            made += sizes
    count = allocated_bytes if deployment.device == "cuda" else sum
    offloaded = deployment.cpu_offload_bytes if deployment.device != "cpu" else 0
    fullest = max(0, max(count(made) for made in held) - offloaded)
    return Term(fullest, 0.0 if exact else CONFIG_ERROR, _why(tensors, deployment, exact))


def prediction_weights(facts: ModelFacts, tensors: Sequence[Tensor], deployment: Deployment, *, exact: bool) -> Term:
    """Bytes on a rank of the prediction layers that a checkpoint carries for speculative decoding (``mtp``).

    Their embeddings and head are the model's own.
    """
    total = sum(
        (entry.size + entry.beside) * count
        for count, _number, entry in _on_a_rank(facts, tensors, deployment)
        if entry.is_draft
    )
    return Term(total, 0.0 if exact else CONFIG_ERROR, "prediction layers of the checkpoint")


def _held(facts: ModelFacts, tensors: Sequence[Tensor], deployment: Deployment) -> list[list[int]]:
    """Bytes of each tensor as vLLM makes it, several of the checkpoint's fused into one, on each pipeline stage."""
    stage_of_layer = stage_of_layers(len(facts.layers), deployment.pipeline_parallel) or [0]
    last = len(stage_of_layer) - 1
    held: list[dict[object, int]] = [defaultdict(int) for _ in range(deployment.pipeline_parallel)]
    for count, number, entry in _on_a_rank(facts, tensors, deployment):
        stages = entry.stages
        if stages is None:
            stages = (stage_of_layer[min(number or 0, last)],)
        for stage in stages:
            held[stage][number, entry.made] += entry.size * count
            if entry.beside:
                held[stage][number, entry.made, "beside"] += entry.beside * count
    return [list(made.values()) for made in held]


class _Entry(NamedTuple):
    """What is worked out once for all tensors of one shape and name, layer numbers aside."""

    size: int
    beside: int
    """Bytes of scales and copies."""
    stages: Sequence[int] | None
    """The pipeline stages that load it; none where vLLM leaves it out. None: the stage of its layer."""
    is_draft: bool
    made: str
    """What vLLM makes it part of, the number aside."""


def _on_a_rank(
    facts: ModelFacts, tensors: Sequence[Tensor], deployment: Deployment
) -> Iterator[tuple[int, int | None, _Entry]]:
    """How many there are of each tensor, the first number of its name, and what is worked out for it."""
    kinds: dict[Layer, int] = {}
    kind_of_layer = [kinds.setdefault(layer, len(kinds)) for layer in facts.layers]
    layers = len(kind_of_layer)
    known: dict[object, _Entry] = {}
    for tensor in tensors:
        before, number, between, after = cut(tensor.name)
        layer = number if number is not None and number < layers else -1
        kind = kind_of_layer[layer] if layer >= 0 else -1
        key = (before, between, after, kind, number is None, tensor.shape, tensor.dtype, tensor.bytes)
        entry = known.get(key)
        if entry is None:
            what = role(before, between, after, len(tensor.shape))
            size, beside = _rank_bytes(tensor, what, facts.layers[layer] if layer >= 0 else None, facts, deployment)
            stages: Sequence[int] | None = ()
            draft = what.part == "draft" or (what.part == "layer" and kind < 0 and "encoder" not in before)
            if draft:
                draft = role(what.module, "", "", 2).part not in ("embedding", "head")
            else:
                stages = _stages(facts, what, deployment)
            made = f"{before}.{fused(f'{between}.{after}', what)}"
            entry = known[key] = _Entry(size, beside, stages, draft, made)
        yield tensor.count, number, entry


def _rank_bytes(
    tensor: Tensor, what: Role, layer: Layer | None, facts: ModelFacts, deployment: Deployment
) -> tuple[int, int]:
    """Of the tensor itself, and of what is made of it in memory of its own."""
    whole = kept_bytes(tensor, what, facts, deployment)
    if what.split == "vocabulary":
        if facts.model_type in PLAIN_TABLES:
            return whole, 0
        rows = max(1, tensor.shape[0] if tensor.shape else 1)
        return whole // rows * (padded(rows) // deployment.tensor_parallel), 0
    share = rank_share(tensor, what, layer, facts.architecture, deployment)
    own = round(whole * share * loaded_share(tensor, what, layer, facts, deployment))
    copies = dequantised_bytes(tensor, what, facts, deployment)
    scales = load_time_scale_bytes(tensor, what, facts, deployment)
    return own, round((copies + scales) * share)


def _stages(facts: ModelFacts, what: Role, deployment: Deployment) -> Sequence[int] | None:
    count = deployment.pipeline_parallel
    first, last, every = (0,), (count - 1,), range(count)
    if what.part == "layer":
        return None
    if what.part == "head":
        return () if facts.tied_embeddings or facts.runner == "pooling" else head_stages(facts, count)
    if what.part == "embedding":
        return embedding_stages(facts, count)
    if what.part == "task":
        return last if facts.labels else ()
    if what.part == "unused" or (what.part == "tower" and deployment.text_only):
        return ()
    return {"start": first, "end": last}.get(what.part, every)


def _why(tensors: Sequence[Tensor], deployment: Deployment, exact: bool) -> str:
    source = "tensors of the checkpoint" if exact else "tensors as the config describes them"
    ranks = deployment.world
    return f"{sum(tensor.count for tensor in tensors)} {source}" + (f", fullest of {ranks} ranks" if ranks > 1 else "")
