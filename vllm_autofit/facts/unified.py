"""Integrated NVIDIA devices (GB10, Jetson): their memory is the host's, and the driver has no figure of its own for it.

What they can take is what the operating system calls available: free pages, and pages of files that it gives back;
huge pages that were set aside aren't among them. vLLM takes the same figure (``MemorySnapshot.measure``): from 0.12 to
0.19 for the compute capabilities below, since 0.20 for whatever CUDA calls integrated. Control groups don't bound what
the driver takes: a host filled up beside a container with a limit (GB10, AEON-7/vllm-ultimate-dgx-spark#9).

Devices with memory of their own beside a coherent host (GH200, GB200) are not integrated; they are read like any other.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from vllm_autofit.values import DeviceFacts

INTEGRATED = ((8, 7), (11, 0), (12, 1))
"""Compute capabilities of Orin, Thor and GB10, as vLLM 0.12 to 0.19 lists them (``utils/mem_utils.py``). CUDA's own
word on it, which vLLM asks later, takes a context."""

JETSON = ("etc/nv_tegra_release", "sys/class/tegra-firmware")
"""By which vLLM (0.11 to 0.33, ``platforms/__init__.py``) takes a machine without NVML for a Jetson."""

CAPABILITIES = {"nvidia,tegra234": (8, 7), "nvidia,tegra264": (11, 0)}
"""By the system on chip that the device tree names: Orin, Thor."""


def host_pool() -> tuple[int, int]:
    """Total and available bytes of the host's memory."""
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def jetson(root: Path = Path("/")) -> DeviceFacts | None:
    """The device of a Jetson whose driver has no NVML; None on other machines.

    Args:
        root: of the file system, for tests.
    """
    if not any((root / sign).exists() for sign in JETSON):
        return None
    total, free = host_pool()
    model = _device_tree(root, "model")
    chips = (CAPABILITIES[name] for name in _device_tree(root, "compatible") if name in CAPABILITIES)
    return DeviceFacts(
        kind="cuda",
        index=0,
        name=model[0] if model else "NVIDIA Jetson",
        total_bytes=total,
        free_bytes=free,
        compute_capability=next(chips, None),
        shares_host=True,
    )


def _device_tree(root: Path, name: str) -> list[str]:
    """The texts of one property; none where a container hides the tree."""
    try:
        text = (root / "proc/device-tree" / name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [part for part in text.split("\0") if part]
