"""Runs a cell: starts real servers, puts load on them, brings the trouble about, and notes what came of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.experience import settle
from benchmarks.gpu import records
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.device import Kind, free_and_total
from benchmarks.gpu.ledger import Document, Ledger
from benchmarks.gpu.load import Excess, Load, answers, under
from benchmarks.gpu.log import failure, figures
from benchmarks.gpu.models import Entry, make
from benchmarks.gpu.tenant import tenant
from dev.provocations import ENGINE_STARTS, OURS, watching
from dev.server import Server, serving, vllm_command

OURS_SAYS = f"{OURS}: "
AGAIN = "Trying again with"
"""What we say when the same command starts another engine."""
TYPED_TOO_HIGH = "0.98"
"""What a user types beside a co-tenant for the start that is refused."""
KEPT_LOG_BYTES = 400_000


@dataclass(frozen=True)
class Sizes:
    """How large everything is on a kind of device.

    Attributes:
        load: that fits.
        excess: that doesn't.
        tenant_gib: what a co-tenant takes.
        step: to which the oracle is found.
        start_seconds: after which a start counts as failed.
        plain: options of plain vLLM; none on a GPU. A CPU's memory is everybody's: its default would never do there.
    """

    load: Load
    excess: Excess
    tenant_gib: float
    step: float
    start_seconds: float
    plain: tuple[str, ...] = ()


SIZES: Mapping[Kind, Sizes] = {
    "cuda": Sizes(
        Load(128, 512, 128, seconds=90),
        Excess(1.5, 512, 32_768, 2_000_000, 128, seconds=90),
        tenant_gib=10.0,
        step=0.002,
        start_seconds=300,
    ),
    "cpu": Sizes(
        Load(8, 64, 16, seconds=90),
        Excess(1.5, 32, 1024, 20_000, 16, seconds=60),
        tenant_gib=5.0,
        step=0.02,
        start_seconds=200,
        plain=("--gpu-memory-utilization", "0.3"),
    ),
}


@dataclass(frozen=True)
class Bench:
    """Where and with what cells are run."""

    ledger: Ledger
    kind: Kind
    sizes: Sizes
    models: Mapping[str, Entry]

    def folder(self, cell: Cell) -> Path:
        """For the logs of a cell."""
        return self.ledger.folder / "logs" / cell.name.replace("/", "--")

    def records(self, cell: Cell) -> Path:
        """Where its start of ours reads and leaves records."""
        return self.ledger.folder / "records" / cell.name.replace("/", "--")

    def environ(self, cell: Cell) -> dict[str, str]:
        """Of a server: no network, what is compiled in the folder of the results."""
        return {
            **_with_bytecode(self.ledger.folder / "cache" / "bytecode"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(self._compiled(cell)),
            "TRITON_CACHE_DIR": str(self._compiled(cell) / "triton"),
            "VLLM_AUTOFIT": "0" if cell.who == "plain" else "1",
            "VLLM_AUTOFIT_CACHE_DIR": str(self.records(cell)),
        }

    def prepare(self, cell: Cell) -> None:
        """The records and the compile cache that a start is to find, whatever an attempt that was cut left there."""
        shutil.rmtree(self.records(cell), ignore_errors=True)
        if cell.scenario == "start" and cell.before is None:
            shutil.rmtree(self._compiled(cell), ignore_errors=True)
        elif cell.before is not None and self.records(cell.before).is_dir():
            shutil.copytree(self.records(cell.before), self.records(cell))

    def _compiled(self, cell: Cell) -> Path:
        return self.ledger.folder / "cache" / f"vllm-{cell.model}-{cell.who}"


def run(bench: Bench, cell: Cell, document: Document) -> None:
    """Run a cell; ``document`` is filled step by step, so that what was measured before a failure stays.

    ``outcome``: ``served`` (and survived its load), ``died`` (under it), ``did not start``.

    Raises:
        RuntimeError: what was started wasn't what the cell is about.
    """
    bench.prepare(cell)
    settle(partial(free_and_total, bench.kind))
    document["free_bytes"], document["total_bytes"] = free_and_total(bench.kind)
    try:
        SCENARIOS[cell.scenario](bench, cell, document)
    finally:
        if cell.who == "ours":
            document["record"] = records.newest(bench.records(cell))
        _cut_logs(bench.folder(cell))
    if cell.who == "ours" and not any(part.get("said") for part in document.get("engines", [document])):
        raise RuntimeError(f"{OURS} said nothing: is it installed beside this vLLM?")
    document["survived"] = document["outcome"] == "served" and _answered(document.get("load"))


def _start(bench: Bench, cell: Cell, document: Document) -> None:
    """Alone on the device: load that fits, then load that doesn't."""
    extra = [] if cell.share is None else ["--gpu-memory-utilization", str(cell.share)]
    with _server(bench, cell, document, extra) as server:
        if _came_up(bench, server, document):
            _loads(bench, cell, server, document, past=True)


def _tenant_before(bench: Bench, cell: Cell, document: Document) -> None:
    """Somebody else holds memory already."""
    with tenant(bench.kind, bench.sizes.tenant_gib) as other:
        document["tenant_gib"] = other.take()
        with _server(bench, cell, document) as server:
            if _came_up(bench, server, document):
                _loads(bench, cell, server, document, past=False)


