"""Who holds memory: real processes, and what a simulated driver says of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from vllm_autofit.facts import holders
from vllm_autofit.facts.holders import Holder, device_holders, host_holders, shortened

MIB = 2**20
HOLDS = 256 * MIB
WAITS = "import sys; print('ready', flush=True); sys.stdin.read()"
HOLDS_AND_WAITS = f"held = bytearray(b'x') * {HOLDS}; {WAITS}"
FRONT_END = f"""
import subprocess, sys
engine = subprocess.Popen(["VLLM::EngineCore", "-c", {WAITS!r}], executable=sys.executable, stdout=subprocess.DEVNULL)
print(engine.pid, flush=True)
engine.wait()
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc here")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("VLLM::EngineCore", "VLLM::EngineCore"),
        ("/opt/venv/bin/python /opt/venv/bin/vllm serve org/model --api-key sk-1", "python vllm serve org/model"),
        ("/opt/venv/bin/python3.12 -m vllm.entrypoints.openai.api_server --api-key sk-1",
         "python3.12 -m vllm.entrypoints.openai.api_server"),
        ("python /home/me/serve.py sk-1", "python serve.py"),
        ("python -u serve.py sk-1", "python"),
        ("python -c secret=1", "python"),
        ("python -m", "python"),
        ("/usr/bin/mysql -psecret", "mysql"),
        ("/usr/bin/redis-cli auth secret", "redis-cli"),
        ("vllm serve --api-key sk-1", "vllm serve"),
        ("x" * 200, "x" * 60),
    ],
)  # fmt: skip
def test_a_command_is_shown_without_what_may_be_secret(command: str, shown: str) -> None:
    assert shortened(command.split()) == shown


@pytest.fixture
def holder() -> Iterator[int]:
    """A child that holds memory."""
    command = [sys.executable, "-c", HOLDS_AND_WAITS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.communicate()


def test_a_process_that_holds_much_of_the_host_is_named(holder: int) -> None:
    (found,) = [each for each in host_holders(50) if each.pid == holder]
    assert found.bytes is not None
    assert HOLDS < found.bytes < HOLDS + 64 * MIB
    assert found.user == psutil.Process().username()
    assert found.age_seconds is not None
    assert 0 <= found.age_seconds < 60
    assert found.command == Path(sys.executable).name
    assert (found.engine, found.orphaned, found.shared) == (False, False, False)


def test_the_largest_come_first_and_no_more_than_asked_for(holder: int) -> None:
    sizes = [each.bytes or 0 for each in host_holders(3) if not each.engine]
    assert len(sizes) <= 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= HOLDS


def test_those_who_ask_are_left_out(holder: int) -> None:
    assert holder not in [each.pid for each in host_holders(50, without=os.getpid())]


def test_where_shares_can_not_be_read_in_time_it_says_so(holder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "MEASURED_SECONDS", 0.0)
    (found,) = [each for each in host_holders(50) if each.pid == holder]
    assert found.shared
    assert (found.bytes or 0) > HOLDS


@pytest.mark.skipif(re.search("python", psutil.Process(1).name()) is not None, reason="Python takes over orphans here")
def test_an_engine_is_orphaned_when_its_front_end_is_killed() -> None:
    front_end = subprocess.Popen(
        [sys.executable, "-c", FRONT_END], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert front_end.stdout is not None
    engine = int(front_end.stdout.readline())
    try:
        _until(lambda: _engine(engine).engine)
        assert not _engine(engine).orphaned
        front_end.kill()
        front_end.wait()
        _until(lambda: psutil.Process(engine).ppid() != front_end.pid)
        assert _engine(engine).orphaned
        assert _engine(engine).command == "VLLM::EngineCore"
    finally:
        os.kill(engine, signal.SIGKILL)
        front_end.stdout.close()
        assert front_end.stdin is not None
        front_end.stdin.close()


def _engine(pid: int) -> Holder:
    """As it is found among the host's processes, however little it holds."""
    (found,) = [each for each in host_holders(1) if each.pid == pid]
    return found


def _until(true: Callable[[], bool]) -> None:
    for _ in range(100):
        try:
            if true():
                return
        except (ValueError, psutil.Error):
            pass
        time.sleep(0.1)
    pytest.fail("nothing happened")


def test_processes_that_a_driver_numbers(holder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "FIRST_PID_NAMESPACE", str(Path("/proc/self/ns/pid").readlink()))
    gone = _pid_of_nobody()
    found = device_holders({gone: None, os.getpid(): 5, holder: 7})
    assert [(each.pid, each.bytes, bool(each.command)) for each in found] == [
        (holder, 7, True),
        (os.getpid(), 5, True),
        (gone, None, False),
    ]


def test_in_a_container_the_drivers_numbers_name_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "FIRST_PID_NAMESPACE", "pid:[1]")
    assert device_holders({os.getpid(): 5}) == [Holder(os.getpid(), 5)]


def _pid_of_nobody() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    return child.pid
