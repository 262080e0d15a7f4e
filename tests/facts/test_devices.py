"""Which devices we read for which setting, through the real NVML client over a simulated driver.

``fake_nvml.c`` beside this file stands in for the library that NVIDIA's driver brings. nvidia-ml-py loads it like the
real one, in a process of its own, so everything but the driver is what users run. What CUDA makes of its environment
variables is taken from NVIDIA's CUDA programming guide, and from PyTorch, which vLLM counts its devices with.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.builders import cuda
from vllm_autofit.errors import DeviceError
from vllm_autofit.facts import devices
from vllm_autofit.facts.devices import check_sizes, host_memory
from vllm_autofit.values import DeviceFacts

GIB = 2**30
SOURCE = Path(__file__).with_name("fake_nvml.c")

PROBE = """
import ctypes, dataclasses, json, sys
from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.devices import nvidia_devices, visible_device_count

environ, ranks, device_ids = json.loads(sys.argv[1])
answer = {"devices": [], "error": "", "visible": visible_device_count(environ)}
try:
    answer["devices"] = [dataclasses.asdict(device) for device in nvidia_devices(environ, ranks, device_ids)]
except DeviceError as error:
    answer["error"] = str(error)
try:
    answer["left_open"] = ctypes.CDLL("libnvidia-ml.so.1").fake_nvml_times_open()
except OSError:
    answer["left_open"] = 0
print(json.dumps(answer))
"""

COUNT_LIKE_PYTORCH = """
import json, os, sys
import torch.cuda

counts = {}
for setting in json.loads(sys.argv[1]):
    os.environ["CUDA_VISIBLE_DEVICES"] = setting
    counts[setting] = torch.cuda._device_count_nvml()
print(json.dumps(counts))
"""


@dataclass(frozen=True)
class Gpu:
    """A device of the simulated machine; ``instances`` are MIG's, by their number on the device."""

    name: str
    uuid: str
    total_gib: int
    free_gib: int
    state: str = "plain"
    instances: tuple[tuple[int, Gpu], ...] = ()

    def lines(self, kind: str = "gpu", state: str | None = None) -> list[str]:
        fields = (kind, self.uuid, self.total_gib * GIB, self.free_gib * GIB, state or self.state, self.name)
        nested = [line for number, instance in self.instances for line in instance.lines("mig", str(number))]
        return ["|".join(map(str, fields)), *nested]


@dataclass(frozen=True)
class Answer:
    devices: list[DeviceFacts]
    error: str
    visible: int
    left_open: int

    @property
    def free_gib(self) -> list[float]:
        """Every device of our machines has another free figure, so this tells which were read, and in what order."""
        return [device.free_bytes / GIB for device in self.devices]


H100 = "NVIDIA H100 80GB HBM3"
FOUR = (
    Gpu(H100, "GPU-0a11aa11-0000-4000-8000-000000000000", 80, 70),
    Gpu(H100, "GPU-1b22bb22-0000-4000-8000-000000000000", 80, 50),
    Gpu(H100, "GPU-1bffffff-0000-4000-8000-000000000000", 80, 30),
    Gpu(H100, "GPU-3d44dd44-0000-4000-8000-000000000000", 80, 10),
)
"""Alike but for what others hold of them. The second and third have UUIDs that begin alike."""

SLOW_AND_FAST = (
    Gpu("Tesla T4", "GPU-00000074-0000-4000-8000-000000000000", 16, 15),
    Gpu("NVIDIA A100-SXM4-80GB", "GPU-000000a1-0000-4000-8000-000000000000", 80, 79),
)
"""As NVML numbers them. CUDA numbers the faster one first, unless CUDA_DEVICE_ORDER says otherwise."""

