"""A time limit for whatever we read or write of the world around vLLM: a driver that is stuck, a dead network folder.

What doesn't answer is left behind in a thread of its own, and not asked again before it has answered. Such a thread
waits in the C code of a driver or of the system, without Python's global lock: vLLM runs on, forks, and ends. One that
the kernel can't interrupt keeps its process from being reaped, as vLLM's own calls of that driver would.

Only what vLLM doesn't need itself is asked here. CUDA is not: its current device belongs to the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from vllm_autofit.errors import NoAnswerError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """How long somebody may take to answer.

    Attributes:
        what: who is asked, as a sentence begins.
        seconds: until we go on without.
        remedy: what a user can do.
    """

    what: str
    seconds: float
    remedy: str


STUCK = "See whether nvidia-smi answers; if it hangs too, the driver is stuck: look for Xid in the kernel's log"
DRIVER = Limit("the NVIDIA driver (NVML)", 30.0, STUCK)
"""Before a start. A driver that nobody keeps awake sets each device up when it is first asked, 1 to 3 s a device
(NVIDIA, "Driver Persistence"): 24 s for eight. Not measured here."""
DRIVER_IN_USE = Limit(DRIVER.what, 5.0, STUCK)
"""While an engine runs, which keeps the driver awake: it answers within milliseconds."""
HOST = Limit("the system (/proc and /sys)", 10.0, "See with ps which processes wait for a disk or a driver (state D)")
"""Takes some 10 ms for each GiB that a start's processes hold (Linux 6.18, x86-64): 10 s for 1 TiB."""
FOLDER_SECONDS = 10.0
"""For the folder of past starts. A read or write takes milliseconds; of 100 processes that write without a pause, one
waits for seconds until it has the lock."""

_asked: dict[str, threading.Thread] = {}


def of_devices(kind: str | None) -> Limit:
    """The limit for reading the devices of a backend, by vLLM's name for it, before an engine runs."""
    return HOST if kind == "cpu" else DRIVER


def folder(path: object) -> Limit:
    """The limit for a folder of records."""
    remedy = "Name one on a disk that works in VLLM_AUTOFIT_CACHE_DIR, and end what holds the locks in this one"
    return Limit(f"the folder of past starts, {path},", FOLDER_SECONDS, remedy)


def waits(limit: Limit) -> bool:
    """Whether an answer is overdue, so that nobody is asked again."""
    asked = _asked.get(limit.what)
    return asked is not None and asked.is_alive()


def within(limit: Limit, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``function(...)``, if it answers in time.

    Raises:
        NoAnswerError: it doesn't, or didn't the last time and still hasn't.
        Exception: what ``function`` raises.
    """
    if waits(limit):
        raise NoAnswerError(limit.what, limit.seconds, limit.remedy)
    results: list[T] = []
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            results.append(function(*args, **kwargs))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask, name="vllm-autofit-asks", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending, or the system gives no more threads
        return function(*args, **kwargs)
    thread.join(limit.seconds)
    if errors:
        raise errors[0]
    if not results:
        _asked[limit.what] = thread
        raise NoAnswerError(limit.what, limit.seconds, limit.remedy)
    return results[0]
