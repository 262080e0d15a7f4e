"""Ctrl-C and SIGTERM while a start is under way: the command ends at once, with all that it began.

vLLM alone doesn't see to that. Its ``zmq_socket_ctx`` swallows the ``KeyboardInterrupt`` that ``vllm serve`` makes of
SIGTERM (0.32, ``utils/network_utils.py``), and the front end then waits for an engine that is gone. asyncio puts Ctrl-C
off until the next ``await``, which comes when the engine is up (Python 3.11 on). A script with an ``LLM`` doesn't
handle SIGTERM: Python would end at once, and its engine core would load on and wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal, on its way out of vLLM's code, where nobody knows this exception.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def ends_at_once() -> Iterator[None]:
    """Signals leave the block at once, and then take the way that they would have taken without us.

    Handlers of the user's own stay in force: they may only want to take note.

    Raises:
        KeyboardInterrupt: where that is what Ctrl-C or SIGTERM would have raised.
        asyncio.CancelledError: Ctrl-C was pressed in a program that asyncio runs.
        SystemExit: SIGTERM, where it would have ended the process.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS} if _may_set() else {}
    ours = {number: handler for number, handler in before.items() if _is_known(number, handler)}
    for number in ours:
        signal.signal(number, _interrupt)
    try:
        try:
            yield
        finally:
            for number, handler in ours.items():
                if signal.getsignal(number) is _interrupt:
                    signal.signal(number, handler)
    except Interrupted as interrupted:
        _hand_on(interrupted.number, ours[signal.Signals(interrupted.number)])


def _may_set() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_known(number: int, handler: Any) -> bool:
    """Python's own, asyncio's, and vLLM's."""
    if handler is signal.default_int_handler:
        return True
    if number == signal.SIGTERM and handler == signal.SIG_DFL:
        return True
    if isinstance(handler, functools.partial):
        runner: Any = getattr(asyncio, "Runner", None)  # Python 3.11 on
        return runner is not None and getattr(handler.func, "__func__", None) is runner._on_sigint
    return str(getattr(handler, "__module__", "")).partition(".")[0] == "vllm"


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def _hand_on(number: int, handler: Callable[[int, FrameType | None], Any] | int | None) -> NoReturn:
    if not callable(handler):
        raise SystemExit(128 + number) from None  # as shells report it
    handler(number, None)
    raise asyncio.CancelledError  # asyncio's has asked for that, at the next await