def _tenant_between(bench: Bench, cell: Cell, document: Document) -> None:
    """Somebody else takes memory after it was planned with, and before vLLM looks."""
    with tenant(bench.kind, bench.sizes.tenant_gib) as other, _server(bench, cell, document) as server:
        with watching(lambda: bool(server.lines(ENGINE_STARTS)), other.take):
            up = _came_up(bench, server, document)
        document["tenant_gib"] = other.gib
        if up:
            _loads(bench, cell, server, document, past=False)


def _tenant_serving(bench: Bench, cell: Cell, document: Document) -> None:
    """Somebody else takes what he can get, up to the same size, while it serves."""
    with tenant(bench.kind, bench.sizes.tenant_gib) as other, _server(bench, cell, document) as server:
        if _came_up(bench, server, document):
            document["tenant_gib"] = other.take()
            _loads(bench, cell, server, document, past=True)


def _two(bench: Bench, cell: Cell, document: Document) -> None:
    """Two servers are started in the same second; each gets its load while the other one serves."""
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        servers = [stack.enter_context(_server(bench, cell, document, log=f"server-{each}.log")) for each in "ab"]
        parts: list[Document] = [{}, {}]
        document["engines"] = parts
        pairs = list(zip(servers, parts, strict=True))
        for server, part in [(server, part) for server, part in pairs if _came_up(bench, server, part, began)]:
            _loads(bench, cell, server, part, past=False)
        for server, part in pairs:
            if part["outcome"] == "served" and not answers(server):
                part |= {"outcome": "died", "failure": failure(server.text())}
    outcomes = [part["outcome"] for part in parts]
    document["served"] = outcomes.count("served")
    document["outcome"] = next((each for each in outcomes if each != "served"), "served")


def _refused(bench: Bench, cell: Cell, document: Document) -> None:
    """The user typed more than is free: how soon does it end, and with which words?"""
    with tenant(bench.kind, bench.sizes.tenant_gib) as other:
        document["tenant_gib"] = other.take()
        with _server(bench, cell, document, ["--gpu-memory-utilization", TYPED_TOO_HIGH]) as server:
            _came_up(bench, server, document)


def _with_bytecode(place: Path) -> dict[str, str]:
    """This environment, with a place for bytecode where it forbids that: each start would translate vLLM anew."""
    if not os.environ.get("PYTHONDONTWRITEBYTECODE"):
        return dict(os.environ)
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**environ, "PYTHONPYCACHEPREFIX": str(place)}


SCENARIOS: Mapping[str, Callable[[Bench, Cell, Document], None]] = {
    "start": _start,
    "oracle": _start,
    "tenant-before": _tenant_before,
    "tenant-between": _tenant_between,
    "tenant-serving": _tenant_serving,
    "two": _two,
    "refused": _refused,
}


@contextlib.contextmanager
def _server(
    bench: Bench, cell: Cell, document: Document, extra: Sequence[str] = (), log: str = "server.log"
) -> Iterator[Server]:
    arguments = make(bench.models[cell.model], bench.ledger.folder / "models")
    typed = extra or (bench.sizes.plain if cell.who == "plain" else ())
    command = [*vllm_command("serve", *arguments), *typed]
    document["options"] = [*arguments[1:], *typed]
    with serving(command, bench.folder(cell) / log, bench.environ(cell)) as server:
        bench.ledger.started(server.process.pid)
        yield server


def _came_up(bench: Bench, server: Server, document: Document, began: float | None = None) -> bool:
    began = time.monotonic() if began is None else began
    up = server.wait(bench.sizes.start_seconds)
    document["start_seconds"] = round(time.monotonic() - began, 1)
    text = server.text()
    document |= {
        "outcome": "served" if up else "did not start",
        "printed": figures(text),
        "attempts": 1 + text.count(AGAIN),
        "said": _said(text),
    }
    if up:
        document["free_after_start_bytes"] = free_and_total(bench.kind)[0]
    else:
        document["failure"] = failure(text)
    return up


def _loads(bench: Bench, cell: Cell, server: Server, document: Document, *, past: bool) -> None:
    """Load that fits and, with ``past``, load that doesn't; a server that no longer answers has died."""
    entry, printed = bench.models[cell.model], document["printed"]
    model = str(bench.ledger.folder / "models" / entry.name)
    loads = {"load": bench.sizes.load}
    if past and "kv_tokens" in printed and "context" in printed:
        loads["past"] = bench.sizes.excess.load(printed["kv_tokens"], printed["context"])
    environ = {**bench.environ(cell), "VLLM_AUTOFIT": "0"}
    for name, load in loads.items():
        result = under(load, server, model, bench.folder(cell) / name, environ, bench.kind, entry.images)
        document[name] = result
        if not result["alive"]:
            document |= {"outcome": "died", "failure": failure(server.text())}
            return


def _answered(load: Document | None) -> bool:
    return load is None or load["cut"] or load["completed"] == load["requests"]


def _said(text: str) -> list[str]:
    """Our own lines, without what the logger puts before them."""
    return [line.partition(OURS_SAYS)[2] for line in text.splitlines() if OURS_SAYS in line][-6:]


def _cut_logs(folder: Path) -> None:
    """Logs are kept, but not if somebody wrote for ever."""
    for log in folder.rglob("*.log"):
        if log.stat().st_size > KEPT_LOG_BYTES:
            text = log.read_bytes()
            log.write_bytes(text[: KEPT_LOG_BYTES // 2] + b"\n...\n" + text[-KEPT_LOG_BYTES // 2 :])
