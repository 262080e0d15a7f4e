"""docs/compatibility.md, from what the checks found and from the signatures on record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dev.signatures import RECORD, lacking, read
from dev.versions.check import CHECKS, NOT_RUN, SHARE_COUNTS_SINCE, TAKEN_GIB

HEAD = """# Which versions of vLLM it works with

vLLM 0.11 to 0.33. One code path for all: each function of vLLM's that we hook is looked at when it is loaded, by name
and parameters. One that is missing or changed switches off just what needs it, with one line in the log and a row in
`vllm-autofit doctor`; vLLM starts all the same.
"""

RUNS = """
## Real starts

`python -m dev.versions --out docs/compatibility.md` makes an environment for each version, with the packages of its
time, and runs the checks below with vLLM's CPU backend and a small model. ✓: seen in that run. `not run`: not tried
yet. Why a check failed stands below the table.

"""


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown.

    Args:
        found: by version: ``date``, ``packages`` and ``found`` (by check; empty: all well).
    """
    versions = sorted(found, key=_number)
    return HEAD + RUNS + "\n".join((*_table(versions, found), *_legend(), *_signatures())) + "\n"


def _table(versions: Sequence[str], found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield f"| vLLM | {' | '.join(CHECKS)} | torch | transformers | Python | date |"
    yield "|---" * (len(CHECKS) + 5) + "|"
    notes: list[str] = []
    for version in versions:
        result = found[version]
        cells = [_cell(result["found"][check], notes) for check in CHECKS]
        packages = [result["packages"].get(name, "–") for name in ("torch", "transformers", "python")]
        yield f"| {version} | {' | '.join((*cells, *packages, result['date']))} |"
    yield ""
    yield from (f"[{number}] {note}  " for number, note in enumerate(notes, 1))


def _cell(why: str, notes: list[str]) -> str:
    if not why:
        return "✓"
    if why == NOT_RUN:
        return why
    if why not in notes:
        notes.append(why)
    return f"no [{notes.index(why) + 1}]"


def _legend() -> Iterator[str]:
    yield "What each check looks at:"
    yield ""
    yield from (f"- **{name}**: {text}." for name, text in CHECKS.items())
    yield ""
    yield (
        f"How a start is made to fail: from 0.{SHARE_COUNTS_SINCE} on, a neighbour takes {TAKEN_GIB:g} GiB between the "
        "plan and vLLM's look at the free memory. Before that, the CPU backend looks at nothing that is free; there, "
        "a model that vllm-autofit doesn't know needs more KV cache for its context than `VLLM_CPU_KVCACHE_SPACE=1` "
        "holds. "
        f"Before 0.{SHARE_COUNTS_SINCE} the CPU backend doesn't use `gpu_memory_utilization` at all, so that what is "
        "filled in there is seen and recorded, and has no effect; GPU backends have always used it."
    )
    yield ""
    yield "GPU: not measured here, for any version (see docs/benchmarks.md)."


def _signatures() -> Iterator[str]:
    recorded = read(RECORD)
    yield ""
    yield "## Functions that we hook"
    yield ""
    yield (
        f"`tests/data/vllm_signatures.json` has the parameters of every function that we hook in {len(recorded)} "
        f"versions, {next(iter(recorded))} to {next(reversed(recorded))}, read from the source in vLLM's wheels "
        "(`python -m dev.signatures WHEEL...`). `make test` compares our hooks with all of them, and the installed "
        "vLLM with its own. All fit, but for these:"
    )
    yield ""
    yield "| function | not in | what doesn't work there |"
    yield "|---|---|---|"
    for function, (purpose, versions) in lacking(recorded).items():
        which = versions[0] if len(versions) == 1 else f"{versions[0]} to {versions[-1]}"
        yield f"| `{function}` | {which} | {purpose} |"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
