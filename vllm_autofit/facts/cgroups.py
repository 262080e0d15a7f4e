"""How much memory the control groups of this process still allow it: what containers and ``systemd-run`` set.

vLLM's CPU backend knows only the group at the root of ``/sys/fs/cgroup`` (0.24 to 0.33, ``cpu_resource_utils.py``), and
none before: a limit of a group further down, as it is seen without a namespace of its own, and ``memory.high`` are lost
on it. Every group on the way up counts. Swap doesn't: a KV cache in swap is of no use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import psutil

FILE_PAGES = ("inactive_file", "active_file")
"""Lines of ``memory.stat`` that count pages of files, which the kernel gives back when the limit is reached. Those of
``tmpfs`` and shared memory are among the anonymous ones."""


def memory_room(root: Path = Path("/")) -> int | None:
    """Bytes that this process and those beside it may still take; None where no group is kept below the host's memory.

    Args:
        root: of the file system, for tests.
    """
    rooms = [room for folder, version in _groups(root) if (room := _room(folder, version)) is not None]
    return min(rooms, default=None)


def _room(folder: Path, version: int) -> int | None:
    statistics = _statistics(folder)
    if version == 2:
        limits, used, prefix = _numbers(folder, "memory.max", "memory.high"), _numbers(folder, "memory.current"), ""
    else:
        limits, used = _numbers(folder, "memory.limit_in_bytes"), _numbers(folder, "memory.usage_in_bytes")
        prefix = "total_"
    limit = min(limits, default=None)
    if limit is None or not used or limit >= psutil.virtual_memory().total:
        return None
    given_back = sum(statistics.get(f"{prefix}{name}", 0) for name in FILE_PAGES)
    return max(0, limit - used[0] + min(given_back, used[0]))


def _groups(root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of this process's memory group and of those above it that can be seen, and their version."""
    for mounted, shown, version in _hierarchies(root):
        own = _own_group(root, version)
        if own is None:
            continue
        # A container may show a part of the tree only (``shown``), and name groups from outside of it.
        inside = own.relative_to(shown) if own.is_relative_to(shown) else PurePosixPath()
        folder = root / mounted.relative_to("/")
        yield folder, version
        for part in inside.parts:
            if part == "..":
                break
            folder /= part
            yield folder, version


def _hierarchies(root: Path) -> Iterator[tuple[PurePosixPath, PurePosixPath, int]]:
    """Where the hierarchies that may limit memory are mounted, what of them is shown there, and their version."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        mount, kind = before.split(), after.split()
        if len(mount) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            yield PurePosixPath(mount[4]), PurePosixPath(mount[3]), 2
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            yield PurePosixPath(mount[4]), PurePosixPath(mount[3]), 1


def _own_group(root: Path, version: int) -> PurePosixPath | None:
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if (number == "0" and not controllers) if version == 2 else ("memory" in controllers.split(",")):
            return PurePosixPath(path)
    return None


def _numbers(folder: Path, *names: str) -> list[int]:
    """What the files hold; "max" and what isn't there are left out."""
    found = [line for name in names for line in _lines(folder / name)[:1]]
    return [int(line) for line in found if line.isdecimal()]


def _statistics(folder: Path) -> dict[str, int]:
    pairs = [line.split() for line in _lines(folder / "memory.stat")]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _lines(path: Path) -> Sequence[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
