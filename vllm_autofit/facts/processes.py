"""What the processes of one start hold of the host's memory, as ``/proc`` shows it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

HOST = ("Pss_Anon", "Pss_Shmem")
"""Of ``/proc/PID/smaps_rollup``: memory that a process took from the host, what it shares with
others counted by its share. Pages of files are left out: vLLM's CPU worker counts them as available (0.32,
``get_memory_node_info``)."""
HOST_BEFORE = ("Pss",)
"""The same with pages of files; older kernels tell no more."""

KIB = 1024


def family_bytes(ancestor: int) -> int | None:
    """What a process and all its descendants hold of the host's memory, in bytes.

    None where the system doesn't say, or we aren't one of them: then the number means a process of another machine, or
    of another container.
    Takes some 10 ms for each GiB that they hold (Linux 6.18, x86-64).
    """
    try:
        top = psutil.Process(ancestor)
        family = {ancestor, *(child.pid for child in top.children(recursive=True))}
    except psutil.Error:
        return None
    if os.getpid() not in family:
        return None
    sizes = [held_bytes(pid) for pid in family]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def held_bytes(pid: int) -> int | None:
    """What one process holds of the host's memory, in bytes. None if we may not look; 0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return None if pid == os.getpid() else 0
    except OSError:
        return None
    sizes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in text.splitlines()[1:])}
    names = HOST if all(name in sizes for name in HOST) else HOST_BEFORE
    return sum(int(sizes[name]) for name in names) * KIB
