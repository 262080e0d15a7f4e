"""A published start together with what the estimator makes of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.measured import Row, read_configs, read_rows
from vllm_autofit.architecture import ModelFacts
from vllm_autofit.demand import Demand
from vllm_autofit.deployment import Deployment
from vllm_autofit.errors import AutofitError
from vllm_autofit.facts.config import model_facts
from vllm_autofit.memory.estimate import Estimator
from vllm_autofit.values import Model

QUANTIZED = re.compile(
    r"awq|gptq|fp8|fp4|int4|int8|[48]bit|[48]-bit|bnb|w4a16|gguf|exl3|quantiz|autoround", re.IGNORECASE
)
"""Words by which a row or a model's name says that the weights are quantised."""


SEEN = frozenset({
    "m040", "m090", "m127", "m128", "m129", "m132", "m135", "m137", "m139", "m212", "m213", "m214", "m248", "m255",
    "m257", "m273", "m274", "m280", "m315", "m316", "m325", "m326", "m406", "m413", "m422", "m427",
})  # fmt: skip
"""Rows that a constant of ``memory/`` rests on, as its docstring says. No figure of theirs is out of sample, whichever
half their model belongs to."""


@dataclass(frozen=True)
class Case:
    """One row, its model and its launch."""

    row: Row
    estimator: Estimator
    deployment: Deployment

    @property
    def facts(self) -> ModelFacts:
        """Of the model."""
        return self.estimator.facts

    @property
    def model(self) -> Model:
        """As a plan wants it: the config is all that is known."""
        return Model(self.row.model, self.facts)

    @cached_property
    def demand(self) -> Demand:
        """Term by term, for the fullest rank."""
        return self.estimator.demand(self.deployment)

    @property
    def held_out(self) -> bool:
        """Whether its model is in the half that no constant is fitted on, and no constant rests on the row itself."""
        return hashlib.sha256(self.row.model.encode()).digest()[0] % 2 == 1 and self.row.id not in SEEN

    @property
    def config_lacks_quantization(self) -> bool:
        """The row is of a quantised copy, the config of the original: its weights can't be told from it."""
        said = " ".join(str(self.row.raw.get(name, "")) for name in ("model", "quantization", "revision_note"))
        return bool(QUANTIZED.search(said)) and not (self.facts.quantization or self.deployment.quantization)


@dataclass(frozen=True)
class Skipped:
    """A row that can't be scored."""

    row: Row
    reason: str


def read_cases(folder: Path) -> tuple[list[Case], list[Skipped]]:
    """The starts whose model is known, and the others."""
    configs = read_configs(folder)
    estimators: dict[str, Estimator | str] = {}
    cases: list[Case] = []
    skipped: list[Skipped] = []
    for row in read_rows(folder):
        if row.model not in estimators:
            estimators[row.model] = _estimator(row.model, configs)
        estimator = estimators[row.model]
        if isinstance(estimator, str):
            skipped.append(Skipped(row, estimator))
        else:
            cases.append(Case(row, estimator, row.deployment(estimator.facts)))
    return cases, skipped


def _estimator(name: str, configs: Mapping[str, Mapping[str, Any] | str]) -> Estimator | str:
    """What the config gives, or why it gives nothing."""
    if not name:
        return "the model isn't named"
    config = configs.get(name, "the model isn't named well enough to have a config")
    if isinstance(config, str):
        return config
    try:
        return Estimator(Model(name=name, facts=model_facts(config)))
    except AutofitError as error:
        return f"the config isn't understood: {error}"
