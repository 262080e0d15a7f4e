"""The estimate, corrected by what starts of the same model measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm_autofit.architecture import ModelFacts
from vllm_autofit.demand import Demand, Term
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.estimate import Estimator
from vllm_autofit.units import GIB
from vllm_autofit.values import Measured

TERMS = ("weights", "activations", "cuda_graphs", "non_torch")

RECORD_ERROR: Mapping[str, float] = {"weights": 0.0, "activations": 0.02, "cuda_graphs": 0.05, "non_torch": 0.05}
"""How far two starts with the same settings differ, beside weights, which don't. A margin, not measured."""

PRIOR_ERROR = 0.1
"""At least, for a figure from another device or version. The estimate knows those apart, and scales; this is for what
it doesn't know. A margin, not measured."""

BELIEVED = (0.5, 2.0)
BELIEVED_WEIGHTS = (0.8, 1.25)
BELIEVED_DIFFERENCE_BYTES = GIB
"""A measured term is believed within these multiples of the estimate, or this near to it; else something moved, or the
record is damaged."""


class LearnedEstimator:
    """What deployments of one model take, where starts have shown it.

    A figure that was measured with other settings scales with the estimate: it keeps what is particular to this model
    and machine, and the estimate knows what the settings change.

    Args:
        estimator: the arithmetic.
        terms: measured figures of a rank, by the names of ``Demand``'s terms; ``consumed`` is their sum.
    """

    def __init__(self, estimator: Estimator, terms: Mapping[str, Measured]) -> None:
        self.facts: ModelFacts = estimator.facts
        self._estimator = estimator
        self._terms = terms
        self._references: dict[Deployment, Demand] = {}

    def loading_bytes(self, deployment: Deployment) -> int:
        """See ``Estimator``: nothing is measured of it."""
        return self._estimator.loading_bytes(deployment)

    def demand(self, deployment: Deployment) -> Demand:
        """What the fullest rank of ``deployment`` takes."""
        estimate = self._estimator.demand(deployment)
        if not self._terms:
            return estimate
        corrected = replace(
            estimate,
            weights=self._corrected("weights", estimate.weights, deployment),
            activations=self._corrected("activations", estimate.activations, deployment),
            cuda_graphs=self._corrected("cuda_graphs", estimate.cuda_graphs, deployment),
            non_torch=self._corrected("non_torch", estimate.non_torch, deployment),
        )
        return self._with_sum(corrected)

    def _corrected(self, name: str, estimate: Term, deployment: Deployment) -> Term:
        measured = self._terms.get(name)
        if measured is None:
            return estimate
        then = _as_measured(deployment, measured)
        reference: Term = getattr(self._reference(then), name)
        if not _believable(name, measured.bytes, reference.bytes):
            return estimate
        scale = estimate.bytes / reference.bytes if reference.bytes else 1.0
        error = RECORD_ERROR[name]
        if measured.source == "prior":
            error = max(error, min(estimate.error, PRIOR_ERROR)) if name == "weights" else max(error, PRIOR_ERROR)
        if estimate.bytes != reference.bytes:
            error = max(error, estimate.error / 2)
        return Term(round(measured.bytes * scale), error, f"measured by start {measured.record_id}")

    def _with_sum(self, demand: Demand) -> Demand:
        """Where only the sum is known, and it is more than the terms come to, the rest is something we don't know."""
        consumed = self._terms.get("consumed")
        total = sum(getattr(demand, name).bytes for name in TERMS)
        if consumed is None or len(self._terms) > 1 or not total < consumed.bytes <= total * BELIEVED[1]:
            return demand
        rest = demand.non_torch
        return replace(demand, non_torch=Term(rest.bytes + consumed.bytes - total, rest.error, rest.why))

    def _reference(self, deployment: Deployment) -> Demand:
        if deployment not in self._references:
            self._references[deployment] = self._estimator.demand(deployment)
        return self._references[deployment]


def _as_measured(deployment: Deployment, measured: Measured) -> Deployment:
    then = measured.settings
    if then is None:
        return deployment
    return replace(
        deployment,
        max_model_len=then.max_model_len,
        max_num_seqs=then.max_num_seqs,
        max_num_batched_tokens=then.max_num_batched_tokens,
        kv_cache_dtype=then.kv_cache_dtype,
        enforce_eager=then.enforce_eager,
    )


def _believable(name: str, measured: int, estimate: int) -> bool:
    low, high = BELIEVED_WEIGHTS if name == "weights" else BELIEVED
    if low * estimate <= measured <= high * estimate:
        return True
    return name != "weights" and abs(measured - estimate) <= BELIEVED_DIFFERENCE_BYTES
