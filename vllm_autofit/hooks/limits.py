"""What the operating system lets this process take, where somebody set a limit: ``ulimit -v``, ``ulimit -d``, a
container's."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from vllm_autofit.facts.cgroups import memory_room

LIMITS = ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData"))
"""Each limit, and the line of ``/proc/self/status`` that it bounds (getrlimit(2), proc_pid_status(5))."""


def process_limit() -> int | None:
    """Bytes that each worker may take for itself; None where nobody set a limit.

    Of the limit on addresses, libraries take many that aren't memory: as many as here, where vLLM is loaded as well.
    """
    data, addresses = _limit(resource.RLIMIT_DATA), _limit(resource.RLIMIT_AS)
    room = None if addresses is None else max(0, addresses - _held("VmSize"))
    return min((limit for limit in (data, room) if limit is not None), default=None)


def room_under_limits(numbers: Mapping[str, Any]) -> dict[str, int]:
    """``free_bytes`` as this process may use them, and ``process_bytes``, what it has resident."""
    room = [limit - _held(name) for number, name in LIMITS if (limit := _limit(number)) is not None]
    if (of_groups := memory_room()) is not None:
        room.append(of_groups)
    free = min([*room, numbers["free_bytes"]]) if "free_bytes" in numbers else min(room, default=None)
    held = {"process_bytes": int(psutil.Process().memory_info().rss)}
    return held if free is None else {**held, "free_bytes": max(0, free)}


def _limit(number: int) -> int | None:
    soft, _hard = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft


def _held(name: str) -> int:
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith(f"{name}:")), 0)
