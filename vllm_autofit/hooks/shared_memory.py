"""Shared memory and semaphores that the processes of a failed attempt had no time to remove.

Python's resource tracker removes them when the command ends, with a warning below our last line; until then each
attempt would hold some of ``/dev/shm``. The processes say what they have mapped while they can.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path("/dev/shm")
TRACKED = {"psm_": "shared_memory", "sem.": "semaphore"}
"""What the tracker calls those that it knows, by the beginning of their names."""
VLLMS = ("psm_", "sem.mp-", "vllm_dist_")
"""How names begin: Python's for shared memory and semaphores, and vLLM's for what CPU ranks talk through (0.32,
``csrc/cpu/shm.cpp``)."""


def mapped() -> list[str]:
    """What this process has mapped, by file name. A semaphore's is another in the list of what is mapped."""
    found: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        inodes = {int(line.split()[4]) for line in lines if f" {FOLDER}/" in line}
        for path in FOLDER.iterdir() if inodes else ():
            with contextlib.suppress(FileNotFoundError):
                if path.name.startswith(VLLMS) and path.lstat().st_ino in inodes:
                    found.append(path.name)
    return found


def remove(names: Iterable[str]) -> None:
    """Remove what is still there of the files of processes that are gone, but what this process uses itself."""
    from multiprocessing import resource_tracker  # late: every process loads this module, few remove

    for name in set(names) - set(mapped()):
        with contextlib.suppress(OSError):
            (FOLDER / name).unlink()
            kind = TRACKED.get(name[:4])
            if kind is not None and resource_tracker._resource_tracker._fd is not None:  # type: ignore[attr-defined]
                resource_tracker.unregister(f"/{name.removeprefix('sem.')}", kind)
