"""How a start ended, told from its record and from the processes that run."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.builders import record
from vllm_autofit.experience import ending as module
from vllm_autofit.experience.ending import ENDINGS, ending, still_runs, this_process

NOW = datetime.datetime(2026, 11, 21, 13, tzinfo=datetime.timezone.utc)


def start(state: str, **outcome: Any) -> dict[str, Any]:
    return record(outcome={"state": state, "at": "2026-11-21T12:30:00+00:00", **outcome})


@pytest.mark.parametrize("how", ENDINGS)
def test_a_start_that_said_how_it_ended_is_believed(how: str) -> None:
    assert ending(start("ended", ended={"how": how}), lambda outcome: pytest.fail("asked")) == how


def test_an_ending_that_is_not_known_is_a_clean_one() -> None:
    assert ending(start("ended", ended={"how": "beamed up"})) == "clean"
    assert ending(start("ended")) == "clean"


def test_a_start_that_failed_failed() -> None:
    assert ending(start("failed"), lambda outcome: True) == "failed"


@pytest.mark.parametrize("state", ["starting", "serving"])
def test_a_start_whose_process_runs_goes_on_and_one_whose_process_is_gone_was_killed(state: str) -> None:
    assert ending(start(state), lambda outcome: True, NOW) == state
    assert ending(start(state), lambda outcome: False, NOW) == "killed"
    assert ending(start(state, **this_process())) == state


@pytest.mark.parametrize("state", ["starting", "serving"])
@pytest.mark.parametrize(("days", "over"), [(0, False), (29, False), (31, True), (-400, False)])
def test_a_start_elsewhere_is_over_when_it_said_nothing_for_a_month(state: str, days: int, over: bool) -> None:
    present = NOW + datetime.timedelta(days=days)
    assert ending(start(state), lambda outcome: None, present) == ("killed" if over else state)


def test_what_an_engine_served_last_counts_too() -> None:
    document = start("serving")
    document["engines"] = [{"serving": {"until": "2026-12-30T12:00:00+00:00"}}, {"serving": None}]
    present = NOW + datetime.timedelta(days=50)
    assert ending(document, lambda outcome: None, present) == "serving"


def test_a_start_without_any_time_is_over() -> None:
    document = {**start("serving", at="yesterday"), "started_at": ""}
    assert ending(document, lambda outcome: None, NOW) == "killed"


WAIT = """
import json
from vllm_autofit.experience.ending import this_process
print(json.dumps(this_process()), flush=True)
input()
"""


def test_this_process_runs() -> None:
    me = this_process()
    assert me["pid"] == os.getpid()
    assert still_runs(me) is True


def test_a_process_that_ended_does_not_run_though_its_parent_never_asked() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    outcome = json.loads(child.stdout.readline())
    assert still_runs(outcome) is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert still_runs(outcome) is False, "a zombie"
    child.communicate()
    assert still_runs(outcome) is False


def test_another_process_with_the_same_number_is_not_the_one() -> None:
    assert still_runs({**this_process(), "pid_started": 1}) is False
    assert still_runs({**this_process(), "pid_started": None}) is True


@pytest.mark.parametrize("name", ["boot", "pid_space"])
def test_after_another_boot_or_in_another_container_only_the_same_host_knows(name: str) -> None:
    elsewhere = {**this_process(), name: "another"}
    assert still_runs(elsewhere) is False
    assert still_runs({**elsewhere, "host": "another"}) is None
    assert still_runs({**elsewhere, "host": None}) is None


def test_without_numbers_nothing_can_be_told() -> None:
    assert still_runs({}) is None
    assert still_runs({**this_process(), "pid": None}) is None
    assert still_runs({**this_process(), "boot": None}) is None


def test_where_the_system_does_not_say_nothing_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = this_process()
    monkeypatch.setattr(module, "_read", lambda path: "")
    assert this_process()["boot"] is None
    assert still_runs(outcome) is None
