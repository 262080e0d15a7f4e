"""Between two attempts: nothing of the first is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.experience.ending import still_runs, this_process
from vllm_autofit.hooks import aftermath, guard
from vllm_autofit.units import GIB

STAYS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(60)"
SLEEPS = "import time; print('here', flush=True); time.sleep({})"


def started(script: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    ticks = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    return child, {**this_process(), "pid": child.pid, "pid_started": int(ticks)}


@pytest.fixture
def child() -> Iterator[list[subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []
    yield children
    for each in children:
        each.kill()
        each.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "SIGNALS", ((0.1, signal.SIGTERM), (0.5, signal.SIGKILL)))
    monkeypatch.setattr(aftermath, "PATIENCE_SECONDS", 5.0)
    monkeypatch.setattr(aftermath, "SETTLED_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
def test_a_process_that_does_not_go_is_ended(child: list[subprocess.Popen[str]]) -> None:
    for script in (SLEEPS.format(60), STAYS):
        process, described = started(script)
        child.append(process)
        aftermath.wait([{"process": described}], lambda: 0)
        assert not still_runs(described)


@pytest.mark.usefixtures("impatient")
def test_one_that_stays_for_good_is_named(
    child: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(aftermath, "SIGNALS", ())
    monkeypatch.setattr(aftermath, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(guard.logger, "propagate", True)
    process, described = started(SLEEPS.format(60))
    child.append(process)
    aftermath.wait([{"process": described}], lambda: 0)
    assert f"still hold memory: {process.pid}." in caplog.text
    assert still_runs(described)


@pytest.mark.usefixtures("impatient")
def test_a_number_that_another_process_got_is_left_alone(child: list[subprocess.Popen[str]]) -> None:
    process, described = started(SLEEPS.format(60))
    child.append(process)
    aftermath.wait([{"process": {**described, "pid_started": described["pid_started"] - 1}}], lambda: 0)
    assert process.poll() is None


@pytest.mark.usefixtures("impatient")
def test_it_waits_as_long_as_memory_comes_back() -> None:
    free = iter([1 * GIB, 2 * GIB, 5 * GIB, 5 * GIB, 9 * GIB])
    aftermath.wait([], lambda: next(free))
    assert next(free) == 9 * GIB


@pytest.mark.usefixtures("impatient")
def test_an_interrupt_ends_the_wait(child: list[subprocess.Popen[str]]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        aftermath.wait([], interrupted)


def test_an_attempt_that_is_abandoned_is_killed_and_swept(
    child: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process, described = started(STAYS)
    child.append(process)
    shared = Path("/dev/shm") / f"psm_test_{os.getpid()}"
    shared.touch()
    aftermath.abandon([{"process": described, "mapped": [shared.name]}], time.time())
    assert not still_runs(described)
    assert not shared.exists()


@pytest.fixture
def _hears_an_interrupt() -> Iterator[None]:
    """A shell starts what it puts into the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio takes over Ctrl-C from Python 3.11 on")
@pytest.mark.usefixtures("impatient", "_hears_an_interrupt")
def test_so_does_one_that_asyncio_keeps_for_later() -> None:
    async def start_of_an_engine() -> None:
        assert not aftermath.is_interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert aftermath.is_interrupted()
        with pytest.raises(asyncio.CancelledError):
            aftermath.wait([], lambda: 0)
        raise asyncio.CancelledError

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(start_of_an_engine())
    assert not aftermath.is_interrupted()


def listening(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def test_only_sockets_that_nobody_listens_on_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.envs", SimpleNamespace(VLLM_RPC_BASE_PATH=str(tmp_path)))
    monkeypatch.setattr(aftermath, "SOCKET_SECONDS", -1.0)
    names = [str(uuid.uuid4()) for _ in range(3)]
    abandoned, alive, file = (tmp_path / name for name in names)
    listening(abandoned).close()
    named = tmp_path / "somebodys"
    listening(named).close()
    file.write_text("")
    with listening(alive):
        aftermath.sweep([], time.time() + 5)
        assert len(list(tmp_path.iterdir())) == 4
        aftermath.sweep([], time.time() - 5)
        assert set(tmp_path.iterdir()) == {alive, file, named}


def test_a_young_socket_may_not_listen_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.envs", SimpleNamespace(VLLM_RPC_BASE_PATH=str(tmp_path)))
    path = tmp_path / str(uuid.uuid4())
    listening(path).close()
    aftermath.sweep([], time.time() - 5)
    assert path.exists()


class Big:
    pass


def fail_with(holding: Big) -> None:
    held = holding
    raise RuntimeError(str(held))


def test_what_a_failed_attempt_held_is_let_go() -> None:
    stopped = []
    instance = SimpleNamespace(renderer=SimpleNamespace(shutdown=lambda: stopped.append("renderer")), half="made")
    big = Big()
    gone = weakref.ref(big)
    try:
        try:
            fail_with(big)
        except RuntimeError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        kept = error
    del big
    assert gone() is not None
    aftermath.drop(instance, kept)
    assert gone() is None
    assert vars(instance) == {}
    assert stopped == ["renderer"]
