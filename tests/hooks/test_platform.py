"""Which devices vLLM's platforms lead to: the host under limits, and what no plan is made for."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.conftest import Forked
from vllm_autofit.errors import DeviceError, UnsupportedDeviceError
from vllm_autofit.hooks import platform
from vllm_autofit.values import DeviceFacts

GIB = 2**30
NODES = SimpleNamespace(tensor_parallel_size=2)

PLUGIN = "def register():\n    return 'npu_platform.Npu'\n"
PLATFORM = """
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import PlatformEnum

class Npu(CpuPlatform):
    _enum = PlatformEnum.OOT
    device_name = "cpu"
"""
"""As hard to tell from vLLM's own as can be: it has the CPU's workers, device type and name."""
START = """
import json, sys
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

asked = EngineArgs(model=sys.argv[1])
config = asked.create_engine_config()
print("ANSWER", json.dumps({
    "platform": type(current_platform).__name__,
    "out_of_tree": current_platform.is_out_of_tree(),
    "values": [
        config.cache_config.gpu_memory_utilization,
        config.model_config.max_model_len,
        config.scheduler_config.max_num_seqs,
        config.model_config.enforce_eager,
        config.cache_config.cache_dtype,
    ],
    "ours": [name for name in vars(config) if "autofit" in name],
}))
"""


@pytest.mark.vllm
def test_the_host_is_read_as_vllms_workers_read_it(forked: Forked) -> None:
    def both() -> tuple[list[DeviceFacts], Any]:
        from vllm.utils.cpu_resource_utils import get_memory_node_info

        found = platform.read_devices(SimpleNamespace())
        return found, get_memory_node_info(found[0].index)

    found, vllms = forked(both)
    assert {device.kind for device in found} == {"cpu"}
    assert found[0].total_bytes == vllms.total_memory
    assert abs(found[0].free_bytes - vllms.available_memory) < GIB


@pytest.mark.vllm
def test_a_control_group_that_vllm_does_not_see_bounds_all_ranks_together(forked: Forked) -> None:
    def bounded() -> list[DeviceFacts]:
        pytest.MonkeyPatch().setattr(platform, "memory_room", lambda: 3 * GIB)
        return platform.read_devices(NODES)

    for device in forked(bounded):
        assert (device.free_bytes, device.ranks) == (3 * GIB, 2)
        assert device.total_bytes > 3 * GIB


@pytest.mark.vllm
def test_a_limit_of_each_process_bounds_each_rank(forked: Forked) -> None:
    def limited() -> list[DeviceFacts]:
        resource.setrlimit(resource.RLIMIT_DATA, (2 * GIB, resource.RLIM_INFINITY))
        return platform.read_devices(NODES)

    assert sum(device.free_bytes for device in forked(limited)) <= 4 * GIB


def since_0_33(assigned: list[int] | None = None) -> list[int]:
    """vLLM's function on a host of four nodes."""
    return [0, 1, 2, 3] if assigned is None else [node for node in assigned if node < 4]


@pytest.mark.parametrize(
    ("device_ids", "variable", "nodes"),
    [
        (None, "2,3", [0, 1, 2, 3]),  # the variable is vLLM's to read
        ([1], None, [1]),
        ([1], "", [1]),
        ([1, 0], "2,3", [3, 2]),
        (["1", "2"], "2,3", [1, 2]),
        ([7], None, []),
    ],
)
def test_device_ids_are_memory_nodes_to_the_cpu_backend_since_0_33(
    monkeypatch: pytest.MonkeyPatch, device_ids: list[int | str] | None, variable: str | None, nodes: list[int]
) -> None:
    monkeypatch.delenv("CPU_VISIBLE_MEMORY_NODES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", variable)
    assert platform._visible_nodes(since_0_33, device_ids) == nodes
    assert platform._visible_nodes(lambda: [0, 1], device_ids) == [0, 1], "up to 0.32"


@pytest.mark.parametrize("device_ids", [[2], ["GPU-0"]])
def test_device_ids_that_are_no_nodes_are_said_to_be(
    monkeypatch: pytest.MonkeyPatch, device_ids: list[int | str]
) -> None:
    monkeypatch.setenv("CPU_VISIBLE_MEMORY_NODES", "2,3")
    with pytest.raises(DeviceError, match="--device-ids"):
        platform._visible_nodes(since_0_33, device_ids)


