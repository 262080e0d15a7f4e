"""What each stage needs of its devices, as far as its part of the model can be told from the others'.

A stage holds the tensors that begin with its name (``thinker.``, ``talker.``), so their headers say what its weights
take. Where its part of the config is that of a model we know, the rest comes from the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from vllm_autofit.architecture import ModelFacts, Tensor
from vllm_autofit.errors import ConfigError, UnknownModelError, WeightsError
from vllm_autofit.facts.config import model_facts
from vllm_autofit.facts.families.parts import TEXT_PARTS
from vllm_autofit.facts.request import KNOBS, read_request
from vllm_autofit.facts.weights import read_tensors
from vllm_autofit.memory.estimate import Estimator
from vllm_autofit.memory.kv_cache import bytes_needed
from vllm_autofit.planning.defaults import Version, deployment_of
from vllm_autofit.stages.claims import Need
from vllm_autofit.stages.stage import Stage
from vllm_autofit.units import GIB
from vllm_autofit.values import DeviceFacts, Model

OPEN: Mapping[str, Any] = {
    "gpu_memory_utilization": 0.9,
    "max_model_len": None,
    "enforce_eager": False,
    "kv_cache_dtype": "auto",
    "max_num_seqs": None,
}
"""The five fields where a stage says nothing; the first doesn't matter here."""


def needs_of(
    stages: Sequence[Stage],
    devices: Mapping[int, DeviceFacts],
    model: str,
    revision: str | None,
    config: Mapping[str, object],
    *,
    version: Version,
    least_context: int,
) -> tuple[dict[int, Need], tuple[str, ...]]:
    """By the number of the stage, for those that can be told; and what the user should know about the others.

    Args:
        devices: by their numbers.
        model: a folder or a name on the hub.
        revision: of the latter.
        config: its ``config.json``.
        version: of vLLM.
        least_context: tokens of one request that a stage has to hold.
    """
    try:
        checkpoint = read_tensors(model, revision)
    except WeightsError as error:
        return {}, (f"what the stages need can't be told: {error.place}: {error.reason}",)
    needs = {}
    for stage in stages:
        own = tuple(tensor for tensor in checkpoint.tensors if stage.name and tensor.name.startswith(f"{stage.name}."))
        if own and stage.devices:
            facts = _facts(config, stage)
            device = devices[stage.devices[0]]
            if facts is None:
                needs[stage.id] = _weights_alone(own, stage)
            else:
                estimator = Estimator(Model(model, facts, own, checkpoint.source, checkpoint.exact))
                needs[stage.id] = _estimated(estimator, stage, device, version, least_context)
    return needs, checkpoint.notes


def _facts(config: Mapping[str, object], stage: Stage) -> ModelFacts | None:
    """Of the stage's part of the config; the whole describes the part that talks text."""
    name = f"{stage.name}_config"
    part = config if name in TEXT_PARTS else config.get(name)
    try:
        return model_facts(part) if isinstance(part, Mapping) else None
    except (ConfigError, UnknownModelError):
        return None


def _weights_alone(own: Sequence[Tensor], stage: Stage) -> Need:
    total = sum(tensor.bytes * tensor.count for tensor in own) // stage.ranks
    return Need(total, f"weights {total / GIB:.2f}; what else it takes isn't known")


def _estimated(estimator: Estimator, stage: Stage, device: DeviceFacts, version: Version, least_context: int) -> Need:
    options = {name: value for name, value in stage.options if name in OPEN or name in KNOBS}
    asked = SimpleNamespace(
        model="", **{**OPEN, **{name: value for name, value in options.items() if value is not None}}
    )
    request = read_request(asked, frozenset(OPEN) & options.keys(), {})
    deployment = deployment_of(request, estimator.facts, device, version=version, usage="llm")
    demand = estimator.demand(deployment)
    fixed = {
        "weights": demand.weights.bytes,
        "activations": demand.activations.bytes,
        "kernels": demand.non_torch.bytes,
    }
    fixed["what that may be off"] = round(
        math.hypot(*(term.error_bytes for term in (demand.weights, demand.activations, demand.non_torch)))
    )
    if demand.kv is not None and not stage.kv_cache_bytes:
        context = min(least_context, deployment.max_model_len)
        fixed[f"KV cache of {context:,} tokens"] = bytes_needed(demand.kv, deployment, context, 1)
    why = ", ".join(f"{name} {count / GIB:.2f}" for name, count in fixed.items())
    return Need(sum(fixed.values()), why, demand.cuda_graphs.bytes)
