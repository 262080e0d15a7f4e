"""Devices that a plan can be made for without having them: name, usable memory and compute capability.

The memory is what CUDA (ROCm, Level Zero) reports as the device's total, which is what vLLM multiplies by
``gpu_memory_utilization``: less than the marketing figure, and a little different from driver to driver. Where several
figures are published, the smallest of recent drivers is kept. Each entry of ``catalogue.json`` names its source; the
few that nobody published are the data sheet's figure times the share that like devices have of theirs, and are marked
``derived``. Compute capabilities are from NVIDIA's list of CUDA GPUs.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vllm_autofit.errors import UnknownDeviceError
from vllm_autofit.units import GIB

TABLE = Path(__file__).with_name("catalogue.json")

SAYS_NOTHING = frozenset({
    "nvidia", "geforce", "tesla", "quadro", "rtx", "gpu", "graphics", "card", "generation", "edition", "ac",
    "hbm2", "hbm2e", "hbm3", "hbm3e", "sxm", "sxm2", "sxm4", "sxm5", "sxm6", "pcie",
    "amd", "instinct", "radeon", "rx", "intel", "arc", "r", "tm", "jetson", "agx",
})  # fmt: skip
"""Words of a device's name by which none of ours is told from another."""


@dataclass(frozen=True)
class KnownDevice:
    """One kind of device."""

    name: str
    """As CUDA and NVML report it."""
    also: tuple[str, ...]
    """What people call it."""
    total_bytes: int
    compute_capability: tuple[int, int] | None
    """CUDA's; None of others' devices."""
    source: str
    """Where the memory figure is from."""
    derived: bool
    """Whether it is computed from the data sheet's."""
    shares_host: bool = False
    """Whether its memory is the host's, which needs some of it."""
    platform: Literal["cuda", "rocm", "xpu"] = "cuda"
    """vLLM's."""

    @property
    def uncalibrated(self) -> str:
        """What a plan for it has to say about its own figures; empty where they were fitted to such devices."""
        if self.platform != "cuda":
            return (
                f"not calibrated for {self.name}: activations, graphs, kernels and start-up are estimated as for "
                "NVIDIA's devices, and MI355X is known to lose 17 GiB before vLLM looks: leave the utilization to vLLM "
                "if it refuses this one. vllm-autofit fills nothing in on this platform: give vLLM the options"
            )
        if self.shares_host:
            return (
                f"not calibrated for {self.name}: start-up and headroom are from published starts on GB10; "
                "activations, graphs and kernels are estimated as for devices with memory of their own"
            )
        return ""


@functools.cache
def known_devices() -> tuple[KnownDevice, ...]:
    """All of them, grouped by kind."""
    return tuple(
        KnownDevice(
            name=entry["name"],
            also=tuple(entry["also"]),
            total_bytes=round(entry["gib"] * GIB),
            compute_capability=(entry["capability"][0], entry["capability"][1]) if "capability" in entry else None,
            source=entry["source"],
            derived=entry.get("derived", False),
            shares_host=entry.get("shares_host", False),
            platform=entry.get("platform", "cuda"),
        )
        for entry in json.loads(TABLE.read_text(encoding="utf-8"))
    )


def find_device(name: str) -> KnownDevice:
    """The device that ``name`` means: any way of writing it that fits no other ("h100", "RTX4090", "a100-40g").

    Raises:
        UnknownDeviceError: none, or several.
    """
    words = _words(name)
    exact = [device for device in known_devices() if words in [_words(each) for each in _names(device)]]
    if len(exact) == 1:
        return exact[0]
    found = [device for device in known_devices() if words and words <= _all_words(device)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownDeviceError(name, tuple(device.name for device in found), ambiguous=True)
    raise UnknownDeviceError(name, _close(name), ambiguous=False)


def _names(device: KnownDevice) -> Sequence[str]:
    return (device.name, *device.also)


def _all_words(device: KnownDevice) -> frozenset[str]:
    return frozenset().union(*(_words(name) for name in _names(device)))


def _words(name: str) -> frozenset[str]:
    """What tells a device: "NVIDIA A100-SXM4-40GB" -> a100, 40gb; "RTX4060Ti 16G" -> 4060, ti, 16gb."""
    text = re.sub(r"\b(rtx|gtx)(?=\d)", r"\1 ", name.lower())
    text = re.sub(r"(?<=\d)(ti|super)\b", r" \1", text)
    text = re.sub(r"\b(\d+)\s*(?:gib|gb|g)\b", r"\1gb", text)
    return frozenset(re.findall(r"[a-z0-9]+", text)) - SAYS_NOTHING


def _close(name: str) -> tuple[str, ...]:
    plain = {"".join(sorted(_words(each))): device.name for device in known_devices() for each in _names(device)}
    matches = difflib.get_close_matches("".join(sorted(_words(name))), plain, n=5)
    return tuple(dict.fromkeys(plain[match] for match in matches))
