"""The results as one JSON and as Markdown tables, made from the cells' files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.cells import ORACLE, TROUBLES, oracle
from benchmarks.gpu.ledger import Document, Ledger
from benchmarks.gpu.records import PLANNED
from benchmarks.page import write_block
from vllm_autofit.units import GIB

BLOCK = "gpu"
TROUBLED = {
    "tenant-before": "a co-tenant holds memory before the start",
    "tenant-between": "a co-tenant takes memory between plan and check",
    "tenant-serving": "a co-tenant takes memory while it serves",
    "two": "two engines started in the same second",
    "refused": "the user typed more than is free beside a co-tenant",
}
SHOWN = 140
"""Characters of a text in a cell of a table."""
ELSEWHERE_BYTES = GIB
"""The device's free memory may differ by so much from cell to cell without a remark."""
UTILISATION = "--gpu-memory-utilization"
NOTHING = ""


def collected(ledger: Ledger, left: Sequence[str]) -> Document:
    """What ``results.json`` holds: ``machine``, ``cells`` by name, and the names of those that are ``left`` to run."""
    return {"schema": 1, "machine": ledger.machine(), "left": list(left), "cells": ledger.everything()}


def left_before(folder: Path) -> list[str]:
    """What was left to run when the tables were written last."""
    file = folder / "results.json"
    left: list[str] = json.loads(file.read_text())["left"] if file.exists() else []
    return left


def write(folder: Path, document: Mapping[str, Any]) -> None:
    """``results.json`` and ``results.md``."""
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "results.md").write_text("\n".join(["# A proof on a GPU", "", *page(document)]) + "\n")


def publish(document: Mapping[str, Any]) -> None:
    """Put the tables into docs/benchmarks.md.

    Raises:
        ValueError: these are figures of a CPU, or none.
    """
    if document["machine"].get("kind") != "cuda":
        raise ValueError("only what was measured on a GPU is published")
    write_block(BLOCK, list(page(document)))


def page(document: Mapping[str, Any]) -> Iterator[str]:
    """All tables, in Markdown."""
    cells = sorted(document["cells"].values(), key=lambda cell: str(cell.get("began")))  # in the order they were run
    ran = [cell for cell in cells if cell["outcome"] != "skipped"]
    yield from _measured_on(document, ran)
    starts = [cell for cell in ran if cell["scenario"] == "start"]
    yield from _table(
        "Starts, alone on the device",
        "model | who | start | came out | s | utilisation | KV tokens | of plain | requests of its context"
        " | load: answered | tokens/s | past it: answered | preempted | fullest KV | least free GiB",
        (_start(cell, document["cells"]) for cell in starts),
    )
    yield from _table(
        "What was planned, and what was measured (GiB; tokens)",
        "model | start | " + " | ".join([*PLANNED, "KV tokens"]),
        (row for cell in starts if (row := _terms(cell)) is not None),
    )
    yield from _table(
        "Against the oracle: the largest utilisation with which plain vLLM serves and survives the same load",
        "model | utilisation | tries | KV tokens | plain | ours 1 | ours 2 | ours 3",
        _oracles(document["cells"]),
    )
    yield from _table(
        "Trouble",
        "what happens | who | co-tenant GiB | came out | attempts | s | KV tokens | its last words",
        (_trouble(cell) for scenario in TROUBLES for cell in ran if cell["scenario"] == scenario),
    )
    yield from _table(
        "What failed, and what `vllm-autofit diagnose` says of its log",
        "cell | came out | phase | cause | change",
        (_failure(cell) for cell in ran for cell in _parts(cell) if "failure" in cell),
    )
    skipped = {(cell["model"], cell["skipped"]) for cell in cells if cell["outcome"] == "skipped"}
    yield from _table("Not measured", "model | why", sorted(skipped))


