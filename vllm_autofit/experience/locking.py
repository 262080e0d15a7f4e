"""One process at a time, also where the file system's locks don't work.

Network and user-space file systems may refuse ``flock`` (ENOLCK, ENOTSUP, ENOSYS) or grant it to everybody. Which it
is, is tried once per process and folder: a lock held through one descriptor must be refused through another. Where it
isn't, a file that exists while the lock is held does the same (filelock's ``SoftFileLock``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

LOCK_SECONDS = 30.0
"""Longest wait for other processes. A write takes milliseconds, but the lock isn't handed out in turn: of 100 processes
that write without a pause, one may wait for seconds."""
STALE_SECONDS = 4.0
"""A mark that stays the same for so long was left by a process that was killed: holding it takes milliseconds."""

_works: dict[Path, bool] = {}


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock that ``path`` names. The file stays; the kernel releases the lock of a process that dies.

    Raises:
        OSError: the lock can't be had, or not within ``LOCK_SECONDS``.
    """
    # Imported here: a start that only reads needs no lock, and filelock takes longer to import than all of us.
    from filelock import FileLock

    if path.parent not in _works:
        _works[path.parent] = locks_work(path)
    if not _works[path.parent]:
        with _marked(path.with_name(path.name + ".held")):
            yield
        return
    with FileLock(path, timeout=LOCK_SECONDS, mode=0o600):
        yield


def locks_work(path: Path) -> bool:
    """Whether a lock on a file that is held through one descriptor is refused through another.

    Raises:
        OSError: the file can't be opened.
    """
    try:
        import fcntl
    except ImportError:  # not a Unix; filelock has another way there
        return True
    with contextlib.ExitStack() as opened:
        handles = []
        for _ in range(2):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, handle)
            handles.append(handle)
        try:
            for handle in handles:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
        return False


@contextlib.contextmanager
def _marked(mark: Path) -> Iterator[None]:
    from filelock import SoftFileLock, Timeout

    lock = SoftFileLock(mark, mode=0o600)
    before = _identity(mark)
    try:
        held = lock.acquire(timeout=STALE_SECONDS)
    except Timeout:
        if before is not None and _identity(mark) == before:
            _remove_stale(mark, before)
        held = lock.acquire(timeout=LOCK_SECONDS)
    with held:
        yield


def _identity(mark: Path) -> tuple[int, int] | None:
    """Tells one mark from the next, without a look at any clock but the file system's own."""
    try:
        status = mark.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _remove_stale(mark: Path, stale: tuple[int, int]) -> None:
    """Remove the mark if it is still ``stale``; one that another process made meanwhile is put back."""
    aside = mark.with_name(f"{mark.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        mark.rename(aside)
        if _identity(aside) != stale:
            mark.hardlink_to(aside)
    with contextlib.suppress(OSError):
        aside.unlink()
