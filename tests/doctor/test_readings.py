"""What is read, from a simulated NVIDIA driver and from real folders, in the processes that the doctor asks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders import record
from tests.facts.test_devices import FOUR, GIB, SLOW_AND_FAST, Gpu
from vllm_autofit.doctor import readings
from vllm_autofit.doctor.asking import Question, ask
from vllm_autofit.experience.store import Store

SOURCE = Path(__file__).parent.parent / "facts" / "fake_nvml_processes.c"
KEY, RUN = "0123456789abcdef", "20261120T120000Z-1-aaaa"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the simulated driver in it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C compiler (cc or gcc) here to build the simulated NVIDIA driver with")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-std=gnu99", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return folder


@pytest.fixture
def machine(driver: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with NVIDIA devices: none as yet."""
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}")
    monkeypatch.setenv("FAKE_NVML_DEVICES", "")
    return monkeypatch


def put(machine: pytest.MonkeyPatch, *gpus: Gpu) -> None:
    machine.setenv("FAKE_NVML_DEVICES", "\n".join(line for gpu in gpus for line in gpu.lines()))


def nvidia(seconds: float = 60) -> Any:
    (answer,) = ask([Question("vllm_autofit.doctor.readings", seconds, "nvidia")])
    assert not answer.trouble, answer.trouble
    return answer.found


def test_every_device_comes_with_those_who_hold_its_memory(machine: pytest.MonkeyPatch) -> None:
    put(machine, *FOUR[:2])
    machine.setenv("FAKE_NVML_PROCESSES", f"{FOUR[1].uuid}|{os.getpid()}|{29 * GIB}\n{FOUR[1].uuid}|4194999|-1")
    first, second = nvidia()["devices"]
    assert first["holders"] == []
    assert second["free_bytes"] == 50 * GIB
    assert [(each["pid"], each["bytes"]) for each in second["holders"]] == [(os.getpid(), 29 * GIB), (4194999, None)]


def test_only_what_is_visible_is_shown_and_an_order_that_matters_is_noticed(machine: pytest.MonkeyPatch) -> None:
    put(machine, *SLOW_AND_FAST)
    assert nvidia()["order_matters"] is False
    machine.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = nvidia()
    assert [device["name"] for device in found["devices"]] == [SLOW_AND_FAST[1].name]
    assert found["order_matters"] is True
    machine.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert nvidia()["order_matters"] is False


def test_no_visible_device(machine: pytest.MonkeyPatch) -> None:
    assert nvidia() == {"order_matters": False, "devices": []}


def test_a_driver_that_refuses_its_processes_says_so(machine: pytest.MonkeyPatch) -> None:
    put(machine, FOUR[0])
    machine.setenv("FAKE_NVML_FAILS", "nvmlDeviceGetComputeRunningProcesses_v3=4")
    assert nvidia()["error"].startswith("cannot read the memory of an NVIDIA device")


def test_a_driver_that_hangs_hangs_nobody_else(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("FAKE_NVML_HANGS", "1")
    (answer,) = ask([Question("vllm_autofit.doctor.readings", 1, "nvidia")])
    assert answer.trouble == "no answer within 1 s"


# the cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the environment says that records are."""
    return tmp_path / "records"


def test_a_folder_that_is_not_there_yet_is_tried_and_not_made(folder: Path) -> None:
    found = readings.cache()
    assert (found["folder"], found["exists"], found["error"], found["locks"]) == (str(folder), False, "", True)
    assert list(folder.parent.iterdir()) == []


def test_a_folder_in_use_is_left_as_it_was(folder: Path) -> None:
    path = Store(folder).update(KEY, RUN, lambda _: record(RUN))
    before = sorted(folder.rglob("*"))
    found = readings.cache()
    assert (found["exists"], found["error"], found["locks"]) == (True, "", True)
    assert (found["findings"], found["unusable"]) == ({}, [])
    path.write_text("{")
    assert readings.cache()["findings"] == {"damaged": 1}
    assert sorted(folder.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder where nobody can write")
def test_a_place_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("/proc/self", "/proc/self/new"):
        monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", place)
        assert readings.cache()["error"]


def test_layers_are_read_and_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = tmp_path / "layer"
    path = Store(layer).update(KEY, RUN, lambda _: record(RUN))
    monkeypatch.setenv("VLLM_AUTOFIT_PROFILES", f"{layer}{os.pathsep}{tmp_path / 'nowhere'}")
    found = readings.cache()
    assert (found["layers"], found["layers_skipped"]) == ([str(layer)], [])
    assert "nowhere can't be read" in found["settings"][0]
    path.write_text("{")
    (message,) = readings.cache()["layers_skipped"]
    assert str(path) in message
    assert path.exists()


def test_the_models_of_the_hub_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert readings.hub() == {"folder": str(tmp_path), "models": 0}
    (tmp_path / "models--org--one").mkdir()
    assert readings.hub()["models"] == 1
