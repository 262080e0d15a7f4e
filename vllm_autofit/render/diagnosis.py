"""Why something failed, as an account for people and as a document for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vllm_autofit.failures.failure import Failure, Remedy
from vllm_autofit.render.table import wrapped
from vllm_autofit.units import GIB, MIB

MEMORY = {
    "device": "device memory",
    "host": "the machine's memory",
    "shm": "/dev/shm",
    "shared_mem_per_block": "on-chip memory of the device",
    "none": "no memory",
}
INDENT = "  "


def diagnosis_document(failure: Failure) -> dict[str, Any]:
    """For ``--format json``."""
    return {
        "is_capacity_failure": failure.is_capacity,
        "resource": failure.resource,
        "phase": failure.phase,
        "numbers": dict(failure.numbers),
        "cause": failure.cause,
        "remedies": [asdict(remedy) for remedy in failure.remedies],
        "confidence": failure.confidence,
    }


def diagnosis_account(failure: Failure, width: int | None) -> str:
    """For people: the cause, its figures, the one thing to change, and what else helps.

    Args:
        failure: what was found.
        width: of the terminal; None where there is none.
    """
    what = f"out of {MEMORY[failure.resource]}" if failure.is_capacity else "not a lack of memory"
    lines = [
        *wrapped(failure.cause, "", width),
        *wrapped(f"{what}; phase {failure.phase}; confidence {failure.confidence}", INDENT, width),
    ]
    if failure.numbers:
        size = max(len(_label(name)) for name in failure.numbers)
        lines += [
            "",
            *(
                f"{INDENT}{_label(name):<{size}}{INDENT}{_figure(name, value)}"
                for name, value in failure.numbers.items()
            ),
        ]
    if failure.remedies:
        first, *others = failure.remedies
        lines += ["", *wrapped(f"Change: {_remedy(first)}", "", width)]
        for other in others:
            lines += wrapped(f"or: {_remedy(other)}", INDENT, width)
    return "\n".join(lines)


def _remedy(remedy: Remedy) -> str:
    what = f"{remedy.flag} ({remedy.change})" if remedy.flag else remedy.change
    return f"{what}: {remedy.why}"


def _label(name: str) -> str:
    return name.removesuffix("_bytes").replace("_", " ")


def _figure(name: str, value: float) -> str:
    if not name.endswith("_bytes"):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return f"{value / GIB:.2f} GiB" if abs(value) >= GIB else f"{value / MIB:.2f} MiB"
