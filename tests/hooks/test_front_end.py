"""How the front end sees its engine cores end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.errors import RefusedError
from vllm_autofit.experience.grade import grade
from vllm_autofit.experience.store import Store
from vllm_autofit.hooks import front_end, guard, runs
from vllm_autofit.hooks.runs import attach, new_run, record_phase, record_start, record_success

KEY = "0123456789abcdef"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A start whose engine core is this process."""
    monkeypatch.setattr(runs, "_planned_here", {})
    monkeypatch.setattr("atexit.register", lambda *_: None)  # what is said at the end of a process is its own
    sections: dict[str, Any] = {"identity": {"devices": []}, "settings": {}, "plan": {}}
    made = new_run(KEY, tmp_path, sections)
    attach(SimpleNamespace(), made)
    record_start(made)
    return made


def manager(*exitcodes: int | None, pid: int | None = None) -> Any:
    first = os.getpid() if pid is None else pid
    return SimpleNamespace(
        processes=[
            SimpleNamespace(
                pid=first + number,
                exitcode=code,
                is_alive=lambda code=code: code is None,
                sentinel=os.pipe()[0],
            )
            for number, code in enumerate(exitcodes)
        ]
    )


def stop(of: Any) -> None:
    guard.shield(front_end.shutdown, "testing")(lambda: None, of, (), {})


def outcome(run: dict[str, Any]) -> dict[str, Any]:
    (record,) = Store(Path(run["cache_dir"])).records(KEY)
    found: dict[str, Any] = record["outcome"]
    return found


def test_an_engine_core_that_was_killed_while_it_started_failed_where_it_was(run: dict[str, Any]) -> None:
    record_phase(run, "kv_alloc")
    stop(manager(-9))
    found = outcome(run)
    assert found["state"] == "failed"
    assert (found["failure"]["phase"], found["failure"]["resource"]) == ("kv_alloc", "host")
    assert found["failure"]["is_capacity"]


def test_one_that_was_killed_while_it_served_ran_out_of_memory(run: dict[str, Any]) -> None:
    record_success(run, {"dp_rank": 0, "ranks": []})
    stop(manager(-9))
    found = outcome(run)
    assert found["ended"]["how"] == "out_of_memory"
    assert found["ended"]["failure"]["phase"] == "runtime"
    (record,) = Store(Path(run["cache_dir"])).records(KEY)
    assert grade(record, "out_of_memory") == "ran out"


def test_what_vllm_kills_itself_ended_cleanly(run: dict[str, Any]) -> None:
    record_success(run, {"dp_rank": 0, "ranks": []})
    engine = manager(None)
    stop(engine)
    engine.processes[0].exitcode, engine.processes[0].is_alive = -9, lambda: False
    stop(engine)
    assert outcome(run)["ended"]["how"] == "clean"


@pytest.mark.parametrize("exitcode", [0, 1, -15])
def test_one_that_ended_by_itself_speaks_for_itself(exitcode: int, run: dict[str, Any]) -> None:
    stop(manager(exitcode))
    assert outcome(run)["state"] == "starting"


def test_the_engine_core_of_another_start_says_nothing_of_this_one(run: dict[str, Any]) -> None:
    stop(manager(-9, pid=1))
    assert outcome(run)["state"] == "starting"


def test_a_launcher_that_makes_no_engine_of_its_own_is_refused_too(run: dict[str, Any]) -> None:
    started: list[bool] = []
    wrapper = guard.shield(front_end.init, "testing")
    config = SimpleNamespace()
    attach(config, run)
    wrapper(lambda **_: started.append(True), None, (), {"vllm_config": config})
    assert started == [True]
    run["refusal"] = {"reasons": ("3 GiB are missing",), "remedies": [], "device": ""}
    with pytest.raises(RefusedError, match="3 GiB are missing"):
        wrapper(lambda **_: started.append(True), None, (), {"vllm_config": config})
    assert started == [True]


def fails_to_start(of: Any) -> str:
    """The notes of what comes out when the engines of a manager don't come up."""

    def wait(*_arguments: Any, **_keywords: Any) -> None:
        raise RuntimeError("Engine core initialization failed")

    with pytest.raises(RuntimeError) as caught:
        guard.shield(front_end.wait_for_engines, "testing")(
            wait, None, ("socket", SimpleNamespace(engine_manager=of)), {}
        )
    return "".join(getattr(caught.value, "__notes__", ()))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_a_launcher_whose_engine_core_is_killed_says_why_and_that_it_is_not_tried_again(run: dict[str, Any]) -> None:
    engine = manager(-9)
    notes = fails_to_start(engine)
    assert "was killed from outside" in notes
    assert "It isn't tried again by itself: other processes wait for the engine." in notes
    stop(engine)
    assert outcome(run)["failure"]["type"] == "killed"


def test_a_launcher_that_fails_for_another_reason_leaves_it_to_vllm(run: dict[str, Any]) -> None:
    assert fails_to_start(manager(1)) == ""


def test_a_process_that_is_just_ending_is_waited_for(run: dict[str, Any]) -> None:
    process = multiprocessing.get_context("fork").Process(target=lambda: os.kill(os.getpid(), signal.SIGKILL))
    process.start()
    multiprocessing.connection.wait([process.sentinel])
    run["record"]["outcome"]["pid"] = process.pid
    Store(Path(run["cache_dir"])).update(KEY, run["run_id"], lambda record: run["record"])
    stop(SimpleNamespace(processes=[process]))
    assert outcome(run)["failure"]["type"] == "killed"
