"""How well the estimator tells what published starts of vLLM took, out of sample.

    python -m benchmarks.accuracy --data FOLDER [--output docs/accuracy.md]

``FOLDER`` holds ``measurements.jsonl`` (starts as published), ``models.jsonl`` (configs of their models) and
``failures.jsonl`` (texts of failures).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks import failures
from benchmarks.cases import SEEN, Case, Skipped, read_cases
from benchmarks.fitting import fitted
from benchmarks.scores import GOALS, KV_WORST, QUANTITIES, WEIGHTS_NOT_TOLD, Score, scores_of
from benchmarks.started import Verdict, verdicts

Group = Callable[[Score], str]


def main() -> int:
    """Write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with measurements.jsonl, models.jsonl and failures.jsonl"
    )
    parser.add_argument("--output", type=Path, help="file to write; the terminal without it")
    arguments = parser.parse_args()
    cases, skipped = read_cases(arguments.data)
    text = report(cases, skipped) + _diagnoses(arguments.data)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def report(cases: Sequence[Case], skipped: Sequence[Skipped]) -> str:
    """The whole report, in Markdown."""
    current = [case for case in cases if not case.row.old_engine]
    old = [case for case in cases if case.row.old_engine]
    scores = [score for case in current for score in scores_of(case)]
    certain = [score for score in scores if not score.guessed]
    held_out = [score for score in certain if score.case.held_out]
    parts = [
        _introduction(cases, skipped),
        "## Out of sample\n\nModels that no constant was fitted on, settings as published.\n\n" + _summary(held_out),
        "## All rows with their settings known\n\n" + _summary(certain),
        "## Rows where a setting had to be guessed\n\n"
        "The version, the utilisation or the device's exact size isn't published; where a pool of known size is cut "
        "up, what that depends on: version and context where a model has layers of several kinds, the layers of a "
        "drafter of its own, which of two unlike devices printed it. What graphs took, as printed up to 0.17, "
        "has memory in it that torch gave back meanwhile.\n\n" + _summary([score for score in scores if score.guessed]),
        "## By vLLM version\n\n" + _by(certain, lambda score: score.case.row.version_range),
        "## By device\n\n" + _by(certain, lambda score: score.case.row.kind),
        "## By family\n\n" + _by(certain, lambda score: score.case.facts.model_type),
        "## The old engine (V0)\n\nNot a goal: another profile run, which this package doesn't meet.\n\n"
        + _summary([score for case in old for score in scores_of(case)]),
        "## What misses its goal\n\n" + _misses(scores),
        "## Fitted constants\n\n" + _constants(current),
        "## Would it have started?\n\n" + _started(verdicts(current)),
        "## Rows that could not be scored\n\n"
        + _skipped(skipped)
        + "\n\nOf these only the weights aren't scored:\n\n"
        + "\n".join(f"- {row}: {reason}" for row, reason in sorted(WEIGHTS_NOT_TOLD.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _diagnoses(folder: Path) -> str:
    """How often ``vllm-autofit diagnose`` is right, in short."""
    words = failures.scores_and_confusion(failures.read_verdicts(folder))
    return f"\n## Failures told from their logs\n\nBy phase and by origin: [diagnosis.md](diagnosis.md).\n\n{words}\n"


def _introduction(cases: Sequence[Case], skipped: Sequence[Skipped]) -> str:
    sources = len({case.row.raw["source"] for case in cases})
    cold = ", ".join(sorted(case.row.id for case in cases if case.row.is_cold)) or "none"
    return (
        "# Accuracy\n\n"
        f"{len(cases)} published starts from {sources} sources are scored, {len(skipped)} can't be. "
        "Errors are relative to what vLLM printed: + means that more was predicted than was measured. For memory that "
        "is taken, too little predicted is the dangerous side; for the KV cache, too much.\n\n"
        "A figure printed with two decimals is known to 0.005 GiB: errors are counted beyond that.\n\n"
        "Bytes per logit, the layers' widths and the version borders were read in vLLM's source. The other constants "
        "were fitted on half of the models, which follows from a hash of a model's name, or set from single rows "
        f'({", ".join(sorted(SEEN))}). "Out of sample" has the other half, without those rows. All rows were '
        "looked at while the rules were written, so even that is a weaker test than starts nobody has seen.\n\n"
        "What a row doesn't say about batches is taken as vLLM's default for a server. A start is taken to have found "
        f"its model in the compile cache; known to have compiled it anew are {cold}: vLLM counts what compiling takes, "
        "so they are predicted with it.\n\n"
        "    python -m benchmarks.accuracy --data FOLDER --output docs/accuracy.md"
    )


def _summary(scores: Sequence[Score]) -> str:
    lines = [
        "| quantity | n | models | mean abs. error | median | p95 | worst over | worst under | goal | rows within |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for quantity in QUANTITIES:
        lines += _line(quantity, [score for score in scores if score.quantity == quantity])
    return "\n".join(lines)


def _line(quantity: str, scores: Sequence[Score], first: str | None = None) -> list[str]:
    if not scores:
        return []
    errors = sorted(abs(score.error) for score in scores)
    signed = [score.error for score in scores]
    goal = GOALS.get(quantity)
    within = sum(error <= goal for error in errors) if goal else None
    cells = [
        first or quantity,
        str(len(scores)),
        str(len({score.case.row.model for score in scores})),
        f"{statistics.fmean(errors):.1%}",
        f"{statistics.median(errors):.1%}",
        f"{errors[max(0, -(-95 * len(errors) // 100) - 1)]:.1%}",
        f"{max(0.0, *signed):+.1%}" if len(signed) > 1 else f"{max(0.0, signed[0]):+.1%}",
        f"{min(0.0, *signed):+.1%}" if len(signed) > 1 else f"{min(0.0, signed[0]):+.1%}",
        f"{goal:.1%}" if goal else "",
        f"{within}" if within is not None else "",
    ]
    return ["| " + " | ".join(cells) + " |"]


def _by(scores: Sequence[Score], group: Group) -> str:
    lines = [
        "| quantity, group | n | models | mean abs. error | median | p95 | worst over | worst under | goal | within |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for quantity in QUANTITIES:
        groups: dict[str, list[Score]] = defaultdict(list)
        for score in scores:
            if score.quantity == quantity:
                groups[group(score)].append(score)
        for name in sorted(groups):
            lines += _line(quantity, groups[name], f"{quantity}, {name}")
    return "\n".join(lines)


def _misses(scores: Iterable[Score]) -> str:
    lines = ["| row | model | quantity | predicted | measured | error | reason |", "|---|---|---|---|---|---|---|"]
    found = sorted(scores, key=lambda score: (QUANTITIES.index(score.quantity), score.case.row.id))
    for score in found:
        if score.quantity in GOALS and score.missed:
            lines.append(
                f"| {score.case.row.id} | {score.case.row.model} | {score.quantity} | {score.predicted:,.2f} "
                f"| {score.measured:,.2f} | {score.error:+.1%} | {score.reason} |"
            )
    over = sorted(
        score.case.row.id for score in found if score.quantity.endswith("all estimated") and score.over_promises
    )
    known = ", ".join(over) or "none"
    return (
        f"The KV pool may never be over by more than {KV_WORST:.0%}. With all settings known it is in: {known}.\n\n"
        + "\n".join(lines)
    )


def _constants(cases: Sequence[Case]) -> str:
    lines = [
        "What stands in `vllm_autofit/memory`, and what the same fit gives now on the models that are fitted on.",
        "",
        "| constant | stands | fitted now | rows |",
        "|---|---|---|---|",
    ]
    lines += [f"| {fit.name} | {fit.stands} | {fit.now} | {fit.rows} |" for fit in fitted(cases)]
    return "\n".join(lines)


def _started(found: Sequence[Verdict]) -> str:
    if not found:
        return "No failed start has enough facts."
    estimated = [verdict for verdict in found if not verdict.from_print]
    foreseen = sum(verdict.foreseen for verdict in estimated)
    judged = [verdict for verdict in estimated if not verdict.case.config_lacks_quantization]
    avoided = sum(verdict.avoided for verdict in judged)
    printed = sum(verdict.from_print and verdict.foreseen for verdict in found)
    lines = [
        f"Of {len(estimated)} failed starts with enough facts, {foreseen} ({foreseen / max(1, len(estimated)):.0%}) "
        "are foreseen with the settings they were started with, before anything is loaded. Where the device isn't "
        f"named but the number of blocks was printed, {printed} of {len(found) - len(estimated)} follow from that "
        "number; they are no test of the estimate.",
        "",
        f"With the five settings left to the plan, {avoided} of {len(judged)} ({avoided / max(1, len(judged)):.0%}) "
        "are spared: it chooses another value for what the start failed of, or says before anything is loaded that the "
        "model doesn't fit. Whether the other value is enough is the estimate's word: it wasn't run. Rows of quantised "
        "copies with the config of the original aren't judged.",
        "",
        "| row | model | failed in | with its settings | foreseen | the plan instead | spared | fix that worked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for verdict in found:
        row = verdict.case.row
        lines.append(
            f"| {row.id} | {row.model} | {row.raw.get('failure_phase', '')} | {verdict.predicted} "
            f"| {'yes' if verdict.foreseen else 'no'} | {verdict.planned} | {'yes' if verdict.avoided else 'no'} "
            f"| {row.raw.get('fix_reported', '')} |"
        )
    return "\n".join(lines)


def _skipped(skipped: Sequence[Skipped]) -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for each in skipped:
        reasons[each.reason].append(each.row.id)
    return "\n".join(f"- {reason} ({len(ids)}): {', '.join(ids)}" for reason, ids in sorted(reasons.items()))


if __name__ == "__main__":
    raise SystemExit(main())
