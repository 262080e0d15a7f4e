"""What an engine holds of a device at this moment, seen from another process."""

from __future__ import annotations

import os

import psutil

from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.devices import nvidia_processes
from vllm_autofit.facts.processes import held_bytes
from vllm_autofit.values import DeviceFacts


def identity(device: DeviceFacts) -> str | None:
    """Which device it is, the same in every process of this machine; None where that isn't known.

    A UUID is spelled as torch does: without what NVML writes before it.
    """
    if device.kind == "cpu":
        return f"cpu:{device.index}"
    return device.uuid.removeprefix("GPU-").removeprefix("MIG-") or None


def engine_bytes(front_end: int, device: str) -> int:
    """Bytes that the engine of a front end holds of a device, by ``identity``.

    0 where that can't be seen, as in a container: there the driver's numbers mean other processes. Of the host the
    front end's own memory doesn't count, which it had before it planned.
    """
    try:
        descendants = {child.pid for child in psutil.Process(front_end).children(recursive=True)}
    except psutil.Error:
        return 0
    if device.startswith("cpu:"):
        return sum(held_bytes(pid) or 0 for pid in descendants)
    try:
        found = nvidia_processes(os.environ)
    except DeviceError:
        return 0
    family = {front_end, *descendants}
    return sum(
        held or 0
        for facts, processes in found
        if identity(facts) == device
        for pid, held in processes.items()
        if pid in family
    )