SMALL_SLICE = Gpu("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "MIG-11111111-0000-5000-8000-000000000000", 10, 9)
LARGE_SLICE = Gpu("NVIDIA A100-SXM4-80GB MIG 3g.40gb", "MIG-33333333-0000-5000-8000-000000000000", 40, 39)
A100 = "GPU-000000a0-0000-4000-8000-000000000000"


def partitioned(*instances: tuple[int, Gpu]) -> Gpu:
    return Gpu("NVIDIA A100-SXM4-80GB", A100, 80, 78, "mig", instances)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the simulated driver in it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not sys.platform.startswith("linux"):
        pytest.skip("nvidia-ml-py looks for libnvidia-ml.so.1 on Linux only")
    if compiler is None:
        pytest.skip("no C compiler (cc or gcc) here to build the simulated NVIDIA driver with")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-std=c99", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*command, "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return folder


def run(
    script: str, question: object, driver: Path, machine: Sequence[Gpu], fails: str = "", capability: str = "9.0"
) -> Any:
    """What ``script`` prints about ``question`` in a process that sees ``machine``."""
    environ = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{driver}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "FAKE_NVML_DEVICES": "\n".join(line for gpu in machine for line in gpu.lines()),
        "FAKE_NVML_FAILS": fails,
        "FAKE_NVML_CAPABILITY": capability,
    }
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(question)], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask(
    driver: Path,
    machine: Sequence[Gpu],
    visible: str | None = None,
    *,
    ranks: int = 1,
    device_ids: Sequence[int | str] | None = None,
    order: str | None = None,
    mps: str | None = None,
    fails: str = "",
    capability: str = "9.0",
    before: str = "",
) -> Answer:
    """``nvidia_devices`` and ``visible_device_count`` on ``machine``, under CUDA's variables; ``before`` runs first."""
    settings = {
        "CUDA_VISIBLE_DEVICES": visible,
        "CUDA_DEVICE_ORDER": order,
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": mps,
    }
    environ = {name: value for name, value in settings.items() if value is not None}
    answer = run(before + PROBE, [environ, ranks, device_ids], driver, machine, fails, capability)
    return Answer(**{**answer, "devices": [_device(device) for device in answer["devices"]]})


def _device(fields: dict[str, Any]) -> DeviceFacts:
    """JSON has no tuples."""
    whole: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in fields.items()}
    return DeviceFacts(**whole)


def test_one_device(driver: Path) -> None:
    answer = ask(driver, FOUR[:1])
    assert answer.devices == [DeviceFacts("cuda", 0, H100, 80 * GIB, 70 * GIB, ranks=1, compute_capability=(9, 0))]
    assert answer.left_open == 0


def test_a_compute_capability_that_the_driver_does_not_tell(driver: Path) -> None:
    answer = ask(driver, FOUR[:1], fails="nvmlDeviceGetCudaComputeCapability=3")
    assert [device.compute_capability for device in answer.devices] == [None]
    slices = ask(driver, [partitioned((0, SMALL_SLICE))], SMALL_SLICE.uuid)
    assert [device.compute_capability for device in slices.devices] == [None]


@pytest.mark.parametrize(
    ("ranks", "free"),
    [
        pytest.param(1, [70], id="one rank takes the first"),
        pytest.param(2, [70, 50], id="tensor parallel 2"),
        pytest.param(0, [70, 50, 30, 10], id="all, as Ray may place its workers"),
        pytest.param(8, [70, 50, 30, 10], id="the other half of 8 ranks runs on another node"),
    ],
)
def test_ranks_take_devices_in_order(driver: Path, ranks: int, free: list[float]) -> None:
    answer = ask(driver, FOUR, ranks=ranks)
    assert answer.free_gib == free
    assert [device.index for device in answer.devices] == list(range(len(free)))


VISIBLE = {
    "1": [50],
    "1,0": [50, 70],
    " 2 , 3 ": [30, 10],
    FOUR[3].uuid: [10],
    f"{FOUR[3].uuid},{FOUR[0].uuid}": [10, 70],
    "GPU-3d": [10],
    "GPU-1b2,GPU-0": [50, 70],
    # CUDA stops at the first entry that names no device, or no single one
    "0,-1,1": [70],
    "0,,1": [70],
    "3,9,0": [10],
    "2,": [30],
    "GPU-3d,GPU-1b,GPU-0": [10],
    "GPU-3d,GPU-9,GPU-0": [10],
}
"""Settings of CUDA_VISIBLE_DEVICES, and what is free on the devices that CUDA then shows."""

NOTHING_VISIBLE = (
    "",
    "-1",
    "-2,0",
    "9",
    "4294967296",  # would be 0 to a library that takes 32 bits of it
    "GPU-9",
    "GPU-1b",
    "gpu",
    "0,0",  # CUDA shows no device at all when one is named twice
    "0,1,2,1",
    "GPU-3d,GPU-3d44",
)


