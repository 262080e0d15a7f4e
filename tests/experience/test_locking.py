"""One process at a time, on file systems whose locks work and on ones whose don't."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import start_python
from vllm_autofit.experience import locking
from vllm_autofit.experience.locking import exclusive, locks_work

HOLD = """
import sys, time
from pathlib import Path
from vllm_autofit.experience import locking
if sys.argv[2] == "marks":
    locking.locks_work = lambda path: False
with locking.exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def refuse(number: int) -> Callable[..., None]:
    def flock(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "_works", {})


def hold(path: Path, how: str) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    process = start_python(HOLD, path, how)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)


def test_locks_work_here(tmp_path: Path) -> None:
    assert locks_work(tmp_path / "lock")


def test_locks_work_while_another_process_holds_one(tmp_path: Path) -> None:
    process = hold(tmp_path / "lock", "locks")
    assert locks_work(tmp_path / "lock")
    kill(process)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_locks_that_are_refused_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    assert not locks_work(tmp_path / "lock")


def test_locks_that_everybody_gets_do_not_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, operation: None)
    assert not locks_work(tmp_path / "lock")


def test_trying_leaves_no_file_open(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    locks_work(tmp_path / "lock")
    assert open_files() == before


def test_a_folder_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Path] = []

    def try_it(path: Path) -> bool:
        tried.append(path)
        return True

    monkeypatch.setattr(locking, "locks_work", try_it)
    for name in ("a", "b", "a"):
        with exclusive(tmp_path / name):
            pass
    assert tried == [tmp_path / "a"]


HOWS = ("locks", "marks")


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "marks":
        monkeypatch.setattr(locking, "locks_work", lambda path: False)
    return str(request.param)


def test_what_another_process_holds_is_not_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(locking, "STALE_SECONDS", 0.1)
    monkeypatch.setattr(locking, "_remove_stale", lambda mark, stale: None)
    process = hold(tmp_path / "lock", how)
    with pytest.raises(OSError, match="lock"), exclusive(tmp_path / "lock"):
        pytest.fail("two have it")
    kill(process)


def test_a_process_that_is_killed_gives_it_back(tmp_path: Path, how: str) -> None:
    kill(hold(tmp_path / "lock", how))
    with exclusive(tmp_path / "lock"):
        pass


def test_it_is_given_back_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0.1)
    for _ in range(2):
        with pytest.raises(LookupError), exclusive(tmp_path / "lock"):
            raise LookupError
    assert not (tmp_path / "lock.held").exists()


def test_a_mark_of_another_machine_that_never_changes_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "locks_work", lambda path: False)
    monkeypatch.setattr(locking, "STALE_SECONDS", 0.2)
    (tmp_path / "lock.held").write_text("4711\nanother-machine\n")
    with exclusive(tmp_path / "lock"):
        assert (tmp_path / "lock.held").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_mark_that_is_not_the_stale_one_is_put_back(tmp_path: Path) -> None:
    mark = tmp_path / "lock.held"
    mark.write_text("of a process that lives")
    locking._remove_stale(mark, (1, 2))
    assert mark.read_text() == "of a process that lives"
    assert list(tmp_path.iterdir()) == [mark]


COUNT = """
import sys
from pathlib import Path
from vllm_autofit.experience import locking
locking.locks_work = lambda path: sys.argv[3] == "locks"
counter = Path(sys.argv[2])
for _ in range(50):
    with locking.exclusive(Path(sys.argv[1])):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_nothing_is_done_at_the_same_time(tmp_path: Path, how: str) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [start_python(COUNT, tmp_path / "lock", counter, how) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
    assert counter.read_text() == "200"
