"""All terms of one deployment together."""

from __future__ import annotations

from dataclasses import replace

from vllm_autofit.demand import Demand, Term
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.activations import activation_peak
from vllm_autofit.memory.buffers import deepstack_bytes
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.cuda_graphs import cuda_graph_bytes
from vllm_autofit.memory.drafts import draft_weights
from vllm_autofit.memory.kv_cache import kv_layout
from vllm_autofit.memory.overhead import non_torch_bytes
from vllm_autofit.memory.unloaded import loaded
from vllm_autofit.memory.weights import rank_weights
from vllm_autofit.values import Model

QUANTISED_IN_PLACE_SINCE = (0, 16)
"""See ``Estimator.loading_bytes``."""


class Estimator:
    """What deployments of one model take. Remembers its weights, which most settings don't change.

    Args:
        model: with its facts; tensors are worked out from them where no headers could be had.

    Raises:
        ValueError: ``model`` has no facts.
    """

    def __init__(self, model: Model) -> None:
        if model.facts is None:
            raise ValueError("a model whose config isn't understood can't be estimated")
        self.facts = model.facts
        self._model = _with_tensors(model)
        self._weights: dict[Deployment, Term] = {}

    def loading_bytes(self, deployment: Deployment) -> int:
        """The most that weights take while they are loaded, where that is more than afterwards; else 0.

        Until vLLM 0.15, weights that are quantised while loading stand on the device in 16 bits first
        (``quantization/fp8.py`` of 0.11 and 0.14; parameters are made on the meta device from 0.16 on).
        """
        online = deployment.quantization is not None and self.facts.quantization is None
        if not online or deployment.device == "cpu" or deployment.vllm >= QUANTISED_IN_PLACE_SINCE:
            return 0
        return self._loaded(replace(deployment, quantization=None)).bytes

    def demand(self, deployment: Deployment) -> Demand:
        """What the fullest rank of ``deployment`` takes."""
        draft = self._draft(deployment)
        return Demand(
            weights=self._loaded(deployment),
            activations=activation_peak(self.facts, deployment),
            cuda_graphs=cuda_graph_bytes(self.facts, deployment),
            non_torch=non_torch_bytes(self.facts, deployment),
            kv=kv_layout(self.facts, deployment, None if draft is None else draft.facts),
        )

    def _loaded(self, deployment: Deployment) -> Term:
        """The weights, which only few settings change."""
        key = replace(deployment, max_num_seqs=1, max_num_batched_tokens=1, kv_cache_dtype="auto", enforce_eager=False)
        if key not in self._weights:
            self._weights[key] = loaded_weights(self._model, key)
        term = self._weights[key]
        more = deepstack_bytes(self.facts, deployment)
        return Term(term.bytes + more, term.error, term.why) if more else term

    def _draft(self, deployment: Deployment) -> Model | None:
        """The checkpoint that drafts, where one does."""
        return None if deployment.speculation is None else self._model.draft


def loaded_weights(model: Model, deployment: Deployment) -> Term:
    """Bytes on the fullest rank of the model's weights, tensors at hand, and of what drafts for it."""
    assert model.facts is not None
    own = rank_weights(model.facts, model.tensors, deployment, exact=model.exact)
    more = draft_weights(model, deployment)
    if more is None:
        return own
    total = own.bytes + more.bytes
    return Term(total, (own.error_bytes + more.error_bytes) / max(1, total), f"{own.why}, and what drafts")


def _with_tensors(model: Model) -> Model:
    """``model`` and its draft with what vLLM loads, worked out from the configs where no headers could be had."""
    facts, draft = model.facts, None if model.draft is None else _with_tensors(model.draft)
    if facts is None:
        return replace(model, draft=draft)
    if not model.tensors:
        model = replace(model, tensors=tensors_from_facts(facts), weights_source="config", exact=False)
    return replace(model, draft=draft, tensors=loaded(facts, model.tensors))
