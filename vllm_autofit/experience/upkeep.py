"""What keeps the user's own folder small: old records, leftovers of writers that were killed, groups that grew."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vllm_autofit.experience.files import make_folder, names_in
from vllm_autofit.experience.record import stamped
from vllm_autofit.experience.tree import MEMBERS_READ, Tree

KEPT_PER_KEY = 50
"""Older records of a key are removed; the newest teach the most."""
KEPT_RECORDS = 10_000
"""Of all keys together: some 80 MiB."""
KEPT_BYTES = 2**28
"""Of all records together. Reached before ``KEPT_RECORDS`` only where starts have dozens of ranks."""
KEPT_DAYS = 400
"""A record that is older than a year teaches of a vLLM that nobody runs any more."""
DAY = 86400.0
"""Seconds from one sweep to the next, and the age of a leftover that no writer can still be busy with."""


def forget_old_of_key(tree: Tree, key: str, written: str) -> None:
    """Keep the newest records of a key, and in any case the one just written."""
    for run_id in sorted(tree.run_ids(key), reverse=True)[KEPT_PER_KEY:]:
        if run_id != written:
            with contextlib.suppress(OSError):
                tree.path(key, run_id).unlink()


def join(tree: Tree, group: str, key: str) -> None:
    """Say that a key belongs to a group, and was used now. A group keeps the keys that were used last."""
    folder = tree.groups / group
    marker = folder / key
    try:
        os.utime(marker)
    except FileNotFoundError:
        make_folder(folder)
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        members = set(tree.members(group)) | {key}
        for name in names_in(folder) if len(members) >= MEMBERS_READ else ():
            if name not in members:
                with contextlib.suppress(OSError):
                    (folder / name).unlink()


def sweep_when_due(tree: Tree) -> bool:
    """Once a day, remove what is too old or too much. Costs one look at a file when it isn't due.

    Ages are counted up to the sweep before, not up to now: a clock that jumps ahead makes nothing old unless it stays
    there for a day. The first time, only the day is noted.

    Args:
        tree: the user's own folder.

    Returns:
        Whether it was due.
    """
    marker = tree.folder / ".swept"
    present = time.time()
    try:
        before: float | None = marker.stat().st_mtime
    except OSError:
        before = None
    if before is not None and abs(present - before) < DAY:
        return False
    with contextlib.suppress(OSError):
        os.close(os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.utime(marker, (present, present))
        if before is not None:
            _sweep(tree, min(before, present))
    return True


def _sweep(tree: Tree, until: float) -> None:
    oldest = datetime.datetime.fromtimestamp(until, datetime.timezone.utc) - datetime.timedelta(days=KEPT_DAYS)
    kept_bytes = 0
    records = sorted(((run_id, key) for key in tree.all_keys() for run_id in tree.run_ids(key)), reverse=True)
    for number, (run_id, key) in enumerate(records):
        path = tree.path(key, run_id)
        with contextlib.suppress(OSError):
            kept_bytes += path.stat().st_size
            if number >= KEPT_RECORDS or kept_bytes > KEPT_BYTES or (stamped(run_id) or oldest) < oldest:
                path.unlink()
    for path in leftovers(tree):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink()
    for key in tree.all_keys():
        remove_if_empty(tree, key)
    for path in dangling(tree):
        with contextlib.suppress(OSError):
            path.unlink()


def leftovers(tree: Tree) -> Iterator[Path]:
    """Half-written files of processes that were killed, or of ones that are writing now."""
    for folder in (*(tree.starts / key for key in tree.all_keys()), tree.pins):
        for name in names_in(folder):
            if name.endswith(".tmp"):
                yield folder / name


def dangling(tree: Tree) -> Iterator[Path]:
    """Members of groups whose starts are all forgotten."""
    for group in names_in(tree.groups):
        for key in names_in(tree.groups / group):
            if not (tree.starts / key).is_dir():
                yield tree.groups / group / key


def remove_if_empty(tree: Tree, key: str) -> None:
    """Remove the folder of a key if there is nothing in it."""
    with contextlib.suppress(OSError):
        (tree.starts / key).rmdir()
