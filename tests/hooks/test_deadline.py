"""Whoever doesn't answer is left behind: nothing of vLLM's waits for it, not even its end."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from vllm_autofit.errors import NoAnswerError
from vllm_autofit.hooks import deadline
from vllm_autofit.hooks.deadline import Limit, of_devices, waits, within

SOON = Limit("the oracle", 0.05, "Ask another one")


@pytest.fixture(autouse=True)
def _nobody_asked_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "_asked", {})


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What a stuck function waits for; it comes at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def test_an_answer_in_time_comes_back() -> None:
    assert within(SOON, divmod, 7, 2) == (3, 1)


def test_an_answer_may_be_none() -> None:
    assert within(SOON, lambda: None) is None


def test_an_error_in_time_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        within(SOON, divmod, 7, 0)


def test_who_does_not_answer_is_named_with_what_to_do(stuck: threading.Event) -> None:
    with pytest.raises(NoAnswerError, match=r"^the oracle gave no answer within 0\.05 s\. Ask another one$"):
        within(SOON, stuck.wait)


def test_who_has_not_answered_yet_is_not_asked_again_and_once_they_have_they_are(stuck: threading.Event) -> None:
    asked: list[int] = []
    with pytest.raises(NoAnswerError):
        within(SOON, stuck.wait)
    with pytest.raises(NoAnswerError):
        within(SOON, asked.append, 1)
    assert asked == []
    assert waits(SOON)
    stuck.set()
    deadline._asked[SOON.what].join(10)
    within(SOON, asked.append, 2)
    assert asked == [2]


def test_one_that_does_not_answer_says_nothing_of_another(stuck: threading.Event) -> None:
    with pytest.raises(NoAnswerError):
        within(SOON, stuck.wait)
    assert within(Limit("the sibyl", 10, ""), lambda: 1) == 1


def test_no_thread_is_left_of_an_answer() -> None:
    before = set(threading.enumerate())
    within(SOON, lambda: None)
    assert set(threading.enumerate()) <= before


def test_a_host_is_not_waited_for_as_long_as_a_driver() -> None:
    assert of_devices("cpu") == deadline.HOST
    assert of_devices("cuda") == of_devices(None) == deadline.DRIVER


STUCK_IN_C = """
import ctypes, multiprocessing, os, signal, sys
from vllm_autofit.errors import NoAnswerError
from vllm_autofit.hooks.deadline import Limit, within

signal.alarm(60)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
try:
    within(Limit("the driver", 0.1, ""), ctypes.CDLL(None).sleep, 3600)  # as pynvml calls NVML
except NoAnswerError:
    print("left", flush=True)
child = multiprocessing.get_context("fork").Process(target=print, args=("forked",), kwargs=dict(flush=True))
child.start()
child.join()
"""


@pytest.mark.parametrize("ending", ["", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGINT)"])
def test_a_process_with_a_call_that_hangs_in_c_forks_and_ends(ending: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", STUCK_IN_C + ending]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "left\nforked\n", done.stderr
    assert done.returncode == (-2 if "SIGINT" in ending else 0), done.stderr
