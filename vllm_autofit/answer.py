"""A plan together with what it was made for: what ``vllm-autofit plan`` answers. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllm_autofit.values import DeviceFacts, FieldValue, Model, Plan


@dataclass(frozen=True)
class Answer:
    """All that a reader of a plan may want to know."""

    plan: Plan
    model: Model | None
    """None where no model was named: then the plan says what any start here would ask for."""
    devices: tuple[DeviceFacts, ...]
    """Those that the launch uses."""
    device_source: str
    """Where their memory figures are from."""
    vllm_version: str
    """As installed or as the user named it."""
    given: Mapping[str, object] = field(default_factory=dict)
    """Options of vLLM's that the user gave, by name, apart from the model. Several values of one are a tuple; JSON is a
    list or a mapping."""
    server_only: frozenset[str] = frozenset()
    """Names of those that only a server has."""

    @property
    def fits(self) -> bool | None:
        """None where the model wasn't understood, so that nobody knows."""
        if self.model is not None and not self.plan.estimated and self.plan.fits:
            return None
        return self.plan.fits

    @property
    def model_name(self) -> str:
        """Empty where none was named."""
        return self.model.name if self.model is not None else ""

    @property
    def chosen(self) -> dict[str, FieldValue]:
        """The fields that we fill: neither the user's nor left to vLLM."""
        return {d.field: d.value for d in self.plan.decisions if d.source not in ("user", "vllm")}

    @property
    def launch(self) -> dict[str, object]:
        """Every option of the launch by name: the user's and ours."""
        return {**self.given, **self.chosen}
