"""Which starts the words of a command mean."""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from vllm_autofit.cli.history.opened import HOW_TO_LIST
from vllm_autofit.errors import FlagError
from vllm_autofit.render.history import Start, moment

SHORTEST_BEGINNING = 4
"""Characters from which on a word may be the beginning of a start or a key: a year, at least."""
NAMED = 5
"""Starts that a message names."""
UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def selected(
    starts: Sequence[Start], words: Iterable[str], older_than: datetime.timedelta | None, now: datetime.datetime
) -> list[Start]:
    """The starts that any of ``words`` means (all of them, without a word) and that are old enough.

    Raises:
        FlagError: a word that means none, or the beginning of several.
    """
    words = list(words)
    meant = {start.run_id for word in words for start in meant_by(starts, word)}
    chosen = [start for start in starts if not words or start.run_id in meant]
    return chosen if older_than is None else [start for start in chosen if now - last_sign(start, now) > older_than]


def meant_by(starts: Sequence[Start], word: str) -> list[Start]:
    """The starts of a start, key or model that is called ``word``, or of the only start or key that begins so.

    Raises:
        FlagError: there is none, or it is the beginning of several.
    """
    called = [start for start in starts if word in (start.run_id, start.key, start.model, PurePath(start.model).name)]
    if called:
        return called
    begin = {name for start in starts for name in (start.run_id, start.key) if name.startswith(word)}
    if len(word) < SHORTEST_BEGINNING or not begin:
        raise FlagError(repr(word), "no start, key or model of that name is remembered", HOW_TO_LIST)
    if len(begin) > 1:
        several = few(sorted(begin, reverse=True))
        raise FlagError(repr(word), f"{len(begin)} starts or keys begin so", f"Name one: {several}")
    return [start for start in starts if begin & {start.run_id, start.key}]


def last_sign(start: Start, now: datetime.datetime) -> datetime.datetime:
    """When a start was last heard of; ``now`` where its record names no time, so that it never counts as old."""
    outcome = start.record["outcome"]
    served = [(engine.get("serving") or {}).get("until") for engine in start.record["engines"]]
    ended = (outcome.get("ended") or {}).get("at")
    times = [moment(text) for text in (start.record["started_at"], outcome.get("at"), ended, *served)]
    return max((time for time in times if time is not None), default=now)


def age(text: str) -> datetime.timedelta:
    """An age as it is typed: ``30d``, ``12h``, ``2w``. A type of ``argparse``."""
    match = re.fullmatch(r"(\d{1,6})([hdw])", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 12h, 30d or 8w")
    return datetime.timedelta(**{UNITS[match[2]]: int(match[1])})


def few(names: Sequence[str]) -> str:
    """The first of many names."""
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
