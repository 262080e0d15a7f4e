"""How well the classifier tells published failures of vLLM, and texts that only look like them.

    python -m benchmarks.failures --data FOLDER [--output docs/diagnosis.md]

``FOLDER`` holds ``failures.jsonl``: a text a line, with what a person says of it. A phase is scored where the text
tells it (``phase_evidence``), a figure is right within half a unit of its last printed digit.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_autofit.failures.classify import classify_log
from vllm_autofit.failures.failure import Failure

GOALS = {"is_capacity": 0.98, "phase": 0.95, "numbers": 0.95}
NAMES = {
    "tried_alloc_mib": "tried_bytes",
    "torch_allocated_gib": "allocated_bytes",
    "torch_reserved_unallocated_mib": "reserved_bytes",
    "process_in_use_gib": "process_bytes",
    "available_kv_gib": "kv_available_bytes",
    "needed_kv_gib": "kv_needed_bytes",
    "estimated_max_len": "estimated_max_model_len",
    "derived": "derived_max_model_len",
    "rank": "lora_rank",
    "max_capture_size": "max_captured",
}
"""Figures that the data calls otherwise."""
UNITS = {"gib": 2**30, "gb": 2**30, "mib": 2**20, "kb": 2**10, "bytes": 1}
"""Of the data's names. Ray prints 2^30 bytes as GB."""
ROUNDED = 6e-4
"""The data has converted some figures to GiB with four digits."""


@dataclass(frozen=True)
class Verdict:
    """One text, and what was made of it."""

    row: Mapping[str, Any]
    failure: Failure

    @property
    def phase_is_told(self) -> bool:
        """Whether the text alone tells the phase."""
        return bool(self.row["phase_evidence"] == "text")

    @property
    def missed(self) -> list[str]:
        """Figures that weren't read, or were read otherwise."""
        return [name for name, value in self.row["numbers"].items() if not self._read(name, value)]

    def _read(self, name: str, value: float) -> bool:
        stem, _, unit = name.rpartition("_")
        ours = NAMES.get(name, f"{stem}_bytes" if unit in UNITS else name)
        read = self.failure.numbers.get(ours)
        scale = UNITS.get(unit, 1)
        return read is not None and abs(read - value * scale) <= max(ROUNDED, abs(value) * 1e-4) * scale


def main() -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with failures.jsonl")
    parser.add_argument("--output", type=Path, help="file to write; the terminal without it")
    arguments = parser.parse_args()
    verdicts = read_verdicts(arguments.data)
    text = report(verdicts)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def read_verdicts(folder: Path) -> list[Verdict]:
    """Every text of the data, classified."""
    rows = map(json.loads, (folder / "failures.jsonl").read_text(encoding="utf-8").splitlines())
    return [Verdict(row, classify_log(row["text"].splitlines(keepends=True))) for row in rows]


def scores_and_confusion(verdicts: Sequence[Verdict]) -> str:
    """How often it is right, and what of lack of memory is taken for what, in Markdown."""
    confusion = _confusion(
        verdicts, lambda each: _yes(each.row["is_capacity_failure"]), lambda each: _yes(each.failure.is_capacity)
    )
    return f"{_scores(verdicts)}\n\nIs it a lack of memory? Rows are what a text is:\n\n{confusion}"


def report(verdicts: Sequence[Verdict]) -> str:
    """The whole report, in Markdown."""
    told = [each for each in verdicts if each.phase_is_told]
    parts = [
        _introduction(verdicts),
        "## Scores\n\n" + scores_and_confusion(verdicts),
        "## What ran out\n\n"
        + _confusion(verdicts, lambda each: str(each.row["resource"]), lambda each: each.failure.resource),
        "## Phase, where the text tells it\n\n"
        + _confusion(told, lambda each: str(each.row["phase"]), lambda each: each.failure.phase),
        "## By origin\n\n" + _by_origin(verdicts),
        "## What is wrong\n\n" + _wrong(verdicts),
    ]
    return "\n\n".join(parts) + "\n"


