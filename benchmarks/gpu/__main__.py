"""A proof on a GPU: plain vLLM beside vllm-autofit, for real architectures, under real load and past it.

    python -m benchmarks.gpu [--only PART ...] [--out FOLDER] [--minutes 8]

Every result is kept as soon as it is there; run the same command again to go on. What is measured: docs/gpu-proof.md.
Exit status: 0 all is measured; 3 the time was up, run it again; 2 it can't be measured here; 130 interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

import vllm_autofit
from benchmarks.gpu import table
from benchmarks.gpu.cells import ORACLE, Cell, fixed_cells, oracle_cell
from benchmarks.gpu.device import Kind, device, driver
from benchmarks.gpu.ledger import BusyError, Document, Ledger, OtherMachineError
from benchmarks.gpu.log import failure
from benchmarks.gpu.models import TINY, Entry, entries, tiny
from benchmarks.gpu.runs import SIZES, Bench, run
from benchmarks.gpu.slices import LIMIT_SECONDS, TimeUpError, expected_seconds, time_limit
from vllm_autofit.errors import DeviceError
from vllm_autofit.units import GIB

ORACLES = ("qwen3-0.6b", "llama-3.1-8b", TINY)
"""Models for which the best utilisation is looked for."""
WHOLE_SECONDS = 5.0
"""A slice that is no older is still as good as whole."""
DONE, MORE, IMPOSSIBLE, INTERRUPTED = 0, 3, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure for one slice of time. Returns an exit status."""
    options = _parser().parse_args(arguments)
    ledger = Ledger(options.out.resolve())
    if options.render or options.publish:
        return _render(ledger, publish=options.publish)
    signal.signal(signal.SIGTERM, _terminate)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        bench = _bench(ledger, options.device)
    except PackageNotFoundError as error:
        print(f"benchmarks.gpu: {error.name} isn't installed here: pip install -e . beside vLLM", file=sys.stderr)
        return IMPOSSIBLE
    except (DeviceError, OtherMachineError) as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return IMPOSSIBLE
    if options.list:
        for each in _wanted(bench, options.only, ledger.everything()):
            print(f"{'done' if ledger.done(each.name) else '    '} {each.name}")
        return DONE
    try:
        with ledger.alone():
            return measure(bench, options.only, options.minutes * 60, options.again)
    except BusyError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return IMPOSSIBLE
    except KeyboardInterrupt:
        _say("interrupted; what was measured is kept")
        return INTERRUPTED


def measure(bench: Bench, only: Sequence[str], seconds: float, again: bool = False) -> int:
    """Run cells for so long, and write what there is.

    Args:
        bench: where and with what.
        only: parts of names; nothing: all.
        seconds: of this slice.
        again: run those again that broke or ran out of time.
    """
    deadline = time.monotonic() + seconds
    if ended := bench.ledger.end_leftovers():
        _say(f"ended {ended} processes that an earlier run left")
    if again:
        for document in bench.ledger.everything().values():
            if document.get("broke") or document["outcome"] == "time ran out":
                bench.ledger.forget(document["cell"])
    began = time.monotonic()
    try:
        while (cell := _next(bench, only, deadline - time.monotonic())) is not None:
            _measure_one(bench, cell, deadline - time.monotonic(), whole=time.monotonic() - began < WHOLE_SECONDS)
    finally:
        table.write(bench.ledger.folder, table.collected(bench.ledger, _left(bench, ())))
    left = _left(bench, only)
    _say(f"{len(left)} cells are left{': run the same command again' if left else ''}")
    return MORE if left else DONE


def _next(bench: Bench, only: Sequence[str], left: float) -> Cell | None:
    """The first cell that is to be run, can be, and can end in time. Those that make no sense are noted as skipped."""
    documents = bench.ledger.everything()
    for cell in _wanted(bench, only, documents):
        if cell.name in documents:
            continue
        if reason := _senseless(bench, cell, documents):
            _say(f"{cell.name}: skipped: {reason}")
            documents[cell.name] = {**_header(cell), "skipped": reason, "outcome": "skipped"}
            bench.ledger.keep(cell.name, documents[cell.name])
            continue
        if cell.before is not None and cell.before.name not in documents:
            continue
        if expected_seconds(cell, documents, bench.ledger.attempted(cell.name)) <= left:
            return cell
    return None


def _wanted(bench: Bench, only: Sequence[str], documents: Mapping[str, Document]) -> Iterator[Cell]:
    names = list(bench.models)
    for cell in fixed_cells(names):
        if not only or any(part in cell.name for part in only):
            yield cell
    for model in names:
        if model in ORACLES and (not only or any(part in f"{model}/{ORACLE}" for part in only)):
            attempt = oracle_cell(model, documents, bench.sizes.step)
            if attempt is not None:
                yield attempt


