"""Records as a table, and one record as an account that a person can follow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from vllm_autofit.render.options import shown
from vllm_autofit.units import GIB

Record = dict[str, Any]


def record_table(records: Sequence[Record]) -> str:
    """One row per start: when, which model, the settings that count, what came of it."""
    rows: list[tuple[str, ...]] = [("start", "outcome", "utilisation", "context", "KV tokens", "model")]
    rows += [_row(record) for record in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def record_account(record: Record) -> str:
    """Everything that matters about one start, with who chose what."""
    identity, outcome = record["identity"], record["outcome"]
    lines = [
        f"start      {record['run_id']}  ({record['started_at']})",
        f"model      {identity.get('model')}  [{identity.get('fingerprint')}]",
        f"vLLM       {identity.get('vllm')}, launched as {identity.get('launch')}",
        f"key        {record['key']}",
        f"outcome    {outcome['state']}",
    ]
    failure = outcome.get("failure")
    if failure:
        lines += [
            f"  phase    {failure.get('phase')}",
            f"  cause    {failure.get('type')}: {failure.get('message')}",
        ]
    lines += ["", "decisions"]
    lines += [
        f"  {d['field']:<24} {shown(d['field'], d['value']):<10} {d['source']:<9} {d['why']}"
        for d in record["plan"].get("decisions", [])
    ]
    if record["plan"].get("record"):
        lines.append(f"  planned from the record of start {record['plan']['record']}")
    for engine in record["engines"]:
        lines += ["", *_engine(engine)]
    return "\n".join(lines)


def _row(record: Record) -> tuple[str, ...]:
    utilization = record["settings"].get("gpu_memory_utilization", {})
    engines = record["engines"]
    context = next((str(engine.get("max_model_len")) for engine in engines), "-")
    tokens = [(engine.get("kv_cache") or {}).get("tokens") for engine in engines]
    known = [count for count in tokens if isinstance(count, int)]
    failure = record["outcome"].get("failure") or {}
    outcome = record["outcome"]["state"]
    return (
        record["run_id"],
        f"{outcome} ({failure.get('phase')})" if failure else outcome,
        f"{utilization.get('value')} ({utilization.get('chosen_by')})",
        context,
        f"{sum(known):,}" if known else "-",
        PurePath(str(record["identity"].get("model"))).name,
    )


def _engine(engine: Record) -> list[str]:
    cache = engine.get("kv_cache") or {}
    lines = [f"engine {engine.get('dp_rank', 0)}"]
    if {"tokens", "blocks", "block_size", "pool_bytes"} <= cache.keys():
        lines.append(
            f"  KV cache   {cache['tokens']:,} tokens in {cache['blocks']:,} blocks of {cache['block_size']} "
            f"({_gib(cache['pool_bytes'])}), context {engine.get('max_model_len')}"
        )
    for rank in engine.get("ranks", []):
        if "error" in rank:
            lines.append(f"  a rank could not be measured: {rank['error']}")
            continue
        figures = ", ".join(
            f"{name} {_gib(rank.get(key))}"
            for name, key in (
                ("weights", "weights_bytes"),
                ("activations", "activation_peak_bytes"),
                ("non-torch", "non_torch_bytes"),
                ("CUDA graphs", "cuda_graph_bytes"),
                ("asked", "requested_bytes"),
                ("KV cache", "kv_cache_bytes"),
            )
            if rank.get(key) is not None
        )
        before, after = rank.get("before") or {}, rank.get("after") or {}
        lines.append(f"  rank {rank.get('rank')}     {figures}")
        lines.append(
            f"             free {_gib(before.get('free_bytes'))} before, {_gib(after.get('free_bytes'))} after"
        )
    return lines


def _gib(value: Any) -> str:
    return f"{value / GIB:.2f} GiB" if isinstance(value, int) else "not measured"