@pytest.mark.parametrize(("visible", "free"), VISIBLE.items())
def test_visible_devices(driver: Path, visible: str, free: list[float]) -> None:
    answer = ask(driver, FOUR, visible, ranks=0)
    assert answer.free_gib == free
    assert answer.visible == len(free)


@pytest.mark.parametrize("visible", NOTHING_VISIBLE)
def test_no_visible_device(driver: Path, visible: str) -> None:
    answer = ask(driver, FOUR, visible)
    assert answer.error == (
        f"cannot read the memory of CUDA_VISIBLE_DEVICES={visible!r}: no NVIDIA device is visible. "
        "Name devices that nvidia-smi -L lists, each once"
    )
    assert answer.visible == 0
    assert answer.left_open == 0


def test_a_driver_without_devices(driver: Path) -> None:
    assert "the memory of this machine: no NVIDIA device is visible" in ask(driver, []).error


def test_the_first_of_the_visible_devices_is_rank_0s(driver: Path) -> None:
    assert ask(driver, FOUR, "1,0").free_gib == [50]
    assert ask(driver, FOUR, "3,9").free_gib == [10]


@pytest.mark.vllm
def test_pytorch_counts_the_same_devices(driver: Path) -> None:
    """vLLM asks PyTorch how many devices there are, and PyTorch reads the variable as CUDA does."""
    expected = {setting: len(free) for setting, free in VISIBLE.items()} | dict.fromkeys(NOTHING_VISIBLE, 0)
    assert run(COUNT_LIKE_PYTORCH, list(expected), driver, FOUR) == expected


@pytest.mark.parametrize(
    ("visible", "device_ids", "free"),
    [
        pytest.param(None, [2], [30], id="position"),
        pytest.param(None, [3, 0], [10, 70], id="positions in the order given"),
        pytest.param("3,1", [1], [50], id="position among the visible"),
        pytest.param(None, [FOUR[3].uuid], [10], id="UUID"),
        pytest.param("3,1", [FOUR[1].uuid], [50], id="UUID of a visible device"),
        pytest.param("3,1", ["1"], [50], id="text is the device's own number, not a position"),
    ],
)
def test_device_ids(driver: Path, visible: str | None, device_ids: list[int | str], free: list[float]) -> None:
    assert ask(driver, FOUR, visible, ranks=len(device_ids), device_ids=device_ids).free_gib == free


def test_ranks_take_the_first_of_device_ids(driver: Path) -> None:
    assert ask(driver, FOUR, ranks=2, device_ids=[3, 2, 1]).free_gib == [10, 30]


@pytest.mark.parametrize(
    ("visible", "wanted", "reason"),
    [
        pytest.param(None, 4, "4 devices are visible. Name a position among them", id="out of range"),
        pytest.param("3,1", 2, "2 devices are visible. Name a position among them", id="out of the visible range"),
        pytest.param(None, -1, "4 devices are visible. Name a position among them", id="negative"),
        pytest.param("", 0, "0 devices are visible. Name a position among them", id="nothing visible"),
        pytest.param(None, "GPU-9", "no visible device has this name", id="unknown UUID"),
        pytest.param("3,1", FOUR[0].uuid, "no visible device has this name", id="hidden device"),
        pytest.param("3,1", "0", "no visible device has this name", id="hidden number"),
    ],
)
def test_device_ids_that_name_no_device(driver: Path, visible: str | None, wanted: int | str, reason: str) -> None:
    answer = ask(driver, FOUR, visible, device_ids=[wanted])
    assert f"cannot read the memory of --device-ids {wanted}: {reason}" in answer.error


@pytest.mark.parametrize(
    ("visible", "free"),
    [
        pytest.param(None, [9], id="unset"),
        pytest.param("0", [9], id="number"),
        pytest.param(A100, [9], id="UUID of the whole device"),
        pytest.param(LARGE_SLICE.uuid, [39], id="UUID of an instance"),
        pytest.param(f"{LARGE_SLICE.uuid},MIG-0", [39], id="unknown instance after a known one"),
    ],
)
def test_mig_instances(driver: Path, visible: str | None, free: list[float]) -> None:
    """CUDA uses the first instance of a partitioned device, unless another one is named."""
    answer = ask(driver, [partitioned((0, SMALL_SLICE), (1, LARGE_SLICE))], visible)
    assert answer.free_gib == free
    assert "MIG" in answer.devices[0].name