def in_short(cell: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    said = [str(cell["outcome"]), f"{cell['seconds']:.0f} s"]
    if tokens := _tokens(cell):
        said.append(f"{tokens:,} KV tokens")
    if cell.get("attempts", 1) > 1:
        said.append(f"{cell['attempts']} attempts")
    if "broke" in cell:
        said.append(str(cell["broke"][-1]))
    elif "failure" in cell:
        said.append(f"{cell['failure']['phase']}: {cell['failure']['cause']}")
    return ", ".join(said)


def _measured_on(document: Mapping[str, Any], ran: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    machine, left = document["machine"], document["left"]
    if not ran:
        yield "Nothing was measured yet."
        return
    moments = sorted(str(cell["began"]) for cell in ran)
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    yield (
        f"Measured {moments[0]} to {moments[-1]} by `python -m benchmarks.gpu`: {machine['device']} "
        f"({_gib(machine['total_bytes'])} GiB{driver}), vLLM {machine['vllm']}, torch {machine['torch']}, "
        f"Python {machine['python']}, vllm-autofit {machine['vllm_autofit']}. Dummy weights, real configs."
    )
    variables = {f"`{name}={value}`" for cell in ran for name, value in cell.get("variables", {}).items()}
    if variables:
        yield f"Variables that were set: {', '.join(sorted(variables))}."
    states = sorted({cell["code"] for cell in ran if "code" in cell and cell["who"] == "ours"})
    if len(states) > 1:
        yield f"Made with {len(states)} states of the package: {', '.join(states)}."
    usual = machine["free_at_first_bytes"] - ELSEWHERE_BYTES
    if others := [cell["cell"] for cell in ran if cell.get("free_bytes", usual) < usual]:
        yield f"Somebody else held memory of the device before: {', '.join(others)}."
    if left:
        yield f"Not whole: {len(left)} cells are left to run."


def _start(cell: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> list[str]:
    plain = cells.get(f"{cell['model']}/start-plain-{min(cell['number'], 2)}", {})
    tokens, theirs = _tokens(cell), _tokens(plain)
    load, past = cell.get("load", {}), cell.get("past", {})
    free = [part["least_free_bytes"] for part in (load, past) if part]
    return [
        cell["model"],
        cell["who"],
        str(cell["number"]),
        cell["outcome"],
        _figure(cell.get("start_seconds"), ".0f"),
        _utilisation(cell),
        _figure(tokens, ",d"),
        f"{100 * tokens / theirs:.1f} %" if tokens and theirs and cell["who"] == "ours" else NOTHING,
        _figure(cell.get("printed", {}).get("concurrency"), ".2f"),
        _answered(load),
        _figure(load.get("tokens_per_second"), ",.0f"),
        _answered(past),
        _figure(past.get("preemptions"), ",d"),
        _figure(past.get("peak_kv_usage"), ".1%"),
        _gib(min(free)) if free else NOTHING,
    ]


def _answered(load: Mapping[str, Any]) -> str:
    return f"{load['completed']}/{load['requests']}{' (cut)' if load['cut'] else ''}" if load else NOTHING


def _terms(cell: Mapping[str, Any]) -> list[str] | None:
    """None for plain vLLM and for starts that measured nothing of their own."""
    record = cell.get("record")
    if not record or record["state"] in ("failed", "starting"):
        return None
    planned, measured = record["planned"], record["measured"]
    row = [cell["model"], f"{cell['number']}{' (not measured again)' if record['profiling_skipped'] else ''}"]
    row += [_against(planned.get(term), measured.get(term), GIB) for term in PLANNED]
    return [*row, _against(planned.get("KV tokens"), measured.get("KV tokens"), 0)]


def _against(planned: int | None, measured: int | None, unit: int) -> str:
    """``planned / measured (error)``."""
    if planned is None and measured is None:
        return NOTHING
    shown = [NOTHING if each is None else f"{each / unit:.2f}" if unit else f"{each:,}" for each in (planned, measured)]
    error = f" ({planned / measured - 1:+.1%})" if planned is not None and measured else ""
    return f"{shown[0] or '-'} / {shown[1] or '-'}{error}"


def _oracles(cells: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    tries = [cell for cell in cells.values() if cell["scenario"] == ORACLE and cell["outcome"] != "skipped"]
    for model in dict.fromkeys(cell["model"] for cell in tries):
        best = oracle(model, cells)
        count = str(sum(cell["model"] == model for cell in tries))
        if best is None:
            yield [model, "none so far", count, *[NOTHING] * 5]
            continue
        tokens = _tokens(best) or 0
        others = [_tokens(cells.get(f"{model}/start-{who}", {})) for who in ("plain-1", "ours-1", "ours-2", "ours-3")]
        gaps = [f"{other:,} ({other / tokens - 1:+.2%})" if other and tokens else NOTHING for other in others]
        yield [model, f"{best['share']:.4f}", count, f"{tokens:,}", *gaps]


def _trouble(cell: Mapping[str, Any]) -> list[str]:
    parts = cell.get("engines", [cell])
    tokens = [_figure(_tokens(part), ",d") or "-" for part in parts]
    seconds = [_figure(part.get("start_seconds"), ".0f") or "-" for part in parts]
    said = [words for part in parts for words in part.get("said", [])[-1:] if part["outcome"] != "served"]
    came_out = f"{cell['served']} of 2 served" if "served" in cell else cell["outcome"]
    return [
        TROUBLED[cell["scenario"]],
        cell["who"],
        _figure(cell.get("tenant_gib"), ".1f"),
        came_out,
        ", ".join(str(part.get("attempts", "-")) for part in parts),
        ", ".join(seconds),
        ", ".join(tokens),
        _short(said[0] if said else NOTHING),
    ]


def _parts(cell: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield cell
    for number, part in enumerate(cell.get("engines", ()), 1):
        yield {**part, "cell": f"{cell['cell']} (engine {number})"}


def _failure(cell: Mapping[str, Any]) -> list[str]:
    failure = cell["failure"]
    return [
        cell["cell"],
        cell["outcome"],
        failure["phase"],
        _short(failure.get("error") or failure["cause"]),
        _short(failure["remedy"]),
    ]


def _tokens(cell: Mapping[str, Any]) -> int | None:
    tokens: int | None = cell.get("printed", {}).get("kv_tokens")
    return tokens


def _utilisation(cell: Mapping[str, Any]) -> str:
    options = cell.get("options", [])
    if UTILISATION in options:
        return f"{options[options.index(UTILISATION) + 1]} (typed)"
    value = (cell.get("record") or {}).get("settings", {}).get("gpu_memory_utilization")
    return "default" if value is None else f"{value:.4f}"


def _table(title: str, columns: str, rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Nothing where there are no rows."""
    lines = [f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows]
    if lines:
        yield from ("", f"### {title}", "", f"| {columns} |", "|---" * (columns.count("|") + 1) + "|", *lines)


def _figure(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
