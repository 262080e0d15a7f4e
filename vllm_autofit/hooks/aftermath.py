"""After a failed attempt, before the next: nothing of it is left, and its memory has come back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import stat
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_autofit.errors import NoAnswerError
from vllm_autofit.experience.ending import still_runs
from vllm_autofit.hooks import shared_memory
from vllm_autofit.hooks.guard import logger
from vllm_autofit.units import MIB

PATIENCE_SECONDS = 30.0
"""For all of the waiting before another attempt. Processes that lost their engine core end once they notice."""
SIGNALS = ((10.0, signal.SIGTERM), (20.0, signal.SIGKILL))
"""What a process that stays is sent, and after how many seconds: nobody else will end it."""
LAST_PATIENCE_SECONDS = 5.0
LAST_SIGNALS = ((0.5, signal.SIGTERM), (3.0, signal.SIGKILL))
"""The same where no attempt follows, and the user waits for the end."""
KILLED_SECONDS = 1.0
"""For a process that was killed to be gone."""
POLL_SECONDS = 0.1
SETTLED_SECONDS = 0.5
SETTLED_BYTES = 64 * MIB
"""Free memory has come back when it grows by less than this in that time. A driver gives it back after the process."""
SOCKET_SECONDS = 1.0
"""A younger socket may not listen yet."""

Process = Mapping[str, Any]
"""As ``ending.this_process`` describes it."""
Told = Sequence[Mapping[str, Any]]
"""Lines of ``hooks/channel.py``."""


def drop(instance: Any, error: BaseException) -> None:
    """Empty a half-made engine, and let go of all that the functions held which made it."""
    stop = getattr(instance, "shutdown", None) or getattr(getattr(instance, "renderer", None), "shutdown", None)
    if stop is not None:
        stop()
    vars(instance).clear()
    for each in _chain(error):
        traceback.clear_frames(each.__traceback__)
    gc.collect()


def wait(told: Told, free_bytes: Callable[[], int]) -> None:
    """Until its processes are gone and free memory no longer grows; says which are still there if that takes too long.

    Args:
        told: what the processes of the failed attempt told.
        free_bytes: reads what is free on the devices.

    Raises:
        asyncio.CancelledError: Ctrl-C was pressed.
    """
    began = time.monotonic()
    left = _wait_for_end(_processes(told), PATIENCE_SECONDS, SIGNALS)
    if left:
        names = ", ".join(str(each["pid"]) for each in left)
        logger.warning("vllm-autofit: processes of the failed attempt still hold memory: %s.", names)
        return
    with contextlib.suppress(NoAnswerError):  # who can't be asked what is free can't be waited for
        before = free_bytes()
        while time.monotonic() - began < PATIENCE_SECONDS:
            sleep(SETTLED_SECONDS)
            now = free_bytes()
            if now - before < SETTLED_BYTES:
                return
            before = now


def end(told: Told) -> None:
    """End its processes, for good.

    Raises:
        asyncio.CancelledError: Ctrl-C was pressed.
    """
    _wait_for_end(_processes(told), LAST_PATIENCE_SECONDS, LAST_SIGNALS)


def abandon(told: Told, since: float) -> None:
    """Ctrl-C was pressed while they were waited for: kill its processes, and remove what they left."""
    processes = _processes(told)
    _send(processes, signal.SIGKILL)
    deadline = time.monotonic() + KILLED_SECONDS
    while any(map(still_runs, processes)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    sweep(told, since)


def sweep(told: Told, since: float) -> None:
    """Remove what the processes of a failed attempt left behind, begun at ``since`` (Unix time).

    vLLM names its sockets by UUIDs, in a folder that it shares with everybody: only those go that nobody listens on.
    """
    if not any(map(still_runs, _processes(told))):
        shared_memory.remove(name for each in told for name in each.get("mapped", ()))
    envs = sys.modules.get("vllm.envs")
    for path in Path(getattr(envs, "VLLM_RPC_BASE_PATH", tempfile.gettempdir())).iterdir():
        with contextlib.suppress(OSError):
            if _is_uuid(path.name) and _is_abandoned(path, since):
                path.unlink()


def _processes(told: Told) -> list[Process]:
    """All but this one: an engine without a process of its own tells of it, too."""
    found = {each["process"]["pid"]: each["process"] for each in told if "process" in each}
    return [process for pid, process in found.items() if pid != os.getpid()]


def _wait_for_end(
    processes: list[Process], patience: float, signals: Sequence[tuple[float, signal.Signals]]
) -> list[Process]:
    """Those that are still there in the end."""
    began, due = time.monotonic(), list(signals)
    while processes := [each for each in processes if still_runs(each)]:
        seconds = time.monotonic() - began
        if seconds > patience:
            break
        if due and seconds > due[0][0]:
            number = due.pop(0)[1]
            _send(processes, number)
        sleep(POLL_SECONDS)
    return processes


def _send(processes: Sequence[Process], number: signal.Signals) -> None:
    for each in processes:
        with contextlib.suppress(OSError):
            if still_runs(each):
                os.kill(each["pid"], number)


def is_interrupted() -> bool:
    """Whether Ctrl-C was pressed where asyncio turns that into a task to be cancelled (Python 3.11 on).

    It would be once it waits for something; making an engine never does.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs here
        return False
    return task is not None and getattr(task, "cancelling", int)() > 0


def sleep(seconds: float) -> None:
    time.sleep(seconds)
    if is_interrupted():
        raise asyncio.CancelledError


def _is_uuid(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


def _is_abandoned(path: Path, since: float) -> bool:
    status = path.lstat()
    young = status.st_ctime > time.time() - SOCKET_SECONDS
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.getuid() or status.st_ctime < since or young:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and all that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
