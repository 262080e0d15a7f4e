"""What is to be measured: one cell is one start of a server, or two at once, and what is done to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experience import TYPED

STARTS = (("plain", 1), ("ours", 1), ("ours", 2), ("ours", 3), ("plain", 2))
"""Each side has a compile cache of its own: the first start of both compiles, the others find it."""
TROUBLES = ("tenant-before", "tenant-between", "tenant-serving", "two", "refused")
ORACLE = "oracle"
SIDES = ("plain", "ours")


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        model: which.
        scenario: ``start``, one of ``TROUBLES``, or ``oracle``.
        who: ``plain`` vLLM or ``ours``.
        number: of the start, where there are several.
        share: ``--gpu-memory-utilization`` as typed; None: left open.
    """

    model: str
    scenario: str
    who: str
    number: int = 1
    share: float | None = None

    @property
    def name(self) -> str:
        """Unique, and the name of its file."""
        if self.share is not None:
            return f"{self.model}/{self.scenario}-{self.share:.4f}"
        return f"{self.model}/{self.scenario}-{self.who}-{self.number}"

    @property
    def before(self) -> Cell | None:
        """The start that must have served before this one means anything."""
        return Cell(self.model, self.scenario, self.who, self.number - 1) if self.number > 1 else None


def fixed_cells(models: Sequence[str]) -> Iterator[Cell]:
    """All but the oracle's, in their order: the first model gets the troubles, too."""
    for model in models:
        for who, number in STARTS:
            yield Cell(model, "start", who, number)
        if model == models[0]:
            for trouble in TROUBLES:
                for who in SIDES:
                    yield Cell(model, trouble, who)


def oracle_cell(model: str, documents: Mapping[str, Mapping[str, Any]], step: float) -> Cell | None:
    """The next try of the bisection for the largest utilisation with which plain vLLM serves and survives its load.

    Args:
        model: whose.
        documents: all results.
        step: to which it is found.
    """
    tries = {each["share"]: each["survived"] for each in documents.values() if _is_try(each, model)}
    share = next_share(tries, step)
    return None if share is None else Cell(model, ORACLE, "plain", share=share)


def oracle(model: str, documents: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The result of the largest utilisation so far that survived."""
    survived = [each for each in documents.values() if _is_try(each, model) and each["survived"]]
    return max(survived, key=lambda each: float(each["share"]), default=None)


def next_share(tries: Mapping[float, bool], step: float) -> float | None:
    """What to try after ``tries`` (whether each share survived); None when it is known to ``step``, or none works."""
    survived = [share for share, well in tries.items() if well]
    if not survived:
        return next((share for share in TYPED if share not in tries), None)
    works = max(survived)
    fails = min((share for share, well in tries.items() if not well and share > works), default=1.0)
    return None if fails - works <= step else round((works + fails) / 2, 4)


def _is_try(document: Mapping[str, Any], model: str) -> bool:
    return document.get("scenario") == ORACLE and document.get("model") == model and "survived" in document
