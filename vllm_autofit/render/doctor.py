"""What the doctor found, as an account for people and as a document for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vllm_autofit import __version__
from vllm_autofit.doctor.examination import Examination
from vllm_autofit.doctor.memory import label
from vllm_autofit.doctor.verdict import Verdict, worst
from vllm_autofit.render.table import Column, table, wrapped
from vllm_autofit.units import GIB

HOLDERS = (
    Column("process", 7, 1, right=True),
    Column("GiB", 5, 0, right=True),
    Column("user", 4, 3),
    Column("age", 3, 2, right=True),
    Column("command", 10, 0),
    Column("", 6, 1),
)
SEAMS = (Column("function of vLLM's", 20, 0), Column("state", 7, 0), Column("without it, no", 12, 1))


def doctor_document(found: Examination) -> dict[str, Any]:
    """For ``--format json``."""
    return {
        "verdict": worst(found.verdicts),
        "checks": [asdict(verdict) for verdict in found.verdicts],
        "version": __version__,
        "vllm": found.vllm,
        "backend": found.backend,
        "devices": found.devices,
        "seams": found.seams,
    }


def doctor_account(found: Examination, width: int | None) -> str:
    """For people: the verdicts, the devices and who holds their memory, the seams, and how it adds up.

    Args:
        found: what was found.
        width: of the terminal; None where there is none.
    """
    return "\n".join(
        [
            *_verdicts(found.verdicts, width),
            *_holders(found.devices, width),
            *_seams(found.seams, width),
            "",
            _sum(found.verdicts),
        ]
    )


def _verdicts(verdicts: Sequence[Verdict], width: int | None) -> Iterator[str]:
    size = max(len(verdict.check) for verdict in verdicts)
    for verdict in verdicts:
        head = f"{verdict.level:<7}  {verdict.check:<{size}}  "
        first, *more = wrapped(verdict.says + ".", " " * len(head), width)
        yield head + first.lstrip()
        yield from more
        if verdict.do:
            end = "" if verdict.do.endswith("?") else "."
            yield from wrapped(f"-> {verdict.do}{end}", " " * len(head), width)


def _holders(devices: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    sections = [(f"On {label(device)}", [_holder(each) for each in device["holders"]]) for device in devices]
    return ["", table(HOLDERS, sections, width)] if any(rows for _, rows in sections) else []


def _holder(holder: Mapping[str, Any]) -> tuple[str, ...]:
    size = "?" if holder["bytes"] is None else f"{holder['bytes'] / GIB:.2f}"
    return (
        str(holder["pid"]),
        f"≤{size}" if holder["shared"] else size,
        holder["user"] or "?",
        "?" if holder["age_seconds"] is None else _age(holder["age_seconds"]),
        holder["command"] or "can't be seen from here",
        "orphan" if holder["orphaned"] else "engine" if holder["engine"] else "",
    )


def _age(seconds: int) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _seams(seams: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    rows = [(seam["function"], seam["state"], seam["without"]) for seam in seams]
    return ["", table(SEAMS, [("", rows)], width)] if rows else []


def _sum(verdicts: Sequence[Verdict]) -> str:
    counts = {level: sum(verdict.level == level for verdict in verdicts) for level in ("problem", "note")}
    told = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    return f"{', '.join(told)}." if told else "All is well."
