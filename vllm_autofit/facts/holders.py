"""Which processes hold memory: whose they are, how old, and whether one is an engine that its front end left behind.

Command lines may hold secrets (``--api-key``), so only the words that say what is run are kept.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from vllm_autofit.facts.processes import held_bytes

T = TypeVar("T")

ENGINE = re.compile(r"\S+::(EngineCore|Worker)")
"""Titles of the processes that hold memory (vLLM 0.11 to 0.33, ``set_process_title``); the first part is
``VLLM_PROCESS_NAME_PREFIX``."""
FIRST_PID_NAMESPACE = "pid:[4026531836]"
"""Linux' ``PROC_PID_INIT_INO``. In any other namespace, a container's, the driver's numbers mean other processes."""
LONGEST = 60
"""Characters of a command that are kept."""
MEASURED_SECONDS = 3.0
"""How long to look closely at processes. It takes some 10 ms for each GiB that one holds (Linux 6.18, x86-64)."""


@dataclass(frozen=True)
class Holder:
    """One process that holds memory.

    Attributes:
        pid: its number.
        bytes: what it holds; None where that isn't told.
        user: its owner; empty where the process can't be seen from here.
        age_seconds: since it started; None where it can't be seen.
        command: what it runs, shortened.
        engine: an engine core or a worker of vLLM's.
        orphaned: an engine that no front end is left of.
        shared: ``bytes`` counts memory that it shares with others as its own.
    """

    pid: int
    bytes: int | None
    user: str = ""
    age_seconds: int | None = None
    command: str = ""
    engine: bool = False
    orphaned: bool = False
    shared: bool = False


def device_holders(processes: Mapping[int, int | None]) -> list[Holder]:
    """Who the processes are that a driver numbers, the largest first.

    In a container the driver's numbers are the machine's: then the process stays unknown.
    """
    known = _numbers_are_the_drivers()
    holders = [_described(pid, held) if known else Holder(pid, held) for pid, held in processes.items()]
    return sorted(holders, key=lambda holder: -(holder.bytes or 0))


def host_holders(most: int, without: int | None = None) -> list[Holder]:
    """The ``most`` processes that hold the most of the host's memory, and every engine; the largest first.

    Args:
        most: how many.
        without: a process that is left out, with all its descendants.
    """
    left_out = _family(without)
    resident: dict[int, int] = {}
    for process in psutil.process_iter(["memory_info"]):
        memory = process.info["memory_info"]
        if memory is not None and memory.rss and process.pid not in left_out:
            resident[process.pid] = int(memory.rss)
    largest = sorted(resident, key=lambda pid: -resident[pid])
    # What is shared counts in full here, so that the largest by their share may stand a little further down.
    chosen = [pid for place, pid in enumerate(largest) if place < 2 * most or _is_engine(pid)]
    deadline = time.monotonic() + MEASURED_SECONDS
    holders = []
    for pid in chosen:
        own = held_bytes(pid) if time.monotonic() < deadline else None
        holders.append(_described(pid, resident[pid] if own is None else own, shared=own is None))
    holders = sorted((each for each in holders if each.command), key=lambda holder: -(holder.bytes or 0))
    return [holder for place, holder in enumerate(holders) if place < most or holder.engine]


def _family(pid: int | None) -> set[int]:
    if pid is None:
        return set()
    with suppress(psutil.Error):
        return {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    return {pid}


def _described(pid: int, held: int | None, shared: bool = False) -> Holder:
    """A process as far as it can be seen; one that is gone has no command."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            if process.status() == psutil.STATUS_ZOMBIE:
                return Holder(pid, held)
            engine = _is_engine(pid)
            return Holder(
                pid=pid,
                bytes=held,
                user=_or(process.username, ""),
                age_seconds=max(0, int(time.time() - process.create_time())),
                command=shortened(_or(process.cmdline, []) or [process.name()]),
                engine=engine,
                orphaned=engine and _is_orphaned(process),
                shared=shared,
            )
    except psutil.Error:
        return Holder(pid, held)


def shortened(command: list[str]) -> str:
    """The program; of Python's also the script or module, of vLLM's also the command and the model."""
    if ENGINE.match(command[0]):
        return command[0].split()[0][:LONGEST]
    words, rest = [command[0].rpartition("/")[2]], command[1:]
    if words[0].startswith("python"):
        kept = 2 if rest[:1] == ["-m"] else 1
        if len(rest) < kept or (kept == 1 and rest[0].startswith("-")):
            return words[0]
        words += [*rest[: kept - 1], rest[kept - 1].rpartition("/")[2]]
        rest = rest[kept:]
    if words[-1] == "vllm":
        words += itertools.takewhile(lambda word: not word.startswith("-"), rest[:2])
    return " ".join(words)[:LONGEST]


def _is_engine(pid: int) -> bool:
    return ENGINE.match(_title(pid)) is not None


def _title(pid: int) -> str:
    with suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline()[:1])
    return ""


def _is_orphaned(engine: psutil.Process) -> bool:
    """Whether the first process above it that isn't an engine too can't be its front end.

    A front end runs the same interpreter as its engines, or is called after Python or vLLM. What takes over orphans
    (``init``, ``systemd``, ``tini``, a shell) isn't.
    """
    above: psutil.Process | None = engine
    while above is not None and _is_engine(above.pid):
        above = above.parent()
    if above is None:
        return False  # it is outside of this container
    if re.search("python|vllm", above.name(), re.IGNORECASE):
        return False
    interpreter = _or(engine.exe, "")
    return not interpreter or _or(above.exe, "") != interpreter


def _numbers_are_the_drivers() -> bool:
    with suppress(OSError):
        return str(Path("/proc/self/ns/pid").readlink()) == FIRST_PID_NAMESPACE
    return True


def _or(read: Callable[[], T], otherwise: T) -> T:
    """What ``read`` gives, or ``otherwise`` where we may not look."""
    with suppress(psutil.AccessDenied):
        return read()
    return otherwise
