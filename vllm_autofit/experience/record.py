"""One start of vLLM as a JSON record: who, what was asked and planned, what was measured, how it ended.

The document is a plain dictionary with the sections below, so that a person can read the file and another version of
us can keep what it doesn't know. ``check`` is the only door in: what passes it can be used without further looks.

    schema      1
    run_id      time and process of the start, unique; also the file's name
    key         the key it is filed under (see experience/key.py)
    started_at  UTC, ISO 8601
    identity    versions, model, devices, parallel sizes, resolved dtype and quantisation
    settings    every memory knob: {name: {value, chosen_by: user|record|estimate|vllm}}
    plan        budget and reasons of the plan, and the record that it started from
    engines     one entry per data-parallel rank: kv_cache, ranks (per worker), seconds
    outcome     {state: starting|serving|failed, at, failure: {phase, type, message, numbers}}
"""

from __future__ import annotations

import datetime
import os
import secrets
from typing import Any, TypeAlias

from vllm_autofit.errors import RecordError

SCHEMA = 1
STATES = ("starting", "serving", "failed")
LARGEST_BYTES = 2**50
"""1 PiB. No device or host has more; a figure above it, or below zero, is damage."""
MESSAGE_LIMIT = 2000

Record: TypeAlias = dict[str, Any]


def new_run_id() -> str:
    """Sorts by time, unique across processes and machines: ``20261121T132647Z-4711-9f3a``."""
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{os.getpid()}-{secrets.token_hex(2)}"


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def check(document: object, path: str) -> Record:
    """``document`` if it is a record that can be used as it is.

    Raises:
        RecordError: naming the first thing that is wrong.
    """
    if not isinstance(document, dict):
        raise RecordError(path, "it holds no JSON object")
    if document.get("schema") != SCHEMA:
        raise RecordError(path, f"its schema is {document.get('schema')!r}, this version reads {SCHEMA}")
    for name, kind in _SECTIONS.items():
        if not isinstance(document.get(name), kind):
            raise RecordError(path, f"{name!r} is missing or not a {kind.__name__}")
    if document["outcome"].get("state") not in STATES:
        raise RecordError(path, f"its outcome is {document['outcome'].get('state')!r}")
    _check_figures(document, path)
    return document


_SECTIONS = {
    "run_id": str,
    "key": str,
    "started_at": str,
    "identity": dict,
    "settings": dict,
    "plan": dict,
    "engines": list,
    "outcome": dict,
}


def _check_figures(node: object, path: str, name: str = "") -> None:
    """Every figure named ``*_bytes`` must be a possible number of bytes, or null."""
    if isinstance(node, dict):
        for key, value in node.items():
            _check_figures(value, path, str(key))
    elif isinstance(node, list):
        for value in node:
            _check_figures(value, path, name)
    elif name.endswith("_bytes") and node is not None and not _is_bytes(node):
        raise RecordError(path, f"{name} is {node!r}")


def _is_bytes(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_BYTES
