"""The folder of records: one JSON file per start, ``<cache>/starts/<key>/<run_id>.json``.

Several processes add to one record (engine cores, workers), so a change is read, made and written under a lock file and
put in place by an atomic replace: a reader never sees half a record, and a crash leaves the one before.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vllm_autofit.errors import RecordError, StoreError
from vllm_autofit.experience.record import Record, check

LOCK_SECONDS = 10.0
"""Longest wait for another process that writes under the same key; a write takes milliseconds."""

KEPT_PER_KEY = 50
"""Older records of a key are removed; the newest teach the most."""


class Store:
    """The records of one user.

    Args:
        folder: the cache folder; made with permissions 0700 when first written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = folder / "starts"
        self.skipped: list[str] = []
        """What the last reading set aside, as messages."""

    def path(self, key: str, run_id: str) -> Path:
        """Where the record of one start lies."""
        return self.starts / key / f"{run_id}.json"

    def update(self, key: str, run_id: str, change: Callable[[Record | None], Record]) -> Path:
        """Write ``change(the record as it stands, or None)``.

        Raises:
            StoreError: the folder can't be written, or the lock can't be had.
        """
        path = self.path(key, run_id)
        try:
            for folder in (self.folder, self.starts, path.parent):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(path.parent / ".lock", timeout=LOCK_SECONDS, mode=0o600):
                _replace(path, change(_read_or_set_aside(path)))
        except (OSError, Timeout) as error:
            raise StoreError(str(path), str(error)) from error
        self._forget_old(path.parent)
        return path

    def records(self, key: str) -> Iterator[Record]:
        """The readable records of a key, newest first. Damaged files are set aside and named in ``skipped``.

        Raises:
            StoreError: the folder exists but can't be read.
        """
        self.skipped = []
        yield from self._read_folder(self.starts / key)

    def everything(self) -> Iterator[Record]:
        """The readable records of all keys, newest first.

        Raises:
            StoreError: the folder exists but can't be read.
        """
        self.skipped = []
        folders = [folder for folder in self._list(self.starts) if folder.is_dir()]
        found = [record for folder in folders for record in self._read_folder(folder)]
        yield from sorted(found, key=lambda record: str(record["run_id"]), reverse=True)

    def _read_folder(self, folder: Path) -> Iterator[Record]:
        for path in sorted(self._list(folder), reverse=True):
            if path.suffix != ".json":
                continue
            try:
                yield _read(path)
            except RecordError as error:
                self.skipped.append(f"{error}; {_set_aside(path)}")
            except FileNotFoundError:
                continue  # another process just forgot it
            except OSError as error:
                self.skipped.append(f"{path} can't be read ({error})")

    @staticmethod
    def _list(folder: Path) -> list[Path]:
        try:
            return list(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(str(folder), str(error)) from error

    def _forget_old(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.json"), reverse=True)[KEPT_PER_KEY:]:
            with contextlib.suppress(OSError):
                path.unlink()


def _read(path: Path) -> Record:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecordError(str(path), str(error)) from error
    return check(document, str(path))


def _replace(path: Path, record: Record) -> None:
    text = json.dumps(record, indent=1, sort_keys=False, default=str) + "\n"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _read_or_set_aside(path: Path) -> Record | None:
    """The record as it stands, or None if there is none that can be read."""
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except RecordError:
        _set_aside(path)
        return None


def _set_aside(path: Path) -> str:
    """Rename a damaged file, so that it is named once and never lost."""
    names = (path.with_suffix(f".{number}.damaged" if number else ".damaged") for number in itertools.count())
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except OSError:
        return "left where it is"
    return f"kept as {aside.name}"