def test_mig_numbers_have_gaps(driver: Path) -> None:
    """Deleting instance 0 leaves 1 and 2 as they were: never read the whole device for them."""
    assert ask(driver, [partitioned((2, LARGE_SLICE))]).free_gib == [39]


def test_mig_without_instances(driver: Path) -> None:
    """CUDA can't use such a device, so its 78 free GiB are nobody's."""
    answer = ask(driver, [partitioned()])
    assert "MIG is on, but there is no instance to use. Create one with nvidia-smi mig" in answer.error
    assert answer.devices == []


def test_mig_instance_that_does_not_exist(driver: Path) -> None:
    answer = ask(driver, [partitioned((0, SMALL_SLICE))], "MIG-00000000-0000-5000-8000-000000000000")
    assert "no NVIDIA device is visible" in answer.error


def by_slot(**settings: Any) -> dict[str, Any]:
    return {"order": "PCI_BUS_ID", **settings}


@pytest.mark.parametrize(
    ("settings", "free"),
    [
        pytest.param({}, [15, 79], id="CUDA's first may be either"),
        pytest.param({"visible": "1"}, [15, 79], id="so may CUDA's number 1"),
        pytest.param({"visible": "1,0"}, [15, 79], id="or the first of both"),
        pytest.param({"ranks": 2}, [15, 79], id="both are used"),
        pytest.param({"visible": "1,0", "ranks": 2}, [79, 15], id="both are used, in any order"),
        pytest.param({"order": "FASTEST_FIRST"}, [15, 79], id="CUDA's default, spelt out"),
        pytest.param(by_slot(), [15], id="by slot"),
        pytest.param(by_slot(visible="1"), [79], id="number 1 by slot"),
        pytest.param({"visible": SLOW_AND_FAST[1].uuid}, [79], id="UUID"),
        pytest.param({"visible": "GPU-000000a"}, [79], id="beginning of a UUID"),
        # vLLM turns --device-ids into NVML's numbers and gives them to CUDA, UUIDs too
        pytest.param({"device_ids": [1]}, [15, 79], id="device-ids position"),
        pytest.param({"device_ids": [SLOW_AND_FAST[1].uuid]}, [15, 79], id="device-ids UUID"),
        pytest.param(by_slot(device_ids=[SLOW_AND_FAST[1].uuid]), [79], id="device-ids UUID by slot"),
        pytest.param(
            {"device_ids": [SLOW_AND_FAST[1].uuid], "visible": f"{SLOW_AND_FAST[1].uuid},{SLOW_AND_FAST[0].uuid}"},
            [79],
            id="device-ids UUID among visible UUIDs",
        ),
    ],
)
def test_devices_that_differ(driver: Path, settings: dict[str, Any], free: list[float]) -> None:
    """CUDA's numbers aren't NVML's there: what is read must hold the device that a start will really get."""
    assert ask(driver, SLOW_AND_FAST, **settings).free_gib == free


def test_devices_of_one_size_and_two_kinds(driver: Path) -> None:
    """One is free and the other isn't, and only CUDA knows which of them is number 0."""
    machine = (Gpu("GeForce RTX 3090 Ti", "GPU-3", 24, 23), Gpu("GeForce RTX 3090", "GPU-4", 24, 2))
    assert ask(driver, machine).free_gib == [23, 2]


def test_devices_of_one_kind(driver: Path) -> None:
    """Alike in name and size, CUDA numbers them by slot, as NVML does: what the second holds is not ours to mind."""
    assert ask(driver, FOUR[:2]).free_gib == [70]


GB10 = Gpu("NVIDIA GB10", "GPU-b", 0, 0, "no-memory")


def test_memory_shared_with_the_host(driver: Path) -> None:
    """NVML knows no memory of an integrated device; it can use what the host has."""
    [device] = ask(driver, [GB10], capability="12.1").devices
    assert (device.kind, device.name, device.shares_host) == ("cuda", "NVIDIA GB10", True)
    assert device.compute_capability == (12, 1)
    assert device.total_bytes == psutil.virtual_memory().total
    assert 0 < device.free_bytes < device.total_bytes


