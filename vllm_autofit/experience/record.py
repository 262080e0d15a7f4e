"""One start of vLLM as a JSON record: who, what was asked and planned, what was measured, how it ended.

The document is a plain dictionary with the sections below, so that a person can read the file and another version of
us can keep what it doesn't know. ``check`` is the only door in: what passes it can be used without further looks.

    schema      1
    run_id      time and process of the start, unique; also the file's name
    key         the key it is filed under (see experience/key.py)
    started_at  UTC, ISO 8601
    identity    versions, model, devices, parallel sizes, dtype and quantisation as requested
    settings    every memory knob: {name: {value, chosen_by: user|record|estimate|vllm}}
    plan        budget and reasons of the plan, and the record that it started from
    engines     one entry per data-parallel rank: resolved dtype and context, kv_cache, ranks (per worker), seconds
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
    try:
        _check_figures(document, path)
        _check_shape(document, _SHAPE, path, "it")
    except RecursionError as error:
        raise RecordError(path, "it is nested too deeply") from error
    if document["outcome"]["state"] not in STATES:
        raise RecordError(path, f"its outcome is {document['outcome']['state']!r}")
    return document


_COUNT = (int, type(None))
_TEXT = (str, type(None))
_MEMORY = {"free_bytes?": _COUNT, "total_bytes?": _COUNT, "device_index?": _COUNT}
_SHAPE: dict[str, Any] = {
    "run_id": str,
    "key": str,
    "started_at": str,
    "identity": {"devices?": [{"index": int, "free_bytes?": _COUNT}]},
    "settings": {"*": {}},
    "plan": {"record?": _TEXT, "decisions?": [{"field": str, "source": str, "why": str, "value": object}]},
    "engines": [
        {
            "kv_cache?": {"tokens?": int, "blocks?": int, "block_size?": int, "pool_bytes?": int},
            "ranks?": [{"device_index?": _COUNT, "before?": _MEMORY, "after?": _MEMORY}],
        }
    ],
    "outcome": {"state": str, "failure?": {"phase?": _TEXT, "type?": _TEXT, "message?": _TEXT, "numbers?": _MEMORY}},
}
"""What readers rely on. A name with ``?`` may be missing, and an object or list under it null; ``*`` is any name;
what isn't named may be there too."""


def _check_shape(node: object, shape: Any, path: str, name: str) -> None:
    if isinstance(shape, list):
        _check_type(node, list, path, name)
        for item in node:  # type: ignore[attr-defined]
            _check_shape(item, shape[0], path, f"an entry of {name}")
    elif isinstance(shape, dict):
        _check_type(node, dict, path, name)
        for key, part in shape.items():
            _check_part(node, key, part, path)
    else:
        _check_type(node, shape, path, name)


def _check_part(node: Any, key: str, shape: Any, path: str) -> None:
    if key == "*":
        for name, value in node.items():
            _check_shape(value, shape, path, repr(name))
        return
    name = key.removesuffix("?")
    if name not in node:
        if name == key:
            raise RecordError(path, f"{name!r} is missing")
        return
    if node[name] is None and name != key and isinstance(shape, dict):
        return
    _check_shape(node[name], shape, path, repr(name))


def _check_type(node: object, kind: Any, path: str, name: str) -> None:
    wrong_number = isinstance(node, bool) and kind in (int, _COUNT)
    if wrong_number or not isinstance(node, kind):
        wanted = "/".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise RecordError(path, f"{name} is not a {wanted}")


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
