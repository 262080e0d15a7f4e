"""One start of vLLM as a JSON record: who, what was asked and planned, what was measured, how it ended.

The document is a plain dictionary with the sections below, so that a person can read the file and another version of
us can keep what it doesn't know. ``check`` is the only door in: what passes it can be used without further looks.
``presentable`` is the only door out: what passes it holds no secret, and nothing too large for ``check``.

    schema      2
    run_id      time and process of the start, unique; also the file's name
    key         the key it is filed under (see experience/key.py)
    started_at  UTC, ISO 8601
    identity    versions, model, devices and their driver, parallel sizes, dtype and quantisation as requested;
                groups: {model, device}, the names under which starts of other keys that are related are found
    settings    every memory knob: {name: {value, chosen_by: user|record|estimate|vllm}}
    plan        budget and reasons of the plan, the record that it started from, own_bytes of the host at that time
    engines     one entry per data-parallel rank: resolved dtype and context, kv_cache, ranks (per worker; node: the
                hashed name of the host of one that isn't the engine core's), seconds, and
                serving: {since, until, seconds, requests, prompt_tokens, generated_tokens, preemptions,
                peak_kv_usage, devices: [{device_index, least_free_bytes, peak_reserved_bytes, peak_allocated_bytes}]}
    outcome     {state: starting|serving|failed|ended, at, phase, pid, pid_started, boot,
                failure: {phase, type, message, numbers}, ended: {how, at, failure}}
                (failed: it never served; ended: it served, then stopped; see experience/ending.py)
    imported    true on a record that another machine made

Schema 1 lacks what issue 4 added, all of which may be missing, so it is read as it is.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import reprlib
import secrets
from typing import Any, TypeAlias

from vllm_autofit.errors import NewerRecordError, RecordError

SCHEMA = 2
STATES = ("starting", "serving", "failed", "ended")
LARGEST_BYTES = 2**50
"""1 PiB. No device or host has more; a figure above it, or below zero, is damage."""
LARGEST_NUMBER = 2**53
"""Whole numbers above it are not the same in every reader of JSON."""
KILLED = "killed"
"""Type of a failure of which no more is known than that a process was killed from outside."""
MESSAGE_LIMIT = 2000
TEXT_LIMIT = 4000
"""Characters of any text; what is longer is cut."""
DEEPEST = 32
"""Levels of a record. Ours has 7; a setting of the user's, such as ``hf_overrides``, adds its own."""

Record: TypeAlias = dict[str, Any]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def new_run_id(after: str = "") -> str:
    """Sorts by time, unique across processes and machines: ``20261121T132647Z-4711-9f3a``.

    Args:
        after: the newest start of the same key. Where the clock went back since, the new one is named a second later
            than that, so that what happened last is also what sorts last.
    """
    stamp = max(datetime.datetime.now(datetime.timezone.utc).strftime(_STAMP), _second_after(after))
    return f"{stamp}-{os.getpid()}-{secrets.token_hex(2)}"


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def is_name(text: object) -> bool:
    """Whether ``text`` can be a run id, a key or a group: it names a file, and never one elsewhere."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


_STAMP = "%Y%m%dT%H%M%SZ"


def stamped(run_id: str) -> datetime.datetime | None:
    """When a start was named, or None if its name doesn't say."""
    try:
        return datetime.datetime.strptime(run_id.partition("-")[0], _STAMP).replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return None


def _second_after(run_id: str) -> str:
    moment = stamped(run_id)
    try:
        return "" if moment is None else (moment + datetime.timedelta(seconds=1)).strftime(_STAMP)
    except OverflowError:  # the last second of the year 9999
        return ""


# The door in


