"""What an engine holds of a device, seen from another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import GIB, MIB, cuda, host, start_python
from tests.claims.test_ledger import entry
from vllm_autofit.claims import holding
from vllm_autofit.claims.claim import Part
from vllm_autofit.claims.holding import beside, engine_bytes, identity
from vllm_autofit.errors import DeviceError
from vllm_autofit.experience.ending import this_process

HELD = 64 * MIB
FRONT_END = f"""
import subprocess, sys, time
front = bytearray({4 * HELD})
engine = subprocess.Popen([sys.executable, "-c", '''
import time
held = bytearray(b"x") * {HELD}
print("ready", flush=True)
time.sleep(300)
'''], stdout=subprocess.PIPE, text=True)
engine.stdout.readline()
print(engine.pid, flush=True)
time.sleep(300)
"""


@pytest.fixture
def front_end() -> Iterator[tuple[int, int]]:
    """The process of a front end that holds much, and that of its engine, which holds ``HELD``."""
    with start_python(FRONT_END) as process:
        assert process.stdout is not None
        engine = int(process.stdout.readline())
        yield process.pid, engine
        os.kill(engine, 9)
        process.kill()


@pytest.mark.parametrize(
    ("uuid", "same"),
    [("GPU-12ab-34", "12ab-34"), ("MIG-56cd", "56cd"), ("MIG-GPU-12ab/1/0", "GPU-12ab/1/0")],
)
def test_a_device_is_named_as_torch_names_it(uuid: str, same: str) -> None:
    assert identity(cuda(uuid=uuid)) == same


def test_a_memory_node_is_named_by_its_number_and_a_device_without_a_name_is_not() -> None:
    assert identity(host(index=1)) == "cpu:1"
    assert identity(cuda()) is None


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")
def test_of_the_host_an_engine_holds_what_its_processes_do_without_the_front_end(front_end: tuple[int, int]) -> None:
    assert HELD <= engine_bytes(front_end[0], "cpu:0") < 2 * HELD


def test_of_a_device_the_driver_says_what_each_process_holds(
    front_end: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = {front_end[0]: GIB, front_end[1]: 2 * GIB, 1: 40 * GIB}, {front_end[1]: 8 * GIB}
    devices = [(cuda(uuid="GPU-a"), ours), (cuda(uuid="GPU-b"), theirs), (cuda(uuid="GPU-c"), {front_end[1]: None})]
    monkeypatch.setattr(holding, "nvidia_processes", lambda environ: devices)
    assert [engine_bytes(front_end[0], device) for device in "abcd"] == [3 * GIB, 8 * GIB, 0, 0]


def test_what_cannot_be_seen_counts_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(environ: Any) -> Any:
        raise DeviceError("the NVIDIA driver (NVML)", "not found", "Install it")

    monkeypatch.setattr(holding, "nvidia_processes", no_driver)
    assert engine_bytes(os.getpid(), "a") == 0
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert engine_bytes(gone.pid, "cpu:0") == 0


def test_beside_others_a_device_has_less_to_give(front_end: tuple[int, int]) -> None:
    pid, _engine = front_end
    process = {**this_process(), "pid": pid}
    starting = entry(process=process, devices={"cpu:0": Part(bytes=GIB, growth=MIB)})
    asleep = entry(state="serving", devices={"cpu:0": Part(bytes=GIB, asleep=2 * GIB)})
    first, second = beside([host(), host(index=1)], [starting, asleep])
    assert first.claimed_bytes == pytest.approx(3 * GIB + MIB - HELD, abs=HELD / 4)
    assert second.claimed_bytes == 0


def test_of_a_process_of_another_container_nothing_is_looked_up() -> None:
    there = entry(process={**this_process(), "pid_space": "another"}, devices={"cpu:0": Part(bytes=GIB)})
    assert beside([host()], [there])[0].claimed_bytes == GIB
