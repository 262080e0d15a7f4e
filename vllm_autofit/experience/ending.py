"""How a start ended, also when its process had no time to say so: killed, or the machine went down."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_autofit.experience.record import Record

ENDINGS = ("clean", "killed", "out_of_memory", "engine_died")
UNKNOWN_FOR = datetime.timedelta(days=30)
"""A start on another machine that said nothing for so long is over."""

Alive = Callable[[Mapping[str, Any]], bool | None]


def ending(record: Record, alive: Alive | None = None, present: datetime.datetime | None = None) -> str:
    """``starting``, ``serving``, ``failed``, ``clean``, ``killed``, ``out_of_memory`` or ``engine_died``.

    Args:
        record: one start.
        alive: says of an outcome whether its process still runs, None if it can't be told; ``still_runs`` by default.
        present: what ages are counted up to; now by default.
    """
    outcome = record["outcome"]
    state = str(outcome["state"])
    if state == "ended":
        how = (outcome.get("ended") or {}).get("how")
        return how if how in ENDINGS else "clean"
    if state == "failed":
        return state
    runs = (alive or still_runs)(outcome)
    if runs is None:
        runs = not _is_long_ago(record, present or datetime.datetime.now(datetime.timezone.utc))
    return state if runs else "killed"


def this_process() -> dict[str, Any]:
    """What tells later whether this process still runs: part of an outcome.

    pid, pid_started (clock ticks since the machine came up), boot (the kernel's id of it), host (which machine or
    container, hashed) and pid_space (where the number of a process counts). Null where the system doesn't say.
    """
    return {
        "pid": os.getpid(),
        "pid_started": _started(os.getpid()),
        "boot": _boot(),
        "host": _host(),
        "pid_space": _pid_space(),
    }


def still_runs(outcome: Mapping[str, Any]) -> bool | None:
    """Whether the process of an outcome still runs; None if that can't be told from here.

    Numbers of processes count within one boot of one machine, and there within one namespace: another container of the
    same machine has its own. The same container in a new namespace was restarted, and what ran in it before is gone.
    """
    pid, boot, host = outcome.get("pid"), outcome.get("boot"), outcome.get("host")
    if not isinstance(pid, int) or not boot or not _boot():
        return None
    if boot != _boot():
        return False if host and host == _host() else None
    space = outcome.get("pid_space")
    if space and space != _pid_space():
        return False if host and host == _host() else None
    started = _started(pid)
    known = outcome.get("pid_started")
    return started is not None and (known is None or known == started)


def _is_long_ago(record: Record, present: datetime.datetime) -> bool:
    """Whether the last word of a start is older than ``UNKNOWN_FOR``. One without a time is."""
    outcome = record["outcome"]
    said = [outcome.get("at"), record.get("started_at")]
    said += [(engine.get("serving") or {}).get("until") for engine in record["engines"]]
    times = [moment for text in said if (moment := _moment(text)) is not None]
    return not times or present - max(times) > UNKNOWN_FOR


def _moment(text: object) -> datetime.datetime | None:
    try:
        moment = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


def _started(pid: int) -> int | None:
    """Field 22 of ``/proc/<pid>/stat`` (proc_pid_stat(5)); None if there is no such process, or it is a zombie."""
    text = _read(f"/proc/{pid}/stat")
    fields = text.rpartition(")")[2].split()  # from field 3 on; field 2 may hold anything
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def _boot() -> str | None:
    return _read("/proc/sys/kernel/random/boot_id").strip() or None


def _host() -> str:
    name = f"{platform.node()} {_read('/etc/machine-id').strip()}"
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _pid_space() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
