"""What a user reads last of an engine that died while it served, or that failed to start where nobody makes it again.

Said by the front end, or the launcher, which outlives the engine. It reads the record, where the engine core wrote why
it died, or the front end that it was killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_autofit.experience import observed
from vllm_autofit.experience.record import Record
from vllm_autofit.hooks.channel import NAME
from vllm_autofit.hooks.deadline import folder, within
from vllm_autofit.hooks.runs import Run, failed_here
from vllm_autofit.render.failure import death_line, last_line

SHARE = "gpu_memory_utilization"


def last_words(run: Run) -> str | None:
    """The line, without our name; None for an engine that didn't die, left no record, or whose end another says.

    Raises:
        AutofitError: the record can't be read.
    """
    if run.get("unrecorded"):
        return None
    record = within(folder(run["cache_dir"]), _record, run)
    failure = {} if record is None else observed.failure_of(record)
    if record is None or not failure:
        return None
    if record["outcome"]["state"] == "failed":
        return _failed(run, record, failure)
    least = min(observed.least_free(record).values(), default=None)
    return death_line(failure, observed.requests(record), least, _next_start(record))


def _failed(run: Run, record: Record, failure: Mapping[str, Any]) -> str | None:
    """Of a start that no ``hooks/attempts.py`` speaks for: a launcher's, that other processes take part in."""
    attempted = NAME in run or any(run["run_id"] == each["run_id"] for each in failed_here(run["key"]))
    if attempted or record["plan"].get("mode") == "observe" or not failure.get("is_capacity"):
        return None
    taught = _teaches(record) and not _set_by_user(record)
    return last_line(failure, attempts=1, taught=taught, only_once="other processes wait for the engine")


def _record(run: Run) -> Record | None:
    from vllm_autofit.experience.store import Store

    found = Store(Path(run["cache_dir"])).records(run["key"])
    return next((record for record in found if record["run_id"] == run["run_id"]), None)


def _next_start(record: Record) -> str:
    """What it does otherwise; what the user set stays. Empty where it does nothing."""
    if not _teaches(record):
        return ""
    return _set_by_user(record) or "The next start knows, and leaves more of it free."


def _teaches(record: Record) -> bool:
    """Whether a start ran out of what its plan shares out."""
    return bool(observed.failure_of(record).get("is_capacity")) and observed.is_about_device(record)


def _set_by_user(record: Record) -> str:
    """What the user has to change, where the next start may not."""
    if (record["settings"].get(SHARE) or {}).get("chosen_by") == "user":
        return "--gpu-memory-utilization is yours and stays: set less of it."
    if (record["plan"].get("budget") or {}).get("headroom_source") == "user":
        return "VLLM_AUTOFIT_HEADROOM is yours and stays: set more of it."
    return ""
