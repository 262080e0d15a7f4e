from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from vllm_autofit.hooks.interrupts import ends_at_once


@pytest.fixture(autouse=True)
def pythons_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(number: signal.Signals) -> None:
    """As vLLM's code is: nobody gets out with an interrupt that it swallows."""
    with ends_at_once():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        raise AssertionError("went on")


def test_ctrl_c_is_what_it_would_have_been() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(signal.SIGINT)


def test_sigterm_ends_a_script_as_shells_report_it() -> None:
    with pytest.raises(SystemExit) as end:
        interrupted(signal.SIGTERM)
    assert end.value.code == 143


def test_a_servers_sigterm_becomes_what_vllm_makes_of_it() -> None:
    def init_is_interrupted(*_: object) -> None:
        raise KeyboardInterrupt("terminated")

    init_is_interrupted.__module__ = "vllm.entrypoints.launchers.api_server.entry"
    signal.signal(signal.SIGTERM, init_is_interrupted)
    with pytest.raises(KeyboardInterrupt, match="terminated"):
        interrupted(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is init_is_interrupted


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio lets Ctrl-C through at once")
def test_asyncio_ends_at_once_rather_than_at_the_next_await() -> None:
    async def start() -> None:
        interrupted(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(start())


def test_a_handler_of_the_users_own_stays() -> None:
    noted: list[int] = []
    handler = lambda number, _: noted.append(number)  # noqa: E731
    signal.signal(signal.SIGTERM, handler)
    with ends_at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert noted == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ends_at_once():
        os.kill(os.getpid(), signal.SIGINT)


def test_other_threads_leave_handlers_alone() -> None:
    seen: list[object] = []

    def look() -> None:
        with ends_at_once():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_a_script_ends_with_the_status_of_a_signal() -> None:
    script = """
import os, signal
from vllm_autofit.hooks.interrupts import ends_at_once
with ends_at_once():
    os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 143
