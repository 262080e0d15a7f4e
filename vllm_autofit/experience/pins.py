"""Settings that the user wants for a key, whatever we would choose: ``pins/<key>.json``.

vllm_autofit_pin    1
key                 whose starts it is for
settings            {field: value}, at least one of the five fields that we may fill
note                the user's own words
at                  when it was pinned, ISO 8601
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.errors import NewerRecordError, PinError, RecordError
from vllm_autofit.experience.record import is_name, now, redact
from vllm_autofit.units import MOST_SEQUENCES, MOST_TOKENS
from vllm_autofit.values import AUTO_CONTEXT

FORMAT = "vllm_autofit_pin"
VERSION = 1


def new_pin(key: str, settings: Mapping[str, object], note: str) -> dict[str, Any]:
    """A pin that ``check_pin`` accepts.

    Raises:
        PinError: naming the first setting that can't be pinned.
    """
    check_settings(settings)
    return {FORMAT: VERSION, "key": key, "settings": dict(settings), "note": redact(note), "at": now()}


def check_pin(document: object, path: str) -> dict[str, Any]:
    """``document`` if it is a pin.

    Raises:
        NewerRecordError: a newer version of us wrote it.
        RecordError: naming the first thing that is wrong.
    """
    if not isinstance(document, dict):
        raise RecordError(path, "it holds no JSON object")
    version = document.get(FORMAT)
    if isinstance(version, int) and version > VERSION:
        raise NewerRecordError(path, version, VERSION)
    if version is not VERSION:
        raise RecordError(path, f"its {FORMAT} is {reprlib.repr(version)}, this version reads {VERSION}")
    if not is_name(document.get("key")):
        raise RecordError(path, f"its key is {reprlib.repr(document.get('key'))}")
    settings = document.get("settings")
    if not isinstance(settings, dict):
        raise RecordError(path, "its settings are no JSON object")
    try:
        check_settings(settings)
    except PinError as error:
        raise RecordError(path, f"{error.field}: {error.problem}") from error
    texts = {name: redact(str(document.get(name, ""))) for name in ("note", "at")}
    return {FORMAT: VERSION, "key": document["key"], "settings": settings, **texts}


def check_settings(settings: Mapping[str, object]) -> None:
    """Nothing, if each setting is one of the five fields and its value is of the field's type and within its range.

    Raises:
        PinError: naming the first that isn't.
    """
    if not settings:
        raise PinError("nothing", f"name at least one of {', '.join(FIELDS)}")
    for name, value in settings.items():
        if name not in FIELDS:
            raise PinError(reprlib.repr(name), f"it is none of {', '.join(FIELDS)}")
        fits, expected = _FIELDS[name]
        if not fits(value):
            raise PinError(name, f"{reprlib.repr(value)} is not {expected}")


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_share(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 < value <= 1  # type: ignore[arg-type, operator]


_FIELDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "gpu_memory_utilization": (_is_share, "a share of the device's memory, above 0 and at most 1"),
    "max_model_len": (
        lambda value: (value == AUTO_CONTEXT and isinstance(value, int)) or _is_whole(value, MOST_TOKENS),
        f"a number of tokens from 1 to {MOST_TOKENS}, or {AUTO_CONTEXT} (what fits)",
    ),
    "enforce_eager": (lambda value: isinstance(value, bool), "true or false"),
    "kv_cache_dtype": (
        lambda value: isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9_]{0,31}", value) is not None,
        "the name of a dtype",
    ),
    "max_num_seqs": (lambda value: _is_whole(value, MOST_SEQUENCES), f"a number from 1 to {MOST_SEQUENCES}"),
}
