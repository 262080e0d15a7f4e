"""Devices by name."""

from __future__ import annotations

import pytest

from tests.builders import GIB
from vllm_autofit.errors import UnknownDeviceError
from vllm_autofit.facts.catalogue import KnownDevice, find_device, known_devices
from vllm_autofit.facts.unified import INTEGRATED


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("H100-80GB", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("h100 pcie", "NVIDIA H100 80GB HBM3"),
        ("h100 nvl", "NVIDIA H100 NVL"),
        ("4090", "NVIDIA GeForce RTX 4090"),
        ("RTX4090", "NVIDIA GeForce RTX 4090"),
        ("rtx_4090_24gb", "NVIDIA GeForce RTX 4090"),
        ("a100-40g", "NVIDIA A100-SXM4-40GB"),
        ("A100 80GB PCIe", "NVIDIA A100-SXM4-80GB"),
        ("rtx4060ti", "NVIDIA GeForce RTX 4060 Ti 16GB"),
        ("4070", "NVIDIA GeForce RTX 4070"),
        ("4070 ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("a10", "NVIDIA A10"),
        ("a10g", "NVIDIA A10G"),
        ("t4", "Tesla T4"),
        ("rtx pro 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition"),
        ("DGX Spark", "NVIDIA GB10"),
        ("gb10", "NVIDIA GB10"),
        ("thor", "NVIDIA Thor"),
        ("Jetson AGX Orin", "Orin (nvgpu)"),
        ("gh200 480gb", "NVIDIA GH200 480GB"),
        ("mi300x", "AMD Instinct MI300X"),
        ("AMD Instinct MI325X", "AMD Instinct MI325X"),
        ("mi355x-288gb", "AMD Instinct MI355X"),
        ("rx 7900 xtx", "AMD Radeon RX 7900 XTX"),
        ("arc b580", "Intel(R) Arc(TM) B580 Graphics"),
        ("max 1550", "Intel(R) Data Center GPU Max 1550"),
    ],
)
def test_however_it_is_written(typed: str, name: str) -> None:
    assert find_device(typed).name == name


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
def test_every_name_of_a_device_means_it(device: KnownDevice) -> None:
    assert [find_device(name) for name in (device.name, *device.also)] == [device] * (1 + len(device.also))


@pytest.mark.parametrize(
    ("typed", "candidates"),
    [
        ("a100", {"NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB"}),
        ("V100", {"Tesla V100-SXM2-32GB", "Tesla V100-SXM2-16GB"}),
        ("RTX 6000", {"NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA RTX 6000 Ada Generation"}),
    ],
)
def test_a_name_of_several_devices_lists_them(typed: str, candidates: set[str]) -> None:
    with pytest.raises(UnknownDeviceError, match="means several devices") as caught:
        find_device(typed)
    assert set(caught.value.candidates) == candidates


@pytest.mark.parametrize(("typed", "close"), [("H101", "NVIDIA H100 80GB HBM3"), ("4099", "NVIDIA GeForce RTX 4090")])
def test_an_unknown_name_gets_what_is_close_and_the_way_out(typed: str, close: str) -> None:
    with pytest.raises(UnknownDeviceError, match="--gpu-memory") as caught:
        find_device(typed)
    assert close in caught.value.candidates


@pytest.mark.parametrize("typed", ["", "  ", "NVIDIA", "GeForce RTX", "80GB of something", "\0"])
def test_a_name_that_says_nothing_means_nothing(typed: str) -> None:
    with pytest.raises(UnknownDeviceError):
        find_device(typed)


@pytest.mark.parametrize("device", known_devices(), ids=lambda device: device.name)
def test_every_entry_is_sound(device: KnownDevice) -> None:
    assert 4 * GIB < device.total_bytes < 300 * GIB
    assert (device.compute_capability is None) == (device.platform != "cuda")
    assert (7, 0) <= (device.compute_capability or (7, 0)) <= (12, 1)
    assert device.source.startswith("data sheet") == device.derived
    assert device.source


def test_usable_memory_is_less_than_the_name_says() -> None:
    for device in known_devices():
        for name in (device.name, *device.also):
            said = [int(word[:-2]) for word in name.replace("-", " ").split() if word.lower().endswith("gb")]
            if said and "480GB" not in name:  # the host's, not the device's
                assert 0.85 * said[-1] * 10**9 < device.total_bytes < said[-1] * GIB


def test_a_device_that_the_estimate_was_not_fitted_to_says_so() -> None:
    said = {device.name: device.uncalibrated for device in known_devices()}
    assert "fills nothing in" in said["AMD Instinct MI300X"]
    assert "fills nothing in" in said["Intel(R) Arc(TM) B580 Graphics"]
    assert "published starts on GB10" in said["NVIDIA Thor"]
    assert said["NVIDIA GH200 480GB"] == said["NVIDIA H100 80GB HBM3"] == ""


def test_the_compute_capabilities_of_integrated_devices_are_those_that_are_read_as_such() -> None:
    shared = {device.compute_capability for device in known_devices() if device.shares_host}
    assert shared == set(INTEGRATED)
