"""What engines hold of a device at this moment, and are going to take, seen from another process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

import psutil

from vllm_autofit.claims.claim import Claim, to_come
from vllm_autofit.errors import DeviceError
from vllm_autofit.experience.ending import this_process
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


def beside(devices: Sequence[DeviceFacts], claims: Sequence[Claim]) -> list[DeviceFacts]:
    """The devices, with what engines have a claim on and haven't taken yet."""
    clock, here = time.monotonic(), this_process()

    def taken(claim: Claim, place: str) -> int:
        return engine_bytes(claim.pid, place) if claim.counts_like(here) else 0

    return [replace(each, claimed_bytes=to_come(claims, identity(each) or "", clock, taken)) for each in devices]


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