@pytest.mark.parametrize("capability", ["8.7", "11.0", "12.1"])
def test_an_integrated_device_with_figures_of_its_own(driver: Path, capability: str) -> None:
    """What its driver calls free leaves out the pages of files, which the host gives back: vLLM counts them."""
    [device] = ask(driver, [Gpu("NVIDIA Thor", "GPU-t", 8192, 1)], capability=capability).devices
    assert device.total_bytes == 8192 * GIB
    assert device.free_bytes != GIB
    assert device.free_bytes < psutil.virtual_memory().total
    assert device.shares_host


@pytest.mark.parametrize("capability", ["9.0", "10.0", "8.6", "12.0"])
def test_coherent_and_other_devices_have_memory_of_their_own(driver: Path, capability: str) -> None:
    """GH200 is 9.0, GB200 10.0."""
    [device] = ask(driver, [Gpu("NVIDIA GH200 480GB", "GPU-g", 94, 90)], capability=capability).devices
    assert (device.free_bytes, device.shares_host) == (90 * GIB, False)


@pytest.mark.parametrize(
    ("mps", "free"),
    [
        pytest.param("0=10G", [10, 50, 30, 10], id="one device"),
        pytest.param("0=10G,1=2048M,2=1073741824", [10, 2, 1, 10], id="several, in its units"),
        pytest.param("0=64GB", [64, 50, 30, 10], id="spelt out"),
        pytest.param("0=75G", [70, 50, 30, 10], id="more than is free"),
        pytest.param(f"{FOUR[1].uuid}=5G", [70, 5, 30, 10], id="UUID"),
        pytest.param("9=1G, rubbish,=2G,1=", [70, 50, 30, 10], id="nothing that can be understood"),
        pytest.param("", [70, 50, 30, 10], id="empty"),
    ],
)
def test_a_client_of_mps_may_take_what_its_limit_says(driver: Path, mps: str, free: list[float]) -> None:
    answer = ask(driver, FOUR, ranks=0, mps=mps)
    assert answer.free_gib == free
    assert {device.total_bytes for device in answer.devices} == {80 * GIB}


def test_a_number_of_mps_may_be_the_clients_or_the_machines(driver: Path) -> None:
    assert ask(driver, FOUR, "1", mps="0=20G,1=40G").free_gib == [20]
    assert ask(driver, FOUR, "1", mps="1=20G").free_gib == [20]


def test_mps_on_an_instance_of_mig(driver: Path) -> None:
    assert ask(driver, [partitioned((1, LARGE_SLICE))], LARGE_SLICE.uuid, mps="0=20G").free_gib == [20]


def test_several_instances_are_read_each_by_its_own_total(driver: Path) -> None:
    visible = f"{LARGE_SLICE.uuid},{SMALL_SLICE.uuid}"
    answer = ask(driver, [partitioned((0, SMALL_SLICE), (1, LARGE_SLICE))], visible, ranks=2)
    assert [device.total_bytes / GIB for device in answer.devices] == [40, 10]
    assert answer.free_gib == [39, 9]


WSL = "import platform; platform.release = lambda: '6.6.87.2-microsoft-standard-WSL2'\n"


def test_under_wsl_windows_keeps_some_that_nvml_does_not_know_of(driver: Path) -> None:
    assert ask(driver, FOUR[:1], before=WSL).free_gib == [69.25]
    assert ask(driver, [Gpu("NVIDIA GeForce RTX 3050", "GPU-3", 4, 0)], before=WSL).free_gib == [0]


JETSON = "from vllm_autofit.facts import unified; unified.JETSON = ('proc/self/status',)\n"
"""This machine has the sign by which a Jetson is told."""


