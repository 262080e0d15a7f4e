"""Starts on one device take turns: real processes, with vLLM's part left out."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import GIB, MIB, VLLM_DEFAULTS, cuda, host, request, start_python
from vllm_autofit import FIELDS
from vllm_autofit.claims.claim import Claim
from vllm_autofit.claims.ledger import Ledger
from vllm_autofit.errors import AutofitError, RefusedError
from vllm_autofit.experience.ending import this_process
from vllm_autofit.hooks import launch, lease, platform, retry, runs
from vllm_autofit.hooks.lease import Turn
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.settings import Settings, read_settings
from vllm_autofit.values import DeviceFacts, Lessons, Plan, Rules

NODE = host(free_gib=30)

TAKES = """
import sys, time
from pathlib import Path
from tests.hooks.test_lease import NODE, plan_of, settings_in
from tests.builders import request
from vllm_autofit.hooks import lease
folder, log = Path(sys.argv[1]), Path(sys.argv[2])
turn = lease.take(settings_in(folder), request(), [NODE], "some/model", 1)
run = {"cache_dir": str(folder)}
lease.planned(turn, run, request(), [NODE], plan_of(NODE))
lease.starting(run)
"""
HOLDS = TAKES + 'print("started", flush=True)\ntime.sleep(300)\n'
TURNS = (
    TAKES
    + """
with log.open("a") as file:
    file.write("begin\\n")
time.sleep(0.05)
with log.open("a") as file:
    file.write("end\\n")
