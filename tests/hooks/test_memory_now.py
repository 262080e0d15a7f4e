"""The free memory of a worker's device, as another process of its host reads it, over the simulated driver."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.facts.test_devices import FOUR, GIB, SMALL_SLICE, Gpu, partitioned, run
from tests.facts.test_devices import driver as driver  # the fixture
from vllm_autofit.hooks.memory_now import free_bytes_of, memory_now

FREE = """
import ctypes, json, sys
from vllm_autofit.hooks.memory_now import allocator_peaks, free_bytes_of

place = {"device_index": 0, "uuid": json.loads(sys.argv[1]), "ordinal": 0, "in_engine_core": False}
free = [free_bytes_of(place) for _ in range(3)]
opened = ctypes.CDLL("libnvidia-ml.so.1").fake_nvml_times_open()
print(json.dumps({"free": free, "open": opened, "peaks": allocator_peaks(0), "torch": "torch" in sys.modules}))
"""


@pytest.mark.parametrize(
    ("machine", "device"),
    [pytest.param(FOUR, FOUR[2], id="whole"), pytest.param([partitioned((0, SMALL_SLICE))], SMALL_SLICE, id="MIG")],
)
def test_a_device_is_found_by_the_name_that_torch_has_for_it(driver: Path, machine: list[Gpu], device: Gpu) -> None:
    torch_leaves_out_the_kind = device.uuid.partition("-")[2]
    answer = run(FREE, torch_leaves_out_the_kind, driver, machine)
    assert answer["free"] == [device.free_gib * GIB] * 3
    assert answer["open"] == 1, "NVML stays open between samples, once"
    assert answer["peaks"] is None
    assert not answer["torch"], "looking doesn't load torch, let alone make a context"


def test_before_vllm_0_20_a_cpu_worker_sees_the_whole_host(monkeypatch: pytest.MonkeyPatch) -> None:
    platforms = SimpleNamespace(current_platform=SimpleNamespace(device_type="cpu"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.delitem(sys.modules, "vllm.utils.cpu_resource_utils", raising=False)
    host = psutil.virtual_memory()
    now = memory_now()
    assert now is not None
    assert now["total_bytes"] == host.total
    assert 0 < now["free_bytes"] < host.total
    free = free_bytes_of({"device_index": 0, "uuid": None})
    assert free is not None
    assert 0 < free < host.total