def test_a_jetson_without_nvml(driver: Path, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    answer = ask(tmp_path, [], before=JETSON)
    [device] = answer.devices
    assert (device.kind, device.name, device.shares_host) == ("cuda", "NVIDIA Jetson", True)
    assert device.total_bytes == psutil.virtual_memory().total
    assert answer.visible == 1
    for hidden in ("", "-1"):
        assert "NVML Shared Library Not Found" in ask(tmp_path, [], hidden, before=JETSON).error


def test_a_jetson_with_nvml_is_read_through_it(driver: Path) -> None:
    answer = ask(driver, [Gpu("Orin (nvgpu)", "GPU-o", 0, 0, "no-memory")], capability="8.7", before=JETSON)
    assert [(device.name, device.shares_host) for device in answer.devices] == [("Orin (nvgpu)", True)]
    assert answer.left_open == 0


def test_no_driver(driver: Path, tmp_path: Path) -> None:
    """A file that isn't a library stops the loader as no file would, even on a machine that has the driver."""
    (tmp_path / "libnvidia-ml.so.1").touch()
    answer = ask(tmp_path, [])
    assert answer.error == (
        "cannot read the memory of the NVIDIA driver (NVML): NVML Shared Library Not Found. "
        "Check that nvidia-smi works here"
    )
    assert answer.visible == 0


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        pytest.param("nvmlInitWithFlags=9", "Driver Not Loaded. Check that nvidia-smi works", id="kernel module"),
        pytest.param("nvmlInitWithFlags=28", "GPU not found. Check that nvidia-smi works", id="in NVML's own words"),
        pytest.param("nvmlDeviceGetCount_v2=999", "Unknown Error. Compare with what nvidia-smi -L", id="count"),
        pytest.param("nvmlDeviceGetName=4", "Insufficient Permissions. Compare with what nvidia-smi", id="name"),
        pytest.param("nvmlDeviceGetMemoryInfo=16", "GPU requires restart. Compare with what nvidia-smi", id="memory"),
    ],
)
def test_nvml_errors_become_ours(driver: Path, fails: str, reason: str) -> None:
    answer = ask(driver, FOUR, fails=fails)
    assert reason in answer.error
    assert answer.left_open == 0


def test_a_driver_that_knows_no_mig(driver: Path) -> None:
    assert ask(driver, FOUR, fails="nvmlDeviceGetMigMode=13").free_gib == [70]


def test_failing_to_close_nvml_changes_nothing(driver: Path) -> None:
    assert ask(driver, FOUR, fails="nvmlShutdown=999").free_gib == [70]
    assert "no NVIDIA device is visible" in ask(driver, FOUR, "9", fails="nvmlShutdown=999").error


LOST = Gpu(H100, "GPU-2c33cc33-0000-4000-8000-000000000000", 80, 60, "lost")


@pytest.mark.parametrize("visible", ["1", FOUR[1].uuid, "GPU-1b2"])
def test_a_lost_neighbour_hides_no_other_device(driver: Path, visible: str) -> None:
    assert ask(driver, [LOST, FOUR[1]], visible).free_gib == [50]


def test_a_lost_device(driver: Path) -> None:
    assert "GPU is lost. Compare with what nvidia-smi -L lists" in ask(driver, [LOST, FOUR[1]], "0").error


def test_host_memory() -> None:
    memory = host_memory(ranks=2)
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.free_bytes < memory.total_bytes
    assert (memory.kind, memory.ranks, memory.size_is_fixed) == ("cpu", 2, False)


@pytest.mark.parametrize(("nodes", "count"), [((), 1), (("node0",), 1), (("node0", "node1", "has_memory"), 2)])
def test_the_nodes_of_a_host(
    nodes: tuple[str, ...], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in nodes:
        (tmp_path / node).mkdir()
    monkeypatch.setattr(devices, "NODES", tmp_path)
    assert host_memory().memory_nodes == count


@pytest.mark.parametrize(
    ("free", "total"), [(-1, GIB), (2 * GIB, GIB), (0, 0), (1, 2**60), (1.5, GIB), (None, GIB), (1, None)]
)
def test_sizes_that_no_device_has_are_named(free: Any, total: Any) -> None:
    device = replace(cuda(), free_bytes=free, total_bytes=total)
    with pytest.raises(DeviceError, match=re.escape(f"it says that {free!r} of {total!r} bytes are free")):
        check_sizes(device)


def test_a_device_may_be_full_or_empty() -> None:
    for free in (0, GIB):
        check_sizes(replace(cuda(), free_bytes=free, total_bytes=GIB))
