"""A line of a log -> who wrote it, how loud, and what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

LONGEST = 16_384
"""Characters of a line that are read. vLLM's longest message that matters, PyTorch's, has less than 1000."""

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SOURCE = re.compile(r"\((\w[^()]{0,60}pid=\d+[^)]{0,40})\) ?|\[(rank\d+)\]:? ?")
"""Whose line it is: ``(EngineCore_DP0 pid=123)``, ``(VllmWorker rank=3 pid=12)``, Ray's ``(RayWorker pid=5, ip=...)``,
PyTorch's ``[rank0]:``."""
LEVEL = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL)(?::\s+|\s+(?:\d\d-\d\d|\d{4}-\d\d-\d\d)[ T][\d:.,]+\s+)")
"""vLLM's ``ERROR 01-02 03:04:05 ``, and uvicorn's ``INFO:     ``."""
PLACE = re.compile(r"(?:\[[\w./-]+:\d+\]|[\w./-]+\.py:\d+\]) ?")
"""``[core.py:718] ``, and ``engine.py:366] `` before vLLM 0.8."""


class Line(NamedTuple):
    """One line.

    Attributes:
        source: the process that wrote it, as the log names it; empty if it doesn't.
        level: upper case; empty if the line has none.
        text: what is left. Its indentation is kept.
    """

    source: str
    level: str
    text: str


def read_line(raw: str) -> Iterator[Line]:
    """The line without colours and prefixes; several if it is a JSON object with text of several lines."""
    raw = raw[:LONGEST].rstrip()
    if "\x1b" in raw:
        raw = ANSI.sub("", raw)
    if raw.startswith("{") and raw.endswith("}"):
        fields = _fields(raw)
        if fields is not None:
            yield from _from_json(fields)
            return
    yield _plain(raw)


def _plain(raw: str) -> Line:
    source = level = ""
    text = raw
    head = raw[:200]  # another program may have put its own time stamp in front
    start = SOURCE.search(head) if "pid=" in head or "[rank" in head else None
    if start:
        source, text = start[1] or start[2], raw[start.end() :]
    found = LEVEL.search(text, 0, 120)
    if found:
        level, text = found[1], text[found.end() :]
    place = PLACE.match(text) if found else None
    return Line(source, level, text[place.end() :] if place else text)


def _fields(raw: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(raw)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None


def _from_json(fields: dict[str, Any]) -> Iterator[Line]:
    """The texts of a structured log's record (``message``, ``exc_info``, Docker's ``log``), as plain lines."""
    level = next((str(fields[key]).upper() for key in ("level", "levelname", "severity") if key in fields), "")
    for value in fields.values():
        if isinstance(value, str) and len(value) > len(level):
            for each in value.splitlines():
                line = _plain(ANSI.sub("", each))
                yield Line(line.source, line.level or level, line.text)