def check(document: object, path: str) -> Record:
    """``document``, of this schema, if it is a record that can be used as it is; texts that are too long are cut.

    Raises:
        NewerRecordError: a newer version of us wrote it.
        RecordError: naming the first thing that is wrong.
    """
    if not isinstance(document, dict):
        raise RecordError(path, "it holds no JSON object")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise RecordError(path, f"its schema is {reprlib.repr(schema)}, this version reads 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise NewerRecordError(path, schema, SCHEMA)
    record: Record = document if schema == SCHEMA else {**document, "schema": SCHEMA}
    texts: list[str] = []
    _check_values(record, path, texts)
    if not _are_showable(texts):
        record = presentable(record)
    _check_shape(record, _SHAPE, path, "it")
    for name in ("run_id", "key"):
        if not is_name(record[name]):
            raise RecordError(path, f"its {name} {reprlib.repr(record[name])} can't name a file")
    if record["outcome"]["state"] not in STATES:
        raise RecordError(path, f"its outcome is {reprlib.repr(record['outcome']['state'])}")
    return record


_NONE = type(None)
_FIGURE = (int, _NONE)
_SECONDS = (int, float, _NONE)
_TEXT = (str, _NONE)
_SWITCH = (bool, _NONE)
_WITH_BOOL = (bool, _SWITCH, object)
"""The kinds that true and false are of; to Python they are numbers, too."""


class _Count:
    """In a shape: a whole number, not below zero, or null."""


_MEMORY = {
    "free_bytes?": _FIGURE,
    "total_bytes?": _FIGURE,
    "own_bytes?": _FIGURE,
    "device_index?": _FIGURE,
}
_FAILURE = {"phase?": _TEXT, "type?": _TEXT, "message?": _TEXT, "numbers?": _MEMORY}
_SERVING = {
    "since?": _TEXT,
    "until?": _TEXT,
    "seconds?": _SECONDS,
    "requests?": _Count,
    "prompt_tokens?": _Count,
    "generated_tokens?": _Count,
    "preemptions?": _Count,
    "peak_kv_usage?": _SECONDS,
    "devices?": [
        {
            "device_index?": _FIGURE,
            "least_free_bytes?": _FIGURE,
            "peak_reserved_bytes?": _FIGURE,
            "peak_allocated_bytes?": _FIGURE,
        }
    ],
}
_SHAPE: dict[str, Any] = {
    "run_id": str,
    "key": str,
    "started_at": str,
    "identity": {
        "devices?": [{"index": int, "free_bytes?": _FIGURE, "total_bytes?": _FIGURE}],
        "driver?": _TEXT,
        "groups?": {"*": str},
    },
    "settings": {"*": dict},
    "plan": {
        "record?": _TEXT,
        "own_bytes?": _FIGURE,
        "decisions?": [{"field": str, "source": str, "why": str, "value": object}],
    },
    "engines": [
        {
            "kv_cache?": {"tokens?": _Count, "blocks?": _Count, "block_size?": _Count, "pool_bytes?": _FIGURE},
            "enforce_eager?": _SWITCH,
            "ranks?": [
                {
                    "device_index?": _FIGURE,
                    "node?": _TEXT,
                    "before?": _MEMORY,
                    "after?": _MEMORY,
                    "profiling_skipped?": _SWITCH,
                }
            ],
            "serving?": _SERVING,
        }
    ],
    "outcome": {
        "state": str,
        "at?": _TEXT,
        "phase?": _TEXT,
        "pid?": _Count,
        "pid_started?": _SECONDS,
        "boot?": _TEXT,
        "host?": _TEXT,
        "pid_space?": _TEXT,
        "failure?": _FAILURE,
        "later?": [_FAILURE],
        "ended?": {"how": str, "at?": _TEXT, "failure?": _FAILURE},
    },
    "imported?": bool,
}
"""What readers rely on. A name with ``?`` may be missing, and an object under it null; ``*`` is any name; what isn't
named may be there too."""


def _check_shape(node: object, shape: Any, path: str, name: str) -> None:
    if isinstance(shape, list):
        _check_type(node, list, path, name)
        for item in node:  # type: ignore[attr-defined]
            _check_shape(item, shape[0], path, f"an entry of {name}")
    elif isinstance(shape, dict):
        _check_type(node, dict, path, name)
        for key, part in shape.items():
            _check_part(node, key, part, path)
    elif shape is _Count:
        _check_type(node, _FIGURE, path, name)
        if node is not None and node < 0:  # type: ignore[operator]
            raise RecordError(path, f"{name} is {node!r}")
    else:
        _check_type(node, shape, path, name)


def _check_part(node: Any, key: str, shape: Any, path: str) -> None:
    if key == "*":
        for name, value in node.items():
            if type(value) is not shape:
                _check_shape(value, shape, path, f"'{name}'")
        return
    name = key.removesuffix("?")
    if name not in node:
        if name == key:
            raise RecordError(path, f"'{name}' is missing")
        return
    if node[name] is None and name != key and isinstance(shape, dict):
        return
    _check_shape(node[name], shape, path, f"'{name}'")


def _check_type(node: object, kind: Any, path: str, name: str) -> None:
    if isinstance(node, kind) and (not isinstance(node, bool) or kind in _WITH_BOOL):
        return
    wanted = "/".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
    raise RecordError(path, f"{name} is not a {wanted}")


def _check_values(
    node: dict[str, Any] | list[Any], path: str, texts: list[str], name: str = "", level: int = 0
) -> None:
    """Collect every text; a number that can't be, or too many levels, is an error."""
    if level > DEEPEST:
        raise RecordError(path, "it is nested too deeply")
    if isinstance(node, dict):
        texts.extend(node)
    for key, value in node.items() if isinstance(node, dict) else [(name, each) for each in node]:
        if isinstance(value, str) and not key.endswith("_bytes"):
            texts.append(value)
        elif isinstance(value, (dict, list)):
            _check_values(value, path, texts, key, level + 1)
        elif value is not None and not _is_possible(value, key):
            raise RecordError(path, f"{reprlib.repr(key)[1:-1] or 'a value'} is {reprlib.repr(value)}")


def _is_possible(value: object, name: str) -> bool:
    """Whether a value that is no text, list or object may stand under ``name``."""
    if value is None:
        return True
    if name.endswith("_bytes"):
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_BYTES
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -LARGEST_NUMBER <= value <= LARGEST_NUMBER


def _are_showable(texts: list[str]) -> bool:
    together = "".join(texts)
    short = max(map(len, texts)) <= TEXT_LIMIT
    return short and (together.isprintable() or _UNPRINTABLE.search(together) is None)


# The door out


def presentable(document: object, name: str = "", level: int = 0) -> Any:
    """A copy of ``document`` fit to be written: plain JSON, texts redacted and cut, impossible figures null."""
    if isinstance(document, dict):
        if level > DEEPEST:
            return "..."
        return {redact(str(key)): _presentable_part(value, str(key), level + 1) for key, value in document.items()}
    if isinstance(document, (list, tuple, set, frozenset)):
        return "..." if level > DEEPEST else [presentable(value, name, level + 1) for value in document]
    if isinstance(document, (bool, int, float, type(None))):
        return _plain(document) if _is_possible(document, name) else None
    return None if name.endswith("_bytes") else redact(document if isinstance(document, str) else str(document))


def _presentable_part(value: object, name: str, level: int) -> Any:
    if isinstance(value, str) and value and _SECRET_NAME.search(name):
        return _GONE
    return presentable(value, name, level)


def _plain(value: float | None) -> float | None:
    """Without the class of its own that a number of vLLM's or of torch's may have."""
    for kind in (bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    return None


def redact(text: str) -> str:
    """``text`` without tokens and passwords, without what a terminal would obey, and no longer than ``TEXT_LIMIT``."""
    text = str.__str__(text)[: 2 * TEXT_LIMIT]
    if len(text) >= _SHORTEST_TOKEN or not (text.isidentifier() or len(text) < _SHORTEST_SECRET):
        for pattern, replacement in _SECRETS:
            text = pattern.sub(replacement, text)
    if not text.isprintable():
        text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 3] + "..."


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but line feed and tab, characters that turn the direction of writing, lone surrogates."""

_GONE = "***"
"""Too short to be taken for a secret itself when a record is written again."""
_SHORTEST_SECRET, _SHORTEST_TOKEN = 8, 16
"""Characters of the shortest text that ``_SECRETS`` find anything in, and of one that is a single word."""
_SECRET_NAME = re.compile(r"(?i)(?:token|secret|passw(?:or)?d|api[-_]?key|access[-_]?key)$")
_SECRETS = (
    # tokens that show by how they begin: Hugging Face, GitHub, GitLab, OpenAI and others, Slack, NVIDIA, AWS, JWT
    (
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{16,}|(?:gh[a-z]|github_pat|glpat|sk|xox[a-z]|nvapi)[-_][\w-]{16,}"
            r"|AKIA[0-9A-Z]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?)"
        ),
        _GONE,
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {_GONE}"),
    # user:password@ in an address
    (re.compile(r"(://)[^/\s@'\"]+@"), rf"\1{_GONE}@"),
    # what is named as a secret: ?token=..., api_key=..., "password": "...", HF_TOKEN=... ("tokens" is none)
    (
        re.compile(
            r"(?i)((?:token|secret|passw(?:or)?d|api[-_]?key|access[-_]?key(?:[-_]id)?|signature|[?&]sig|[?&]key)"
            r"['\"]?\s*[=:]\s*['\"]?)[^\s&'\",;)}\]]{4,}"
        ),
        rf"\1{_GONE}",
    ),
)