def on(monkeypatch: pytest.MonkeyPatch, is_a: str, **attributes: str) -> None:
    """vLLM's current platform, as far as it is asked here."""
    kinds = {f"is_{name}": lambda name=name: name == is_a for name in ("cuda", "rocm", "cpu", "xpu", "tpu")}
    current = SimpleNamespace(**kinds, **attributes)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=current))


@pytest.mark.parametrize(
    ("is_a", "attributes", "kind", "said"),
    [
        ("rocm", {"device_type": "cuda", "device_name": "rocm"}, "rocm", "AMD GPUs (ROCm) aren't supported"),
        ("xpu", {"device_type": "xpu", "device_name": "xpu"}, "xpu", "Intel GPUs (XPU) aren't supported"),
        ("tpu", {"device_type": "tpu", "device_name": "tpu"}, "tpu", "TPUs aren't supported"),
        ("oot", {"device_type": "npu", "device_name": "npu"}, "npu", "devices of the platform npu aren't"),
        ("oot", {"device_type": "hpu", "device_name": "hpu"}, "hpu", "devices of the platform hpu aren't"),
        ("oot", {"device_type": "cuda", "device_name": "maca"}, "maca", "devices of the platform maca aren't"),
        ("oot", {"device_type": "cuda", "device_name": "cuda"}, "SimpleNamespace", "platform SimpleNamespace"),
        ("nothing", {"device_type": ""}, "", "unknown devices aren't supported"),
        ("oot", {"device_type": "neuron"}, "neuron", "devices of the platform neuron aren't supported"),
    ],
)
def test_devices_that_no_plan_is_made_for(
    monkeypatch: pytest.MonkeyPatch, is_a: str, attributes: Mapping[str, str], kind: str, said: str
) -> None:
    """None of them is asked for anything: that may take a context on the device."""
    on(monkeypatch, is_a, **attributes)
    assert platform.device_type() == kind
    assert platform.visible_devices() is None
    with pytest.raises(UnsupportedDeviceError, match="vLLM runs as it does without vllm-autofit") as caught:
        platform.read_devices(SimpleNamespace())
    assert said in str(caught.value)
    assert isinstance(caught.value, DeviceError)


def test_before_0_12_vllm_takes_cudas_word_for_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    unused = int(psutil.virtual_memory().free)
    device = DeviceFacts("cuda", 0, "NVIDIA GB10", 2**50, 2**49, shares_host=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert abs(platform._as_vllm_reads(device).free_bytes - unused) < 4 * GIB
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert platform._as_vllm_reads(device) == device


@pytest.fixture
def out_of_tree(tmp_path: Path) -> Path:
    """A folder with a package that brings vLLM a platform, installed as pip would."""
    folder = tmp_path / "site"
    (folder / "npu-1.0.dist-info").mkdir(parents=True)
    (folder / "npu-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: npu\nVersion: 1.0\n")
    entry = "[vllm.platform_plugins]\nnpu = npu_plugin:register\n"
    (folder / "npu-1.0.dist-info" / "entry_points.txt").write_text(entry)
    (folder / "npu_plugin.py").write_text(PLUGIN)
    (folder / "npu_platform.py").write_text(PLATFORM)
    return folder


def start(folder: Path, model: Path, **environ: str) -> tuple[dict[str, Any], list[str]]:
    """What a fresh vLLM made of the model, and our lines in its log."""
    done = subprocess.run(
        [sys.executable, "-c", START, str(model)],
        env={**os.environ, "PYTHONPATH": str(folder), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("ANSWER")]
    assert answers, done.stdout + done.stderr
    return json.loads(answers[0]), [line for line in (done.stdout + done.stderr).splitlines() if "autofit:" in line]


@pytest.mark.vllm
def test_vllm_runs_unchanged_on_a_platform_of_another_package(out_of_tree: Path, tiny_model: Path) -> None:
    ours, said = start(out_of_tree, tiny_model)
    plain, silence = start(out_of_tree, tiny_model, VLLM_AUTOFIT="0")
    assert (ours["platform"], ours["out_of_tree"]) == ("Npu", True)
    assert ours == plain
    (line,) = said
    assert "devices of the platform Npu aren't supported" in line
    assert line.endswith("nothing is filled in.")
    assert silence == []
