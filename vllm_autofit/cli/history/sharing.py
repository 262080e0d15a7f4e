"""``history export`` and ``import``: records from one machine to another."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from vllm_autofit.cli.history.opened import HOW_TO_LIST, open_history, reply
from vllm_autofit.cli.history.selection import last_sign, selected
from vllm_autofit.cli.output import say
from vllm_autofit.errors import FlagError, NewerRecordError, RecordError
from vllm_autofit.experience.exchange import checked
from vllm_autofit.experience.files import LARGEST_EXPORT, read_json
from vllm_autofit.experience.record import Record
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
    contents = [_read(name) for name in options.files]
    merged = history.store.merge(
        (record for records, _ in contents for record in records), (pin for _, pins in contents for pin in pins)
    )
    history.tell_skipped()
    text = f"Added {merged.added:,} record{'' if merged.added == 1 else 's'}, extended {merged.extended:,}; "
    text += f"{merged.already_there:,} were there already."
    reply(options, text, merged._asdict())
    return 0


def _read(name: str) -> tuple[list[Record], list[dict[str, Any]]]:
    """The records and the pins in a file that was exported.

    Raises:
        FlagError: it can't be read, or isn't one.
    """
    remedy = "Nothing is added. Name a file that `history export` wrote"
    try:
        return checked(read_json(Path(name), LARGEST_EXPORT), name)
    except OSError as error:
        raise FlagError(name, f"it can't be read ({error.strerror})", remedy) from error
    except NewerRecordError as error:
        raise FlagError(error.path, error.reason, "Nothing is added. Update vllm-autofit") from error
    except RecordError as error:
        raise FlagError(error.path, error.reason, remedy) from error