def _introduction(verdicts: Sequence[Verdict]) -> str:
    families = len({each.row["family"] for each in verdicts})
    return (
        "# Diagnosis: how often it is right\n\n"
        f"{len(verdicts)} texts of {families} families are scored: failures of vLLM 0.6 to 0.33 as they were "
        "published, as its source prints them or as a real start left them, and texts that only look like a lack of "
        "memory. The patterns were written with these texts at hand, from the kinds of messages rather than their "
        "words; texts that nobody has looked at will score lower.\n\n"
        "    python -m benchmarks.failures --data FOLDER --output docs/diagnosis.md"
    )


def _scores(verdicts: Sequence[Verdict]) -> str:
    told = [each for each in verdicts if each.phase_is_told]
    numbers = sum(len(each.row["numbers"]) for each in verdicts)
    rows = [
        ("is_capacity", sum(map(_capacity_is_right, verdicts)), len(verdicts)),
        ("resource", sum(map(_resource_is_right, verdicts)), len(verdicts)),
        ("phase", sum(map(_phase_is_right, told)), len(told)),
        ("numbers", numbers - sum(len(each.missed) for each in verdicts), numbers),
    ]
    wrongly = sum(each.failure.is_capacity and not each.row["is_capacity_failure"] for each in verdicts)
    lines = ["| quantity | right | of | share | goal |", "|---|---|---|---|---|"]
    for name, right, count in rows:
        goal = f"{GOALS[name]:.0%}" if name in GOALS else ""
        lines.append(f"| {name} | {right} | {count} | {right / max(1, count):.1%} | {goal} |")
    return "\n".join(lines) + f"\n\nTexts that aren't about a lack of memory and were called one: {wrongly} (goal: 0)."


def _confusion(verdicts: Sequence[Verdict], expected: Callable[[Verdict], str], found: Callable[[Verdict], str]) -> str:
    """Rows are what a text is, columns what it was taken for."""
    pairs = Counter((expected(each), found(each)) for each in verdicts)
    names = sorted({name for pair in pairs for name in pair})
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| **{row}** | {' | '.join(str(pairs[row, column] or '') for column in names)} |" for row in names]
    return "\n".join(lines)


def _by_origin(verdicts: Sequence[Verdict]) -> str:
    lines = ["| origin | texts | is_capacity | phase |", "|---|---|---|---|"]
    for origin in sorted({str(each.row["origin"]) for each in verdicts}):
        group = [each for each in verdicts if each.row["origin"] == origin]
        told = [each for each in group if each.phase_is_told]
        right = f"{sum(map(_capacity_is_right, group)) / len(group):.1%}"
        phase = f"{sum(map(_phase_is_right, told)) / len(told):.1%}" if told else ""
        lines.append(f"| {origin} | {len(group)} | {right} | {phase} |")
    return "\n".join(lines)


def _wrong(verdicts: Sequence[Verdict]) -> str:
    lines = []
    for each in verdicts:
        row, failure = each.row, each.failure
        wrong = []
        if not _capacity_is_right(each):
            wrong.append(f"capacity: is {_yes(row['is_capacity_failure'])}")
        if not _resource_is_right(each):
            wrong.append(f"resource: is {row['resource']}, taken for {failure.resource}")
        if each.phase_is_told and not _phase_is_right(each):
            wrong.append(f"phase: is {row['phase']}, taken for {failure.phase}")
        if each.missed:
            wrong.append(f"figures: {', '.join(each.missed)}")
        if wrong:
            lines.append(f"- {row['id']}: {'; '.join(wrong)}")
    return "\n".join(lines) or "Nothing."


def _capacity_is_right(each: Verdict) -> bool:
    return bool(each.failure.is_capacity == each.row["is_capacity_failure"])


def _resource_is_right(each: Verdict) -> bool:
    return bool(each.failure.resource == each.row["resource"])


def _phase_is_right(each: Verdict) -> bool:
    return bool(each.failure.phase == each.row["phase"])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


if __name__ == "__main__":
    sys.exit(main())
