"""The starts that are remembered, as a table for people and as a document for programs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.experience.grade import Grade
from vllm_autofit.experience.record import Record
from vllm_autofit.render.options import shown
from vllm_autofit.render.table import Column, table
from vllm_autofit.units import GIB

FAMILIES: Mapping[str, tuple[str, tuple[Grade, ...]]] = {
    "works": ("Known to work", ("proven", "works", "came up")),
    "wont_fit": ("Won't fit", ("won't fit",)),
    "failed": ("Failed, or cut short", ("failed", "ran out", "died", "killed")),
    "under_way": ("Under way", ("starting",)),
}
"""What a list is divided into: name in documents, title, grades."""

COLUMNS = (
    Column("start", least=17, rank=0),
    Column("grade", least=9, rank=1),
    Column("model", least=10, rank=2),
    Column("device", least=12, rank=6),
    Column("settings", least=22, rank=4),
    Column("KV tokens", least=9, rank=3, right=True),
    Column("when", least=7, rank=7),
    Column("from", least=5, rank=5),
)
PIN_COLUMNS = (
    Column("pinned key", least=16),
    Column("model", least=8, rank=1),
    Column("settings", least=12),
    Column("note", least=8, rank=2),
)
MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Start:
    """One remembered start as it is shown: its record, its grade, and where the record comes from."""

    record: Record
    grade: Grade
    origin: str
    """``own``, ``imported`` or ``layer``, as ``Store.origin`` says."""

    @property
    def run_id(self) -> str:
        """The start."""
        return str(self.record["run_id"])

    @property
    def key(self) -> str:
        """What it is filed under."""
        return str(self.record["key"])

    @property
    def model(self) -> str:
        """As it was named."""
        return str(self.record["identity"].get("model") or "-")

    @property
    def family(self) -> str:
        """Its part of the list."""
        return next(name for name, (_, grades) in FAMILIES.items() if self.grade in grades)


def history_table(
    starts: Sequence[Start], pins: Mapping[str, Mapping[str, Any]], now: datetime.datetime, width: int | None
) -> str:
    """One row per start, in the order given, by what came of them; then what is pinned.

    Args:
        starts: newest first.
        pins: by key, as ``Store.pins`` has them.
        now: what the starts' times are compared with.
        width: of the terminal; None where there is none.
    """
    foreign = any(start.origin != "own" for start in starts)
    columns = COLUMNS if foreign else COLUMNS[:-1]
    sections = [
        (title, [_row(start, now)[: len(columns)] for start in starts if start.family == family])
        for family, (title, _) in FAMILIES.items()
    ]
    parts = [table(columns, sections, width)] if starts else []
    return "\n\n".join([*parts, *([pins_table(pins, starts, width)] if pins else [])])


def pins_table(pins: Mapping[str, Mapping[str, Any]], starts: Sequence[Start], width: int | None) -> str:
    """What is pinned, by key."""
    models = {start.key: PurePath(start.model).name for start in reversed(starts)}
    rows = [(key, models.get(key, "-"), settings_text(pin["settings"]), pin["note"]) for key, pin in pins.items()]
    return table(PIN_COLUMNS, [("", rows)], width)


def history_document(starts: Sequence[Start], pins: Mapping[str, Mapping[str, Any]], folder: str) -> dict[str, Any]:
    """The same as JSON; ``docs/history.md`` says what stands in it."""
    return {
        "folder": folder,
        "starts": [_summary(start) for start in starts],
        "pins": [dict(pin) for pin in pins.values()],
    }


def start_document(start: Start, pinned: Mapping[str, Any] | None) -> dict[str, Any]:
    """One start as JSON: its summary and its record."""
    return {
        "start": _summary(start),
        "pinned": None if pinned is None else dict(pinned),
        "record": start.record,
    }


def kv_tokens(record: Record) -> int | None:
    """Tokens in the KV caches of all engines of a start; None where nothing was measured."""
    counts = [(engine.get("kv_cache") or {}).get("tokens") for engine in record["engines"]]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if known else None


def five_fields(record: Record) -> dict[str, Any]:
    """The values of the five fields as vLLM got them. None: vLLM's default."""
    return {name: (record["settings"].get(name) or {}).get("value") for name in FIELDS}