lease.up(run)
"""
)


def settings_in(folder: Path, **variables: str) -> Settings:
    return read_settings({"VLLM_AUTOFIT_CACHE_DIR": str(folder), **variables})


def plan_of(device: DeviceFacts, **asked: Any) -> Plan:
    return make_plan(request(**asked), [device], Lessons(), Rules())


def take(folder: Path, *devices: DeviceFacts, engines: int = 1, **asked: Any) -> Turn | None:
    return lease.take(settings_in(folder), request(**asked), devices or [NODE], "some/model", engines)


def started(folder: Path, *, engines: int = 1, device: DeviceFacts = NODE) -> dict[str, Any]:
    """A start of this process that has come as far as making its engine."""
    turn = take(folder, device, engines=engines)
    assert turn is not None
    run = {"cache_dir": str(folder)}
    lease.planned(turn, run, request(), [device], plan_of(device))
    lease.starting(run)
    return run


def claims(folder: Path) -> list[Claim]:
    return Ledger(folder).claims()


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Popen[str]]:
    """Another process, whose engine is coming up on the same device."""
    with start_python(HOLDS, tmp_path, tmp_path / "log") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n", process.communicate()[1]
        yield process
        process.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "WAIT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)


def test_the_first_start_has_its_turn_at_once(tmp_path: Path) -> None:
    turn = take(tmp_path)
    assert turn is not None
    assert not turn.waited
    assert turn.to_come == {"cpu:0": 0}
    (claim,) = claims(tmp_path)
    assert (claim.state, claim.pid, claim.model) == ("planning", os.getpid(), "some/model")


def test_starts_in_the_same_moment_come_up_one_after_the_other(tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_python(TURNS, tmp_path, log) for _ in range(5)]
    for process in processes:
        assert process.communicate()[1] == ""
    assert log.read_text().split() == ["begin", "end"] * 5
    assert claims(tmp_path) == []


def test_who_waits_goes_on_when_the_one_before_serves(tmp_path: Path) -> None:
    with start_python(TURNS, tmp_path, tmp_path / "log"):
        assert take(tmp_path) is not None


@pytest.mark.usefixtures("impatient")
def test_nobody_waits_for_ever_and_says_for_whom(
    tmp_path: Path, neighbour: Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="vllm.autofit")
    turn = take(tmp_path)
    assert turn is not None
    assert turn.waited
    text = caplog.text
    assert f"waiting until some/model (process {neighbour.pid} of " in text
    assert "is still starting; going on beside it, without what it claims" in text
    assert [record.levelname for record in caplog.records if "still starting" in record.message] == ["WARNING"]


@pytest.mark.usefixtures("impatient")
def test_who_goes_on_beside_another_leaves_what_that_will_take(tmp_path: Path, neighbour: Popen[str]) -> None:
    turn = take(tmp_path)
    assert turn is not None
    plan = plan_of(NODE)
    assert plan.budget is not None
    expected = plan.budget.asked_bytes + plan.budget.startup_overhead_bytes + plan.budget.headroom_bytes
    assert abs(turn.to_come["cpu:0"] - expected) <= 8 * MIB  # the utilisation has four decimals
    (left,) = lease.without_claimed(turn, [NODE])
    assert left.claimed_bytes == turn.to_come["cpu:0"]
    assert plan_of(left).decision("gpu_memory_utilization").suggested is None


def test_a_killed_process_keeps_nobody_waiting(tmp_path: Path, neighbour: Popen[str]) -> None:
    neighbour.kill()
    neighbour.wait()
    turn = take(tmp_path)
    assert turn is not None
    assert turn.to_come == {"cpu:0": 0}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("number", [os.getpid(), os.getppid()])
def test_a_process_of_another_container_is_waited_for_whatever_its_number(tmp_path: Path, number: int) -> None:
    assert take(tmp_path) is not None
    elsewhere = {**this_process(), "pid": number, "host": "another", "pid_space": "pid:[1]"}
    Ledger(tmp_path).change(lambda claims: [dataclasses.replace(claims[0], process=elsewhere, state="starting")])
    turn = take(tmp_path)
    assert turn is not None
    assert turn.waited


@pytest.mark.usefixtures("impatient")
def test_a_process_above_this_one_waits_for_it_and_not_the_other_way_round(tmp_path: Path) -> None:
    assert take(tmp_path) is not None
    above = {**this_process(), "pid": os.getppid(), "pid_started": None}
    Ledger(tmp_path).change(lambda claims: [dataclasses.replace(claims[0], process=above, state="starting")])
    turn = take(tmp_path)
    assert turn is not None
    assert not turn.waited


def test_another_device_is_free_to_start_on(tmp_path: Path, neighbour: Popen[str]) -> None:
    turn = take(tmp_path, cuda(uuid="GPU-1"))
    assert turn is not None
    assert not turn.waited


def test_devices_of_one_start_are_claimed_together(tmp_path: Path) -> None:
    assert take(tmp_path, cuda(uuid="GPU-1"), cuda(uuid="GPU-2", index=1)) is not None
    (claim,) = claims(tmp_path)
    assert set(claim.devices) == {"1", "2"}


@pytest.mark.parametrize(
    "asked",
    [
        {"planned_in_parts": True},
        {"knobs": {"distributed_executor_backend": "ray"}},
        {"knobs": {"data_parallel_backend": "ray"}},
    ],
)
def test_launches_in_parts_and_those_that_ray_places_take_no_part(tmp_path: Path, asked: dict[str, Any]) -> None:
    assert take(tmp_path, **asked) is None
    assert claims(tmp_path) == []


def test_a_device_that_cannot_be_told_from_others_is_not_claimed(tmp_path: Path) -> None:
    assert take(tmp_path, cuda()) is None


@pytest.mark.parametrize("mode", ["0", "observe"])
def test_who_only_watches_claims_nothing(tmp_path: Path, mode: str) -> None:
    assert lease.take(settings_in(tmp_path, VLLM_AUTOFIT=mode), request(), [NODE], "some/model", 1) is None


def test_a_second_plan_of_one_process_takes_the_place_of_the_first(tmp_path: Path) -> None:
    first, second = take(tmp_path), take(tmp_path)
    assert first is not None
    assert second is not None
    assert second.to_come == {"cpu:0": 0}
    assert [claim.id for claim in claims(tmp_path)] == [second.claim]


def test_two_engines_of_one_process_keep_both_claims(tmp_path: Path) -> None:
    started(tmp_path)
    turn = take(tmp_path)
    assert turn is not None
    assert turn.to_come["cpu:0"] > GIB
    assert len(claims(tmp_path)) == 2


def test_an_attempt_that_failed_keeps_the_turn_until_the_next(tmp_path: Path) -> None:
    run = started(tmp_path)
    lease.failed(run)
    assert claims(tmp_path)[0].is_coming_up(time.monotonic())
    again = take(tmp_path)
    assert again is not None
    assert again.to_come == {"cpu:0": 0}
    assert [claim.id for claim in claims(tmp_path)] == [again.claim]


def test_all_engines_of_a_start_have_to_come_up(tmp_path: Path) -> None:
    run = started(tmp_path, engines=2)
    lease.up(run)
    assert claims(tmp_path)[0].state == "starting"
    lease.up(run)
    assert claims(tmp_path)[0].state == "serving"


def test_what_is_given_back_is_gone(tmp_path: Path) -> None:
    run = started(tmp_path)
    lease.give_back(run)
    assert claims(tmp_path) == []
    lease.up(run)
    assert claims(tmp_path) == []


def test_an_engine_that_served_claims_nothing_once_it_is_stopped(tmp_path: Path) -> None:
    run = started(tmp_path)
    lease.up(run)
    lease.ended(run)
    assert claims(tmp_path) == []


def test_the_processes_of_a_failed_attempt_are_stopped_and_its_turn_is_kept(tmp_path: Path) -> None:
    run = started(tmp_path)
    lease.ended(run)
    assert [claim.state for claim in claims(tmp_path)] == ["starting"]


class Config:
    """A ``VllmConfig`` of a start whose engine is made in this process."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.parallel_config = SimpleNamespace(data_parallel_size=1, nnodes=1, distributed_executor_backend="uni")
        setattr(self, runs.ATTRIBUTE, run)


def config_of(folder: Path, **more: Any) -> Config:
    """What is known of a start when its engine is about to be made."""
    turn = take(folder)
    assert turn is not None
    settings = {name: {"value": None} for name in FIELDS}
    identity = {"devices": [{"index": 0, "kind": "cpu"}]}
    run = runs.new_run("0123456789abcdef", folder, {"identity": identity, "settings": settings, "plan": {"mode": "on"}})
    lease.planned(turn, run, request(), [NODE], plan_of(NODE))
    return Config({**run, **more})


