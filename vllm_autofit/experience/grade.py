"""How far a start's settings can be trusted, in one word: from a record and how it ended. Pure."""

from __future__ import annotations

import re
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
"""Phases that say by themselves that memory was short: vLLM worked it out (``failures/phase.py``)."""
OUT_OF_MEMORY_TYPES = ("OutOfMemoryError", "MemoryError")
OUT_OF_MEMORY_WORDS = re.compile(
    r"out of memory|less than desired|less than requested memory|not enough memory"
    r"|can(no|')t allocate memory|ALLOC_FAILED|bad_alloc",
    re.IGNORECASE,
)
"""How vLLM 0.11 to 0.33 (its check at start, its sampler's warm-up), torch's allocators, CUDA's libraries and the
operating system say that memory ran out. Other failures happen in the same phases: a start that is interrupted while
the KV cache is allocated (``RuntimeError: cancelled``), a device that is not there."""


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

    Its record may say so itself (``is_capacity``); else vLLM's own words do, or an exception that means nothing else.
    """
    failure = failure or {}
    if isinstance(failure.get("is_capacity"), bool):
        return bool(failure["is_capacity"])
    if failure.get("phase") in SIZED_BY_VLLM or failure.get("type") in OUT_OF_MEMORY_TYPES:
        return True
    return OUT_OF_MEMORY_WORDS.search(str(failure.get("message"))) is not None


def _served(record: Record) -> Grade:
    """The grade of a start that serves, or that ended well."""
    if observed.requests(record) == 0:
        return "came up"
    return "proven" if observed.bore_load(record) else "works"
