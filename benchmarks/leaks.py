"""What starts in one process leave behind: each retried by vllm-autofit, and plain ones of vLLM's beside.

    python -m benchmarks.leaks [--starts 20] [--slice 5] [--only plain|retried] [--most N] [--keep FILE]

Starts are made in slices, each in a process of its own with an empty temporary folder. A slice is kept in a file as
soon as it is run, and not run again; ``--most`` ends after so many. The table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import measured_on, write_block
from dev.tiny_model import make_tiny_model

BLOCK = "leaks"
HOW = {"plain": "vLLM alone", "retried": "vllm-autofit, two attempts each"}
ROWS = {
    "children": "processes",
    "shm": "files in /dev/shm",
    "open_files": "file descriptors",
    "open_sockets": "of them sockets",
    "threads": "threads",
    "temporary": "files in the temporary folder",
    "vllm_sockets": "of them vLLM's sockets of a normal end (named by a UUID)",
    "vllm_folders": "of them vLLM's folders (vllm_dist_*)",
    "environment": "environment variables",
}
"""What ``dev.leaks`` counts, in words."""

Slice = Sequence[Mapping[str, Any]]
"""What was left after each start of one process; the first is a warm-up."""


def main() -> int:
    """Run the slices, as far as they aren't kept, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--slice", type=int, default=5, help="starts of one process, after its first")
    parser.add_argument("--only", choices=list(HOW))
    parser.add_argument("--most", type=int, default=sys.maxsize, help="slices to run now")
    parser.add_argument("--keep", type=Path, default=Path("leaks.jsonl"), help="where slices are kept")
    options = parser.parse_args()
    wanted = [(how, number) for number in range(-(-options.starts // options.slice)) for how in HOW]
    kept = _kept(options.keep)
    asked = [each for each in wanted if each not in kept and options.only in (None, each[0])]
    for how, number in asked[: options.most]:
        kept[how, number] = _slice(how, options.slice)
        with options.keep.open("a") as file:
            file.write(json.dumps({"how": how, "number": number, "left": kept[how, number]}) + "\n")
    lines = [
        *measured_on("python -m benchmarks.leaks", "Added from a process's first start to its last."),
        *table(kept),
    ]
    write_block(BLOCK, lines)
    return 0


def _kept(path: Path) -> dict[tuple[str, int], Slice]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(each["how"], each["number"]): each["left"] for each in map(json.loads, lines)}


def _slice(how: str, starts: int) -> Slice:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "t"
        folder.mkdir()
        model = make_tiny_model(Path(place) / "model")
        environ = {
            **os.environ,
            "TMPDIR": str(folder),
            "VLLM_AUTOFIT_CACHE_DIR": str(Path(place) / "records"),
            "VLLM_AUTOFIT_HEADROOM": "1GiB",
            "VLLM_CPU_CI_ENV": "1",
        }
        flags = ["--plain"] if how == "plain" else []
        command = [sys.executable, "-m", "dev.leaks", str(model), "--starts", str(starts), *flags]
        done = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=True)
    found: Slice = json.loads(done.stdout.splitlines()[-1])
    return found


def table(kept: Mapping[tuple[str, int], Slice]) -> list[str]:
    """For each way of starting, what all slices together added to what their first starts left."""
    columns = {how: [left for (each, _), left in kept.items() if each == how] for how in HOW}
    starts = {how: sum(len(left) - 1 for left in slices) for how, slices in columns.items()}
    retried = sum(each["retried"] for left in columns["retried"] for each in left[1:])
    lines = [f"| left after | {' | '.join(f'{HOW[how]}: {starts[how]} starts' for how in HOW)} |", "|---|---:|---:|"]
    for name, words in ROWS.items():
        added = [str(sum(_count(left[-1][name]) - _count(left[0][name]) for left in columns[how])) for how in HOW]
        lines.append(f"| {words} | {' | '.join(added)} |")
    return [*lines, "", f"{retried} of {starts['retried']} were retried."]


def _count(left: Any) -> int:
    return left if isinstance(left, int) else len(left)


if __name__ == "__main__":
    sys.exit(main())
