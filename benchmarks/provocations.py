"""Real starts that are made to fail for memory, with vllm-autofit and without: does it serve, and if not, how soon and
with which last words?

    python -m benchmarks.provocations [--only NAME] [--kind serve|LLM] [--keep FILE] [--render]

Each cell is kept in a file as soon as it is run, and not run again while it stands there. The table goes into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.page import measured_on, write_block
from dev.neighbour import GIB, available_and_total
from dev.provocations import (
    ENGINE_STARTS,
    KV_CACHE,
    LOADED,
    PROFILE,
    WARMS_UP,
    WEIGHTS,
    Outcome,
    Provocation,
    Trouble,
    provoke,
)
from dev.tiny_model import make_tiny_model

BLOCK = "provocations"
KINDS = ("serve", "LLM")
SHOWN = 160
"""Characters of last words."""
CONTEXT = 2048


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix, without vllm-autofit and with it.

    Attributes:
        name: of the provocation.
        kind: how vLLM was started.
        curable: whether settings that nobody set can cure it.
        plain: what came of it without.
        ours: what came of it with.
        attempts: how many ours took.
        after_plan: seconds from our first word, the plan or the refusal, to serving or the end.
        words: our last ones, if it doesn't serve.
    """

    name: str
    kind: str
    curable: bool
    plain: str
    ours: str
    attempts: int
    after_plan: float
    words: str


def matrix() -> tuple[Provocation, ...]:
    """Every way to fail that the CPU backend has; sizes follow this machine's memory."""
    half = available_and_total()[0] / GIB / 2
    short = {"max_model_len": CONTEXT}
    return (
        Provocation("memory taken between plan and check", True, short, Trouble(ENGINE_STARTS, takes_gib=half)),
        Provocation("memory taken while the weights are loaded", True, short, Trouble(LOADED, takes_gib=half)),
        Provocation("a share of the user's that isn't free", False, {"gpu_memory_utilization": 0.99}),
        Provocation("a share of the user's too small for the model", False, {"gpu_memory_utilization": 0.01}),
        Provocation(
            "a context of the user's that no KV cache of theirs holds",
            False,
            {"max_model_len": 32768, "kv_cache_memory_bytes": 32 * 2**20},
        ),
        Provocation("allocation refused (RLIMIT_DATA)", True, short, limit_gib=half),
        *_killed("VLLM::Worker"),
        *_killed("VLLM::EngineCore"),
    )


def _killed(victim: str) -> Iterator[Provocation]:
    who, short = victim.removeprefix("VLLM::"), {"max_model_len": CONTEXT}
    yield Provocation(f"{who} killed (-9) while loading weights", False, short, Trouble(WEIGHTS, kill=victim))
    # From here on less KV cache leaves the host more memory; weights are what they are.
    profiling = Trouble(PROFILE, kill=victim)
    yield Provocation(f"{who} killed (-9) while profiling", True, short, profiling, environ=WARMS_UP)
    yield Provocation(f"{who} killed (-9) while allocating the KV cache", True, short, Trouble(KV_CACHE, kill=victim))


def main() -> int:
    """Run the matrix, as far as it isn't kept, and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--keep", type=Path, default=Path("provocations.jsonl"), help="where cells are kept")
    parser.add_argument("--render", action="store_true", help="run nothing, write the table of what is kept")
    options = parser.parse_args()
    kept = {(cell.name, cell.kind): cell for cell in _kept(options.keep)}
    wanted = [(provocation, kind) for provocation in matrix() for kind in KINDS]
    with tempfile.TemporaryDirectory() as place:
        model = make_tiny_model(Path(place) / "model")
        for provocation, kind in wanted:
            asked = not options.render and options.only in provocation.name and options.kind in (None, kind)
            if asked and (provocation.name, kind) not in kept:
                cell = _cell(provocation, kind, model, Path(place) / f"{len(kept)}")
                kept[cell.name, cell.kind] = cell
                with options.keep.open("a") as file:
                    file.write(json.dumps(asdict(cell)) + "\n")
    cells = [kept[provocation.name, kind] for provocation, kind in wanted if (provocation.name, kind) in kept]
    missing = len(wanted) - len(cells)
    units = "Seconds to serving, or to the end." + (
        f" {missing} of {len(wanted)} cells weren't run." if missing else ""
    )
    lines = [*measured_on("python -m benchmarks.provocations", units), *_table(cells)]
    if options.render or not missing:
        write_block(BLOCK, lines)
    else:
        print("\n".join(lines))
    return 0


def _kept(file: Path) -> list[Cell]:
    return [Cell(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def _cell(provocation: Provocation, kind: str, model: Path, folder: Path) -> Cell:
    environ = {**os.environ, "VLLM_CPU_CI_ENV": "1", "VLLM_AUTOFIT_CACHE_DIR": str(folder / "records")}
    plain = provoke(provocation, kind, model, folder / "plain", {**environ, "VLLM_AUTOFIT": "0"})
    ours = provoke(provocation, kind, model, folder / "ours", environ)
    cell = Cell(
        provocation.name,
        kind,
        provocation.curable,
        _said(plain),
        _said(ours),
        ours.attempts,
        round(ours.seconds - (ours.planned or 0.0), 1),
        "" if ours.served else _shortened(ours.last_words),
    )
    print(cell, file=sys.stderr, flush=True)
    return cell


def _table(cells: list[Cell]) -> Iterator[str]:
    yield "| what happens | curable | start | plain vLLM | with us | attempts | after its plan | its last words |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in cells:
        curable = "yes" if cell.curable else "no"
        yield (
            f"| {cell.name} | {curable} | {cell.kind} | {cell.plain} | {cell.ours} | {cell.attempts} "
            f"| {cell.after_plan:.0f} s | {cell.words} |"
        )


def _said(outcome: Outcome) -> str:
    return f"{'serves' if outcome.served else 'fails'}, {outcome.seconds:.0f} s"


def _shortened(line: str) -> str:
    text = line.strip().replace("|", "\\|")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


if __name__ == "__main__":
    sys.exit(main())