def _left(bench: Bench, only: Sequence[str]) -> list[str]:
    documents = bench.ledger.everything()
    return [cell.name for cell in _wanted(bench, only, documents) if cell.name not in documents]


def _senseless(bench: Bench, cell: Cell, documents: Mapping[str, Document]) -> str:
    before = documents.get(cell.before.name) if cell.before is not None else None
    if before is not None and before["outcome"] in ("did not start", "skipped"):
        return f"start {cell.number - 1} {before['outcome'].replace('skipped', 'was skipped')}"
    return bench.models[cell.model].unfit(bench.ledger.machine()["total_bytes"])


def _measure_one(bench: Bench, cell: Cell, left: float, *, whole: bool) -> None:
    """Run a cell within its limit and keep its result; one that the end of the slice cuts is run again in the next.

    Args:
        bench: where and with what.
        cell: which.
        left: seconds of this slice.
        whole: whether it has a slice to itself: if that isn't enough, none is.
    """
    limit = min(LIMIT_SECONDS, left)
    document: Document = {**_header(cell), "began": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    _say(f"{cell.name}: begins, {limit:.0f} s at most")
    began = time.monotonic()
    try:
        with time_limit(limit):
            run(bench, cell, document)
    except TimeUpError as error:
        if limit < LIMIT_SECONDS and not whole:
            bench.ledger.cut(cell.name, time.monotonic() - began)
            _say(f"{cell.name}: cut, because this slice is over")
            return
        document |= {"outcome": "time ran out", "failure": _log_failure(bench, cell, str(error))}
    except Exception as error:
        document |= {"outcome": "broke", "broke": traceback.format_exc().splitlines()[-20:]}
        document["failure"] = _log_failure(bench, cell, f"{type(error).__name__}: {error}")
    document["seconds"] = round(time.monotonic() - began, 1)
    bench.ledger.all_ended()
    bench.ledger.keep(cell.name, document)
    _say(f"{cell.name}: {table.in_short(document)}")


def _log_failure(bench: Bench, cell: Cell, error: str) -> Document:
    logs = sorted(bench.folder(cell).glob("server*.log"))
    return {**failure("".join(log.read_text(errors="replace") for log in logs)), "error": error}


def _header(cell: Cell) -> Document:
    return {
        "cell": cell.name, "model": cell.model, "scenario": cell.scenario, "who": cell.who, "number": cell.number,
        "share": cell.share, "seconds": 0.0, "survived": False, "code": _code(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith("VLLM_")},
    }  # fmt: skip


@cache
def _code() -> str:
    """Short for the state of our package, so that results of several aren't taken for one's."""
    files = sorted(Path(vllm_autofit.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _bench(ledger: Ledger, kind: Kind) -> Bench:
    found = device(kind)
    ledger.bind(
        {
            "device": found.name,
            "total_bytes": found.total_bytes,
            "kind": kind,
            "driver": driver() if kind == "cuda" else "",
            "vllm": version("vllm"),
            "torch": version("torch"),
            "vllm_autofit": version("vllm-autofit"),
            "python": platform.python_version(),
            "began": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "free_at_first_bytes": found.free_bytes,
        }
    )
    models: dict[str, Entry] = entries() if kind == "cuda" else {TINY: tiny()}
    _say(f"{found.name}, {found.free_bytes / GIB:.1f} of {found.total_bytes / GIB:.1f} GiB free, in {ledger.folder}")
    return Bench(ledger, kind, SIZES[kind], models)


def _render(ledger: Ledger, *, publish: bool) -> int:
    document = table.collected(ledger, table.left_before(ledger.folder))
    table.write(ledger.folder, document)
    try:
        if publish:
            table.publish(document)
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return IMPOSSIBLE
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", default=[], metavar="PART", help="cells whose names hold one of these: a model, ours-2")
    add("--out", type=Path, default=Path("gpu-proof"), metavar="FOLDER", help="where results are (default: gpu-proof)")
    add("--minutes", type=float, default=8.0, help="of this slice (default: 8); a cell takes up to 7.5")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a tiny model, to try this command")
    add("--again", action="store_true", help="run cells again that broke or ran out of time")
    add("--list", action="store_true", help="name the cells, and start nothing")
    add("--render", action="store_true", help="write results.json and results.md again, and start nothing")
    add("--publish", action="store_true", help="the same, and put the tables into docs/benchmarks.md")
    return parser


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"{datetime.now(timezone.utc):%H:%M:%S} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
