"""One thing that was looked at, what came of it, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Verdict:
    """A verdict.

    Attributes:
        level: ``note``: nothing is wrong, but you may want to know; ``problem``: something you asked for doesn't work.
        check: what was looked at.
        says: what was found, as a sentence without its full stop.
        do: what to do about it; empty where there is nothing to do.
    """

    level: Level
    check: str
    says: str
    do: str = ""


def worst(verdicts: list[Verdict]) -> Level:
    """The gravest level among them."""
    levels = {verdict.level for verdict in verdicts}
    return "problem" if "problem" in levels else "note" if "note" in levels else "ok"
