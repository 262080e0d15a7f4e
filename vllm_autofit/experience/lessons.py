"""From records to what the next plan needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from vllm_autofit.experience.record import Record
from vllm_autofit.values import Lessons

CONSIDERED = 3
"""Starts that count. On a host, what a start takes varies by some 0.5 GiB with the page cache (vLLM 0.32.0, x86-64)."""


def lessons_from(records: Iterable[Record]) -> Lessons:
    """What the records of one key teach.

    The largest overhead among the newest ``CONSIDERED`` starts that measured one counts, whether they came up or failed
    vLLM's check at start. The largest, because asking for too much fails a start and asking for too little wastes
    some; the newest, so that what a neighbour did meanwhile is forgotten.

    Args:
        records: newest first; read only as far as needed.
    """
    measured = ((overhead, record) for record in records if (overhead := _startup_overhead(record)) is not None)
    newest = list(islice(measured, CONSIDERED))
    if not newest:
        return Lessons()
    overhead, record = max(newest, key=lambda pair: pair[0])
    return Lessons(str(record["run_id"]), overhead, _kv_cache_tokens(record))


def _startup_overhead(record: Record) -> int | None:
    """Free memory when we planned less free memory at the worker's own check, on the device that lost most."""
    at_plan = {device.get("index"): device.get("free_bytes") for device in record["identity"].get("devices", [])}
    losses = [
        free_then - free for index, free in _free_at_check(record) if (free_then := at_plan.get(index)) is not None
    ]
    return max(0, *losses) if losses else None


def _free_at_check(record: Record) -> list[tuple[Any, int]]:
    if record["outcome"]["state"] == "serving":
        found = [
            (rank.get("device_index"), (rank.get("before") or {}).get("free_bytes"))
            for engine in record["engines"]
            for rank in engine.get("ranks", [])
        ]
    else:
        failure = record["outcome"].get("failure") or {}
        if failure.get("phase") != "startup_check":
            return []
        numbers = failure.get("numbers") or {}
        found = [(numbers.get("device_index"), numbers.get("free_bytes"))]
    return [(index, free) for index, free in found if isinstance(free, int)]


def _kv_cache_tokens(record: Record) -> int | None:
    tokens = [(engine.get("kv_cache") or {}).get("tokens") for engine in record["engines"]]
    known = [count for count in tokens if isinstance(count, int)]
    return sum(known) if known else None
