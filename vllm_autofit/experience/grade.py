"""How far a start's settings can be trusted, in one word: from a record and how it ended. Pure."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from vllm_autofit.experience import observed
from vllm_autofit.experience.record import Record

Grade: TypeAlias = Literal["proven", "works", "came up", "ran out", "died", "won't fit", "failed", "killed", "starting"]
"""From the best to the worst, and what isn't known yet.

    proven      served under load, and ended well or still serves
    works       came up and served, but little
    came up     came up; nothing was served yet
    ran out     ran out of memory while serving
    died        the engine died while serving, of something else
    won't fit   didn't come up: there was too little memory
    failed      didn't come up, for another reason
    killed      its process is gone without a word
    starting    under way
"""
GRADES: tuple[Grade, ...] = get_args(Grade)

SIZED_BY_VLLM = ("no_kv_memory", "max_len_too_long")
"""Phases that say by themselves that memory was short: vLLM worked it out (``failures/kinds.py``)."""


def grade(record: Record, ended: str) -> Grade:
    """The grade of one start.

    Args:
        record: one that ``record.check`` let through.
        ended: what ``ending.ending`` says of it.
    """
    if ended == "starting":
        return "starting"
    if ended == "killed":
        return "killed"
    if ended == "out_of_memory":
        return "ran out"
    if ended == "engine_died":
        return "died"
    if ended == "failed":
        return "won't fit" if lacked_memory(record["outcome"].get("failure")) else "failed"
    return _served(record)


def lacked_memory(failure: Any) -> bool:
    """Whether memory is what a start failed for.

    Its record says so (``is_capacity``), unless it is of schema 1: then the phase does, or the exception's words.
    """
    failure = failure or {}
    known = failure.get("is_capacity")
    if isinstance(known, bool):
        return known
    if failure.get("phase") in SIZED_BY_VLLM:
        return True
    from vllm_autofit.failures.classify import classify_log  # few records need it

    return classify_log(f"{failure.get('type')}: {failure.get('message')}".splitlines()).is_capacity


def _served(record: Record) -> Grade:
    """The grade of a start that serves, or that ended well."""
    if observed.requests(record) == 0:
        return "came up"
    return "proven" if observed.bore_load(record) else "works"