def used_fields(record: Record) -> dict[str, Any]:
    """The five fields as vLLM got them; what was left to vLLM is what it came to. None where nobody knows."""
    engine: Record = next(iter(record["engines"]), {})
    return {name: engine.get(name) if value is None else value for name, value in five_fields(record).items()}


def settings_text(settings: Mapping[str, Any]) -> str:
    """Field values in a few words, without those that are vLLM's default."""
    context = settings.get("max_model_len")
    cache, sequences = settings.get("kv_cache_dtype"), settings.get("max_num_seqs")
    utilization = settings.get("gpu_memory_utilization")
    parts = (
        utilization is not None and f"util {utilization}",
        context is not None and f"ctx {shown('max_model_len', context)}",
        settings.get("enforce_eager") is True and "eager",
        cache not in (None, "auto") and f"kv {cache}",
        sequences is not None and f"{sequences} seqs",
    )
    return ", ".join(part for part in parts if part) or "-"


def device_text(record: Record) -> str:
    """The devices of a start: how many, and which."""
    names = [str(device.get("name") or f"device {device['index']}") for device in record["identity"].get("devices", [])]
    if not names:
        return "-"
    several = f"{len(names)} x " if len(names) > 1 else ""
    return several + " + ".join(dict.fromkeys(names))


def moment(text: object) -> datetime.datetime | None:
    """A time as records have it, or None where it isn't one."""
    try:
        time = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)


def ago(text: object, now: datetime.datetime) -> str:
    """How long ago, roughly. A date where a clock was changed in between."""
    time = moment(text)
    if time is None:
        return "-"
    seconds = (now - time).total_seconds()
    if seconds < -MINUTE:
        return f"{time:%Y-%m-%d}"
    if seconds < MINUTE:
        return "just now"
    if seconds < HOUR:
        return f"{seconds // MINUTE:.0f} min ago"
    return f"{seconds // HOUR:.0f} h ago" if seconds < 2 * DAY else f"{seconds // DAY:.0f} d ago"


def gib(value: Any) -> str:
    """Bytes for people."""
    return f"{value / GIB:.2f} GiB" if isinstance(value, int) else "not measured"


def _row(start: Start, now: datetime.datetime) -> tuple[str, ...]:
    record = start.record
    failure = record["outcome"].get("failure") or {}
    phase = f" ({failure['phase']})" if failure.get("phase") else ""
    tokens = kv_tokens(record)
    return (
        start.run_id,
        start.grade + phase,
        PurePath(start.model).name,
        device_text(record),
        settings_text(_used(record)),
        "-" if tokens is None else f"{tokens:,}",
        ago(record["started_at"], now),
        start.origin,
    )


def _used(record: Record) -> dict[str, Any]:
    """The five fields; a context that vLLM fitted is the one it came to, and what was left to it stays away."""
    settings = record["settings"]
    used = {
        name: value
        for name, value in five_fields(record).items()
        if (settings.get(name) or {}).get("chosen_by") != "vllm" or name == "gpu_memory_utilization"
    }
    fitted = next((engine.get("max_model_len") for engine in record["engines"]), None)
    return used if fitted is None else {**used, "max_model_len": fitted}


def _summary(start: Start) -> dict[str, Any]:
    record = start.record
    failure = record["outcome"].get("failure")
    identity = record["identity"]
    serving = [engine["serving"] for engine in record["engines"] if engine.get("serving")]
    return {
        "run_id": start.run_id,
        "key": start.key,
        "started_at": record["started_at"],
        "grade": start.grade,
        "family": start.family,
        "origin": start.origin,
        "model": identity.get("model"),
        "vllm": identity.get("vllm"),
        "devices": [
            {"name": device.get("name"), "total_bytes": device.get("total_bytes")}
            for device in identity.get("devices", [])
        ],
        "settings": five_fields(record),
        "chosen_by": {name: (record["settings"].get(name) or {}).get("chosen_by") for name in FIELDS},
        "max_model_len": next((engine.get("max_model_len") for engine in record["engines"]), None),
        "kv_cache_tokens": kv_tokens(record),
        "requests": sum(each.get("requests") or 0 for each in serving) if serving else None,
        "seconds_served": max(each.get("seconds") or 0 for each in serving) if serving else None,
        "failure": None if not failure else {name: failure.get(name) for name in ("phase", "type", "message")},
    }