def make_engine(config: Config, made: Callable[[Config], Any]) -> Any:
    """As vLLM's front end does, with our seam around it."""

    def front_end(vllm_config: Config, multiprocess_mode: bool = False) -> Any:
        return made(vllm_config)

    return retry.start(front_end, SimpleNamespace(), (config,), {})


def test_while_an_engine_is_made_its_claim_says_so(tmp_path: Path) -> None:
    states = make_engine(config_of(tmp_path), lambda config: [claim.state for claim in claims(tmp_path)])
    assert states == ["starting"]
    assert [claim.state for claim in claims(tmp_path)] == ["starting"]  # until its engine core says that it is up


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_start_that_fails_gives_its_claim_back(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(config: Config) -> None:
        raise error("no")

    with pytest.raises(error):
        make_engine(config_of(tmp_path), fail)
    assert claims(tmp_path) == []


def test_a_start_that_is_refused_gives_its_claim_back(tmp_path: Path) -> None:
    refused = {"reasons": ("too large",), "remedies": (), "device": ""}
    with pytest.raises(RefusedError):
        make_engine(config_of(tmp_path, refusal=refused), lambda config: None)
    assert claims(tmp_path) == []


def test_a_start_without_a_claim_changes_nothing(tmp_path: Path) -> None:
    for change in (lease.starting, lease.failed, lease.up, lease.ended, lease.give_back):
        change({"cache_dir": str(tmp_path)})
    assert not (tmp_path / "claims").exists()


def test_the_room_of_a_sleeping_engine_stays_claimed_until_it_is_awake(tmp_path: Path) -> None:
    run = started(tmp_path)
    lease.up(run)

    def asleep() -> int:
        return claims(tmp_path)[0].devices["cpu:0"].asleep

    lease.asleep(run, {"cpu:0": 9 * GIB}, True)
    assert asleep() == 9 * GIB
    turn = take(tmp_path)
    assert turn is not None
    assert turn.to_come["cpu:0"] >= 9 * GIB
    lease.asleep(run, {"cpu:0": -4 * GIB}, True)
    assert asleep() == 5 * GIB
    lease.asleep(run, {"cpu:0": -4 * GIB}, False)
    assert asleep() == 0


def test_the_run_carries_its_claim_to_other_processes(tmp_path: Path) -> None:
    run = started(tmp_path)
    assert json.loads(json.dumps(run)) == run


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("in the way")
    with pytest.raises(AutofitError, match="VLLM_AUTOFIT_CACHE_DIR"):
        take(tmp_path)


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An ``EngineArgs`` on a machine whose one memory node is ``NODE``."""
    monkeypatch.setattr(platform, "device_type", lambda: "cpu")
    monkeypatch.setattr(platform, "visible_devices", lambda: None)
    monkeypatch.setattr(platform, "read_devices", lambda engine_args: [NODE])
    monkeypatch.setattr(launch, "model_of", lambda engine_args, request: None)
    return SimpleNamespace(model="some/model", tokenizer=None, data_parallel_size=2, **VLLM_DEFAULTS)


def launched(arguments: SimpleNamespace) -> launch.Launch:
    made = launch.plan_launch(arguments, frozenset(), "OPENAI_API_SERVER", headless=False)
    assert made is not None
    return made


def test_a_launch_enters_what_it_will_take_and_carries_its_claim(arguments: SimpleNamespace) -> None:
    made = launched(arguments)
    (claim,) = Ledger(made.settings.cache_dir).claims()
    assert made.run[lease.NAME] == {"id": claim.id, "devices": ["cpu:0"]}
    assert (claim.state, claim.engines, claim.model) == ("planned", 2, "some/model")
    budget = made.plan.budget
    assert budget is not None
    taken = claim.devices["cpu:0"].bytes
    assert budget.asked_bytes <= taken <= budget.asked_bytes + budget.startup_overhead_bytes
    assert "uuid" not in made.run["record"]["identity"]["devices"][0]


@pytest.mark.usefixtures("impatient")
def test_a_launch_beside_another_plans_with_what_that_leaves(
    arguments: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path))
    with start_python(HOLDS, tmp_path, tmp_path / "log") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        beside = launched(arguments)
        process.kill()
    budget = beside.plan.budget
    assert budget is not None
    assert budget.claimed_bytes > 20 * GIB
    assert "gpu_memory_utilization" not in beside.plan.filled
    assert beside.plan.warnings[-1].endswith("give each engine a part with VLLM_AUTOFIT_SHARE, or close what holds it")
    alone = launched(arguments).plan
    assert "gpu_memory_utilization" in alone.filled


def test_a_launch_whose_folder_cannot_be_used_warns_once_and_plans_as_if_alone(
    arguments: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a-file"
    folder.mkdir()
    for name in ("claims", "starts"):
        (folder / name).write_text("in the way")
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(folder))
    made = launched(arguments)
    assert "gpu_memory_utilization" in made.plan.filled
    assert lease.NAME not in made.run
    assert made.run["trouble_is_known"]
    assert [record.levelname for record in caplog.records].count("WARNING") == 1
