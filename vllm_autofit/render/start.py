"""One remembered start as an account that a person can follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.experience.record import Record
from vllm_autofit.render.history import Start, device_text, five_fields, gib, settings_text
from vllm_autofit.render.line import flags
from vllm_autofit.render.options import shown
from vllm_autofit.render.table import wrapped

MEANINGS = {
    "proven": "served under load, and ended well or still serves",
    "works": "came up and served, but little yet",
    "came up": "came up; nothing was served yet",
    "ran out": "ran out of memory while serving",
    "died": "the engine died while serving",
    "won't fit": "didn't come up: too little memory",
    "failed": "didn't come up, and memory wasn't the reason",
    "killed": "its process is gone without a word",
    "starting": "under way",
}
ORIGINS = {
    "own": "started here",
    "imported": "imported",
    "layer": "in a read-only layer (VLLM_AUTOFIT_PROFILES)",
}
FIGURES = (
    ("weights", "weights_bytes"),
    ("activations", "activation_peak_bytes"),
    ("non-torch", "non_torch_bytes"),
    ("CUDA graphs", "cuda_graph_bytes"),
    ("asked", "requested_bytes"),
    ("KV cache", "kv_cache_bytes"),
)
LABEL = 11


def start_account(start: Start, pinned: Mapping[str, Any] | None, width: int | None) -> str:
    """Everything that matters about one start: what it was, who chose what, what was measured, how it ended.

    Args:
        start: the start.
        pinned: the pin of its key, if any, as ``Store.pinned`` has it.
        width: of the terminal; None where there is none.
    """
    record = start.record
    paragraphs = [
        *_who(start),
        *([("pinned", f"{settings_text(pinned['settings'])} ({pinned['note']})")] if pinned else []),
        *_what_went_wrong(record),
        ("", ""),
        ("decisions", ""),
        *_decisions(record),
    ]
    for engine in record["engines"]:
        paragraphs += [("", ""), *_engine(engine)]
    return "\n".join(line for label, text in paragraphs for line in _lines(label, text, width))


def _lines(label: str, text: str, width: int | None) -> list[str]:
    """A label and its text, which goes on below itself; either may be empty."""
    if not label or not text:
        return wrapped(label or text, "  " if text else "", width) or [""]
    first, *rest = wrapped(text, " " * LABEL, width) or [""]
    return [label.ljust(LABEL) + first[LABEL:], *rest]


def _who(start: Start) -> Iterator[tuple[str, str]]:
    identity = start.record["identity"]
    driver = f", driver {identity['driver']}" if identity.get("driver") else ""
    yield "start", f"{start.run_id}  ({start.record['started_at']})"
    yield "model", f"{start.model}  [{identity.get('fingerprint')}]"
    yield "device", device_text(start.record) + driver
    yield "vLLM", f"{identity.get('vllm')}, launched as {identity.get('launch')}"
    yield "key", start.key
    if start.origin != "own":
        yield "from", ORIGINS[start.origin]
    yield "grade", f"{start.grade}: {MEANINGS[start.grade]}"
    yield "outcome", f"{start.record['outcome']['state']}, {start.record['outcome'].get('at', 'time not known')}"


def _what_went_wrong(record: Record) -> Iterator[tuple[str, str]]:
    outcome = record["outcome"]
    ended = outcome.get("ended") or {}
    if ended:
        yield "  ended", f"{ended.get('how')}, {ended.get('at')}"
    for failure in filter(None, (outcome.get("failure"), ended.get("failure"))):
        yield "  phase", str(failure.get("phase"))
        yield "  cause", f"{failure.get('type')}: {failure.get('message')}"


def _decisions(record: Record) -> Iterator[tuple[str, str]]:
    for each in record["plan"].get("decisions", []):
        yield "", f"{each['field']:<24} {shown(each['field'], each['value']):<10} {each['source']:<9} {each['why']}"
    others = {
        name: setting["value"]
        for name, setting in record["settings"].items()
        if name not in FIELDS and setting.get("chosen_by") == "user" and setting.get("value") is not None
    }
    if others:
        yield "", "also set by you: " + ", ".join(f"{name}={shown(name, value)}" for name, value in others.items())
    given = {name: value for name, value in five_fields(record).items() if value is not None}
    if given:
        yield "", f"as flags: {flags(given)}"
    if record["plan"].get("record"):
        yield "", f"planned from the record of start {record['plan']['record']}"


def _engine(engine: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cache = engine.get("kv_cache") or {}
    yield f"engine {engine.get('dp_rank', 0)}", ""
    if {"tokens", "blocks", "block_size", "pool_bytes"} <= cache.keys():
        yield (
            "  KV cache",
            f"{cache['tokens']:,} tokens in {cache['blocks']:,} blocks of {cache['block_size']} "
            f"({gib(cache['pool_bytes'])}), context {engine.get('max_model_len')}",
        )
    yield from _serving(engine.get("serving") or {})
    for rank in engine.get("ranks") or []:
        yield from _rank(rank)


def _serving(serving: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not serving:
        return
    minutes = (serving.get("seconds") or 0) / 60
    usage = serving.get("peak_kv_usage")
    figures = [f"{_count(serving, 'requests')} requests in {minutes:,.1f} minutes"]
    figures += [f"{_count(serving, 'prompt_tokens')} prompt and {_count(serving, 'generated_tokens')} generated tokens"]
    figures += [f"{_count(serving, 'preemptions')} preemptions"]
    figures += [f"at most {usage:.0%} of the KV cache in use"] if isinstance(usage, int | float) else []
    yield "  served", ", ".join(figures)
    for device in serving.get("devices") or []:
        yield (
            "  device",
            f"{device.get('device_index')}: least free {gib(device.get('least_free_bytes'))}, "
            f"at most reserved {gib(device.get('peak_reserved_bytes'))}, "
            f"allocated {gib(device.get('peak_allocated_bytes'))}",
        )


def _count(figures: Mapping[str, Any], name: str) -> str:
    count = figures.get(name)
    return f"{count:,}" if isinstance(count, int) else "unknown"


def _rank(rank: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    label = f"  rank {rank.get('rank')}"
    if "error" in rank:
        yield label, f"could not be measured: {rank['error']}"
        return
    yield label, ", ".join(f"{name} {gib(rank[key])}" for name, key in FIGURES if rank.get(key) is not None)
    before, after = rank.get("before") or {}, rank.get("after") or {}
    notes = "; profiling was skipped" if rank.get("profiling_skipped") else ""
    notes += "; on another node" if rank.get("node") else ""
    yield "", f"{'':9}free {gib(before.get('free_bytes'))} before, {gib(after.get('free_bytes'))} after{notes}"
