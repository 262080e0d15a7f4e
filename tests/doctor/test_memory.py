"""What is made of devices, of who holds their memory, and of drivers that fail."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from vllm_autofit.doctor.asking import Answer
from vllm_autofit.doctor.memory import look_at_memory
from vllm_autofit.doctor.verdict import Verdict
from vllm_autofit.facts.holders import Holder
from vllm_autofit.units import GIB
from vllm_autofit.values import DeviceFacts

NO_DRIVER = Answer(
    {"devices": [], "error": "cannot read the memory of X: none found. Check that nvidia-smi works here"}
)
FRONT_END = Holder(10, GIB, "me", 60, "python vllm serve m")
ENGINE = Holder(11, 20 * GIB, "me", 60, "VLLM::Worker", engine=True)
ORPHAN = Holder(12, 30 * GIB, "me", 60, "VLLM::EngineCore", engine=True, orphaned=True)


def gpu(free: int, *holders: Holder) -> dict[str, Any]:
    return {**asdict(DeviceFacts("cuda", 0, "H100", 80 * GIB, free * GIB)), "holders": [asdict(h) for h in holders]}


def host(free: int, *holders: Holder) -> Answer:
    device = asdict(DeviceFacts("cpu", 0, "host memory", 100 * GIB, free * GIB))
    return Answer({"devices": [{**device, "holders": [asdict(h) for h in holders]}]})


def levels(backend: str | None, nvidia: Answer, the_host: Answer) -> list[tuple[str, str]]:
    return [(each.level, each.check) for each in look_at_memory(backend, nvidia, the_host, []).verdicts]


def on_gpus(*gpus: dict[str, Any], the_host: Answer | None = None) -> list[Verdict]:
    return look_at_memory("cuda", Answer({"devices": list(gpus)}), the_host or host(50), []).verdicts


def test_free_devices_are_well() -> None:
    assert [(each.level, each.says) for each in on_gpus(gpu(79))] == [
        ("ok", "H100 (device 0): 79.0 of 80.0 GiB free"),
        ("ok", "host memory: 50.0 of 100.0 GiB free"),
    ]


def test_a_device_that_others_use_is_a_note_with_what_is_known_of_them() -> None:
    device, _, engines = on_gpus(gpu(58, ENGINE, FRONT_END))
    assert (device.level, engines.level) == ("note", "ok")
    assert device.says.endswith("free; processes listed below hold 21.0 GiB of it")
    unseen = on_gpus(gpu(10, Holder(99, None)))[0]
    assert unseen.says.endswith("hold 0.0 GiB of it, the rest is held by ones that can't be seen from here")


def test_a_limit_of_a_container_is_told() -> None:
    limited = Answer({**host(50).found, "room_bytes": 3 * GIB})
    last = look_at_memory("cpu", NO_DRIVER, limited, []).verdicts[-1]
    assert (last.level, last.check) == ("note", "devices")
    assert last.says == "a limit of a container or service leaves 3.0 GiB of the host's memory"
    assert "container" not in str(look_at_memory("cpu", NO_DRIVER, host(50), []).verdicts)


def test_an_orphan_is_one_problem_with_all_that_it_holds() -> None:
    on_host = host(50, Holder(12, 2 * GIB, "me", 60, "VLLM::EngineCore", engine=True, orphaned=True))
    problem = on_gpus(gpu(50, ORPHAN), the_host=on_host)[-1]
    assert (problem.level, problem.check) == ("problem", "engines")
    assert problem.says.endswith(
        "has lost its front end and still holds 30.0 GiB of H100 (device 0) and 2.0 GiB of host memory"
    )
    assert problem.do.startswith("End it: kill 12,")


@pytest.mark.parametrize(
    ("backend", "expected"), [("cuda", ["problem"]), ("", ["problem"]), (None, ["note"]), ("cpu", [])]
)
def test_no_driver_matters_to_those_who_need_one(backend: str | None, expected: list[str]) -> None:
    assert levels(backend, NO_DRIVER, host(99)) == [*((each, "devices") for each in expected), ("ok", "devices")]


@pytest.mark.parametrize("backend", ["cuda", "cpu", None])
def test_a_driver_that_hangs_is_a_problem_to_all(backend: str | None) -> None:
    assert levels(backend, Answer(trouble="no answer within 10 s"), host(99))[0] == ("problem", "devices")


@pytest.mark.parametrize(("backend", "level"), [("cuda", "problem"), (None, "note")])
def test_no_visible_device(backend: str | None, level: str) -> None:
    assert levels(backend, Answer({"devices": []}), host(99))[0] == (level, "devices")


def test_backends_that_nothing_is_planned_for() -> None:
    assert levels("rocm", NO_DRIVER, host(99)) == [("note", "devices"), ("ok", "devices")]


def test_the_host_is_the_device_of_vllms_cpu_backend() -> None:
    assert levels("cpu", NO_DRIVER, host(89)) == [("note", "devices")]
    assert levels("cuda", Answer({"devices": []}), host(89))[-1] == ("ok", "devices")


def test_vllms_own_reading_of_the_host_counts() -> None:
    node = asdict(DeviceFacts("cpu", 0, "cpu node 0", 8 * GIB, 4 * GIB))
    memory = look_at_memory("cpu", NO_DRIVER, host(99, FRONT_END), [node, {**node, "name": "cpu node 1"}])
    assert [each.says for each in memory.verdicts] == [f"cpu node {number}: 4.0 of 8.0 GiB free" for number in (0, 1)]
    assert [len(device["holders"]) for device in memory.devices] == [1, 0]


def test_processes_that_can_not_be_read() -> None:
    assert levels("cpu", NO_DRIVER, Answer(trouble="no answer within 10 s")) == [("problem", "devices")]
