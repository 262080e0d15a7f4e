"""``history export`` and ``import``: records from one machine to another."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vllm_autofit.cli.history.opened import HOW_TO_LIST, History, open_history, reply
from vllm_autofit.cli.history.selection import last_sign, selected
from vllm_autofit.cli.output import say
from vllm_autofit.errors import FlagError, NewerRecordError, RecordError
from vllm_autofit.experience.exchange import checked
from vllm_autofit.experience.files import LARGEST_EXPORT, read_json
from vllm_autofit.experience.observed import seconds_served
from vllm_autofit.experience.record import STATES, Record
from vllm_autofit.render.history import Start


def export(options: argparse.Namespace) -> int:
    """Write chosen records, without secrets, as one file."""
    history = open_history()
    now = datetime.datetime.now(datetime.timezone.utc)
    chosen = selected(history.starts, options.which, options.older_than, now)
    if not chosen:
        raise FlagError("export", f"no such start is remembered in {history.folder}", HOW_TO_LIST)
    text = json.dumps(history.store.export([_settled(start, now) for start in chosen]), separators=(",", ":"))
    if len(text) > LARGEST_EXPORT:
        raise FlagError(
            "export",
            f"{len(chosen):,} records take {len(text):,} bytes, and `import` reads {LARGEST_EXPORT:,}",
            "Choose some: starts, keys or models",
        )
    if options.output is None:
        print(text)
    else:
        _write(options.output, text)
    say(f"wrote {len(chosen):,} record{'' if len(chosen) == 1 else 's'}")
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise FlagError(f"--output {path}", f"it can't be written ({error.strerror})", "Name another file") from error


def _settled(start: Start, now: datetime.datetime) -> Record:
    """A record that says by itself that its process is gone: elsewhere, nobody could tell."""
    outcome = start.record["outcome"]
    if start.grade != "killed" or outcome["state"] == "ended":
        return start.record
    ended = {"how": "killed", "at": last_sign(start, now).isoformat(timespec="seconds")}
    return {**start.record, "outcome": {**outcome, "state": "ended", "ended": ended}}


def import_(options: argparse.Namespace) -> int:
    """Add what files hold. All of them are read and checked before the first record is added."""
    history = open_history()
    documents = [(name, _read(name)) for name in options.files]
    extended = _extend(history, [record for name, document in documents for record in checked(document, name)[0]])
    counts = [history.store.merge(document, name) for name, document in documents]
    added, there = (sum(column) for column in zip(*counts, strict=True))
    text = f"Added {added:,} record{'' if added == 1 else 's'}, extended {extended:,}; "
    text += f"{there - extended:,} were there already."
    reply(options, text, {"added": added, "extended": extended, "already_there": there - extended})
    return 0


def _extend(history: History, records: Sequence[Record]) -> int:
    """Replace records that are here by those of the same starts that served longer, or know how they ended."""
    known = {start.run_id: start.record for start in history.starts if start.origin != "layer"}
    later: dict[str, Record] = {}
    for record in records:
        before = later.get(record["run_id"], known.get(record["run_id"]))
        if before is not None and before["key"] == record["key"] and _progress(before) < _progress(record):
            later[record["run_id"]] = record
    for run_id, record in later.items():
        history.store.update(record["key"], run_id, partial(_later, record))
    return len(later)


def _later(record: Record, before: Record | None) -> Record:
    """What stands here by now, unless ``record`` goes on from it. Whose start it was stays as it is known here."""
    if before is None or _progress(before) >= _progress(record):
        return before or record
    whose = {name: before[name] for name in ("imported",) if name in before}
    return {name: value for name, value in record.items() if name != "imported"} | whose


def _progress(record: Record) -> tuple[float, int]:
    """How much a record knows of its start: seconds served, then whether it knows the end."""
    return seconds_served(record), STATES.index(record["outcome"]["state"])


def _read(name: str) -> object:
    """The document in a file that was exported.

    Raises:
        FlagError: it can't be read, or isn't one.
    """
    remedy = "Nothing is added. Name a file that `history export` wrote"
    try:
        document = read_json(Path(name), LARGEST_EXPORT)
        checked(document, name)
    except OSError as error:
        raise FlagError(name, f"it can't be read ({error.strerror})", remedy) from error
    except NewerRecordError as error:
        raise FlagError(error.path, error.reason, "Nothing is added. Update vllm-autofit") from error
    except RecordError as error:
        raise FlagError(error.path, error.reason, remedy) from error
    return document
