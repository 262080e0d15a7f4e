"""Jetsons without NVML, told by the files that NVIDIA's Linux for Tegra brings."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from vllm_autofit.facts.unified import host_pool, jetson


def put(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


RELEASE = {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"}
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/device-tree/compatible": "nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0",
}


@pytest.mark.parametrize(
    ("files", "name", "capability"),
    [
        pytest.param(RELEASE | ORIN, "NVIDIA Jetson AGX Orin Developer Kit", (8, 7), id="Orin"),
        pytest.param(RELEASE | THOR, "NVIDIA Jetson AGX Thor Developer Kit", (11, 0), id="Thor"),
        pytest.param(
            {"sys/class/tegra-firmware/x": ""} | ORIN, ORIN["proc/device-tree/model"][:-1], (8, 7), id="sysfs"
        ),
        pytest.param(RELEASE, "NVIDIA Jetson", None, id="a container that hides the device tree"),
    ],
)
def test_a_jetson(tmp_path: Path, files: dict[str, str], name: str, capability: tuple[int, int] | None) -> None:
    device = jetson(put(tmp_path, files))
    assert device is not None
    assert (device.kind, device.name, device.compute_capability) == ("cuda", name, capability)
    assert device.shares_host
    assert device.total_bytes == psutil.virtual_memory().total
    assert 0 < device.free_bytes < device.total_bytes


def test_another_machine_with_a_device_tree_is_no_jetson(tmp_path: Path) -> None:
    assert jetson(put(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5\0"})) is None


def test_what_the_host_gives_counts_the_pages_that_it_gives_back() -> None:
    total, available = host_pool()
    memory = psutil.virtual_memory()
    assert total == memory.total
    assert abs(available - memory.available) < 2**30
