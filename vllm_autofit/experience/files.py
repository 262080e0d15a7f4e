"""JSON files that survive a crash: read with limits, replaced whole or not at all, set aside when damaged."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import stat
import tempfile
from pathlib import Path

from vllm_autofit.errors import RecordError
from vllm_autofit.units import MIB

LARGEST_FILE = MIB
"""Bytes of one record. One rank takes about 1 KiB of it, the rest some 8 KiB."""
LARGEST_EXPORT = 64 * MIB
"""Bytes of a file of many records: of all that one user may have."""
BYTES_PER_CONTAINER = 32
"""Lists and objects take the decoder most of its time and memory. Records have one for each 100 bytes or so; a file of
60 MiB that held nothing else took 16 seconds and 1.6 GiB to refuse."""


def read_json(path: Path, largest: int = LARGEST_FILE) -> object:
    """What a file holds. Nothing larger than ``largest`` bytes is read, and nothing that isn't a regular file.

    Raises:
        RecordError: it is not JSON, or too large.
        OSError: it can't be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise RecordError(str(path), "it is no regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(largest + 1)
    finally:
        os.close(handle)
    if len(content) > largest:
        raise RecordError(str(path), f"it is larger than {largest} bytes")
    if content.count(b"[") + content.count(b"{") > largest // BYTES_PER_CONTAINER:
        raise RecordError(str(path), "it holds more lists and objects than records have")
    try:
        return _DECODER.decode(content.decode("utf-8-sig"))
    except (ValueError, RecursionError, MemoryError) as error:
        raise RecordError(str(path), str(error) or "it is nested too deeply") from error


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


_DECODER = json.JSONDecoder(parse_constant=_not_a_number)


def write_json(path: Path, document: object, *, durable: bool = True) -> None:
    """Put ``document`` in the place of what ``path`` holds, at once and for good; or raise, and change nothing.

    The folder is made where there is none. What needn't outlive the machine isn't ``durable``: that costs no wait for
    the disk.

    Raises:
        RecordError: it is larger than would be read again.
        OSError: it can't be written.
    """
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if len(text) > LARGEST_FILE:
        raise RecordError(str(path), f"it would take {len(text)} bytes, more than {LARGEST_FILE}")
    handle, name = _beside(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    if durable:
        sync_folder(path.parent)


def _beside(path: Path) -> tuple[int, str]:
    """A new file in the same folder, made once more if another process just removed it for being empty."""
    make_folder(path.parent)
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    except FileNotFoundError:
        make_folder(path.parent)
        return tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut. Not every file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """A folder that only this user can enter; one that is there already is left as it is."""
    if folder.is_dir():
        return
    if not folder.parent.exists():
        make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(folder.parent)


def set_aside(path: Path) -> str:
    """Rename a damaged file, so that it is named once and never lost. Says what became of it."""
    names = (path.with_suffix(f".{number}.damaged" if number else ".damaged") for number in itertools.count())
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except OSError:
        return "left where it is"
    return f"kept as {aside.name}"


def names_in(folder: Path) -> list[str]:
    """The names of what a folder holds; none if it doesn't exist.

    Raises:
        OSError: it can't be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries]
    except FileNotFoundError:
        return []
