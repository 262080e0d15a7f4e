"""A failed attempt, a failed start and an engine that died in one line each, a refused start in a few: why, and what
to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_autofit.render.options import shown
from vllm_autofit.units import GIB

Failure = Mapping[str, Any]
"""As a record keeps it: phase, is_capacity, cause, numbers, remedies."""

FIGURES = (
    ("{} asked for", "requested_bytes"),
    ("{} needed", "kv_needed_bytes"),
    ("{} tried", "tried_bytes"),
    ("{} left for the KV cache", "kv_available_bytes"),
    ("{} free", "free_bytes"),
)
"""What is worth saying, in this order, where a failure knows it."""
MOST_FIGURES = 3


def attempt_line(number: int, failure: Failure, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Why attempt ``number`` failed and what the next one does otherwise."""
    changes = ", ".join(
        f"{name}={shown(name, value)} instead of {shown(name, before[name])}"
        for name, value in after.items()
        if value != before[name]
    )
    changes = changes or "the same settings: what was missing is free now"
    return f"attempt {number} failed: {_why(failure)} Trying again with {changes}."


def last_line(failure: Failure, *, attempts: int, taught: bool, only_once: str = "") -> str:
    """What the user reads last.

    Args:
        failure: of the last attempt.
        attempts: how many there were.
        taught: whether the next start plans otherwise because of it.
        only_once: why no other attempt is made, where other settings might do.
    """
    parts = [_why(failure)]
    if attempts > 1:
        parts.append(f"It was tried {attempts} times.")
    if only_once:
        parts.append(f"It isn't tried again by itself: {only_once}.")
    for remedy in failure.get("remedies", ())[:1]:
        parts.append(f"What helps: {_shown(remedy)}.")
    if taught:
        parts.append("The next start knows, and plans for it.")
    return " ".join(parts)


def death_line(failure: Failure, requests: int, least_free_bytes: int | None, next_start: str) -> str:
    """What the user reads when an engine dies while it serves.

    Args:
        failure: why.
        requests: what it had answered until then.
        least_free_bytes: of a device, as far as anybody looked.
        next_start: a sentence, or nothing.
    """
    parts = [f"The engine died while it served, after {requests} requests. {_why(failure)}"]
    if failure.get("is_capacity") and least_free_bytes is not None:
        parts.append(f"The least that was seen free: {least_free_bytes / GIB:.2f} GiB.")
    for remedy in failure.get("remedies", ())[:1]:
        parts.append(f"What helps: {_shown(remedy)}.")
    return " ".join([*parts, next_start]).strip()


def _why(failure: Failure) -> str:
    cause = _first_line(failure.get("cause"))
    if failure.get("is_capacity"):
        figures = ", ".join(_figures(failure.get("numbers") or {}))
        return f"{cause} ({figures})." if figures else f"{cause}."
    said = _first_line(failure.get("message"))
    own = f"{failure.get('type')}: {said}" if said else str(failure.get("type"))
    return f"{own}. {cause}." if cause and said not in cause else f"{own}."


def _first_line(text: object) -> str:
    return next(iter(str(text or "").strip().splitlines()), "").removesuffix(".")


def _figures(numbers: Mapping[str, Any]) -> list[str]:
    known = [(words, numbers[name]) for words, name in FIGURES if isinstance(numbers.get(name), int)]
    return [words.format(f"{value / GIB:.2f} GiB") for words, value in known[:MOST_FIGURES]]


def _shown(remedy: Mapping[str, Any]) -> str:
    return f"{remedy['change']} ({remedy['flag']})" if remedy["flag"] else str(remedy["change"])


def refusal_text(reasons: Sequence[str], remedies: Sequence[str], holders: Sequence[str]) -> str:
    """Why a start isn't made, who holds the memory, and what would help."""
    lines = [f"vllm-autofit doesn't start this, since it can't succeed: {'; '.join(reasons)}."]
    if holders:
        lines.append(f"  Memory is held by {'; '.join(holders)}.")
    lines += [f"  {number}. {remedy}" for number, remedy in enumerate(remedies, 1)]
    lines.append("  VLLM_AUTOFIT_REFUSE=0 starts it all the same.")
    return "\n".join(lines)


def holder_text(pid: int, held_bytes: int | None, command: str, user: str) -> str:
    """One process that holds memory."""
    who = command or "a process that can't be seen from here"
    whose = f", user {user}" if user else ""
    size = "an unknown amount" if held_bytes is None else f"{held_bytes / GIB:.2f} GiB"
    return f"{who} (process {pid}{whose}): {size}"
