"""Real starts that are made to fail for memory, with vllm-autofit and without: does it serve, and if not, how soon and
with which last words?

    python -m benchmarks.provocations [--only NAME] [--kind serve|LLM]

The table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.page import measured_on, write_block
from dev.neighbour import GIB, available_and_total
from dev.provocations import (
    ENGINE_STARTS,
    KV_CACHE,
    LOADED,
    PROFILE,
    WEIGHTS,
    Outcome,
    Provocation,
    Trouble,
    provoke,
)
from dev.tiny_model import make_tiny_model

BLOCK = "provocations"
KINDS = ("serve", "LLM")
SHOWN = 110
"""Characters of a last line."""
CONTEXT = 2048


@dataclass(frozen=True)
class Row:
    """One cell of the matrix, with and without."""

    provocation: Provocation
    kind: str
    plain: Outcome
    ours: Outcome


def matrix() -> tuple[Provocation, ...]:
    """Every way to fail that the CPU backend has; sizes follow this machine's memory."""
    half = available_and_total()[0] / GIB / 2
    short = {"max_model_len": CONTEXT}
    return (
        Provocation("memory taken between plan and check", True, short, Trouble(ENGINE_STARTS, takes_gib=half)),
        Provocation("memory taken while the weights are loaded", True, short, Trouble(LOADED, takes_gib=half)),
        Provocation("a share of the user's that isn't free", False, {"gpu_memory_utilization": 0.99}),
        Provocation("a share of the user's too small for the model", False, {"gpu_memory_utilization": 0.03}),
        Provocation(
            "a context of the user's that no KV cache of theirs holds",
            False,
            {"max_model_len": 32768, "kv_cache_memory_bytes": 64 * 2**20},
        ),
        Provocation("allocation refused (RLIMIT_DATA)", True, short, limit_gib=half),
        *_killed("VLLM::Worker"),
        *_killed("VLLM::EngineCore"),
    )


def _killed(victim: str) -> Iterator[Provocation]:
    who = victim.removeprefix("VLLM::")
    for when, phase in ((WEIGHTS, "loading weights"), (PROFILE, "profiling"), (KV_CACHE, "allocating the KV cache")):
        yield Provocation(
            f"{who} killed (-9) while {phase}", False, {"max_model_len": CONTEXT}, Trouble(when, kill=victim)
        )


def main() -> int:
    """Run the matrix and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a name")
    parser.add_argument("--kind", choices=KINDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = make_tiny_model(Path(place) / "model")
        rows = [
            _row(provocation, kind, model, Path(place) / f"{number}-{kind}")
            for number, provocation in enumerate(matrix())
            if options.only in provocation.name
            for kind in KINDS
            if options.kind in (None, kind)
        ]
    lines = [*measured_on("python -m benchmarks.provocations", "Seconds to serving, or to the end."), *_table(rows)]
    if options.only or options.kind:
        print("\n".join(lines))
    else:
        write_block(BLOCK, lines)
    return 0


def _row(provocation: Provocation, kind: str, model: Path, folder: Path) -> Row:
    environ = {**os.environ, "VLLM_CPU_CI_ENV": "1", "VLLM_AUTOFIT_CACHE_DIR": str(folder / "records")}
    plain = provoke(provocation, kind, model, folder / "plain", {**environ, "VLLM_AUTOFIT": "0"})
    ours = provoke(provocation, kind, model, folder / "ours", environ)
    print(provocation.name, kind, plain.served, ours.served, ours.attempts, ours.last_line[:SHOWN], file=sys.stderr)
    return Row(provocation, kind, plain, ours)


def _table(rows: list[Row]) -> Iterator[str]:
    yield "| what happens | curable | start | plain vLLM | with vllm-autofit | attempts | its last words |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        words = "" if row.ours.served else _words(row.ours.last_line)
        curable = "yes" if row.provocation.curable else "no"
        yield (
            f"| {row.provocation.name} | {curable} | {row.kind} | {_said(row.plain)} | {_said(row.ours)} "
            f"| {row.ours.attempts} | {words} |"
        )


def _said(outcome: Outcome) -> str:
    return f"{'serves' if outcome.served else 'fails'}, {outcome.seconds:.0f} s"


def _words(line: str) -> str:
    text = line.strip().replace("|", "\\|")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


if __name__ == "__main__":
    sys.exit(main())
