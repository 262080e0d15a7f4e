"""The memory of the device that is measured: read now, and watched while a server works."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal

from dev.neighbour import available_and_total
from dev.server import Server
from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.devices import nvidia_devices
from vllm_autofit.values import DeviceFacts

Kind = Literal["cuda", "cpu"]
SAMPLE_SECONDS = 0.5


def device(kind: Kind) -> DeviceFacts:
    """The first device that a start would use.

    Raises:
        DeviceError: there is none.
    """
    if kind == "cuda":
        return nvidia_devices(os.environ, 1)[0]
    available, total = available_and_total()
    return DeviceFacts("cpu", 0, "the host's CPU", total, available)


def free_and_total(kind: Kind) -> tuple[int, int]:
    """Bytes, as vLLM's own check will find them but for its own processes."""
    found = device(kind)
    return found.free_bytes, found.total_bytes


def driver() -> str:
    """The NVIDIA driver's version; empty without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)


@dataclass
class Peaks:
    """What was seen while a server worked."""

    least_free_bytes: int
    peak_kv_usage: float = 0.0
    """Share of the KV cache in use."""


@contextlib.contextmanager
def watched(server: Server, kind: Kind) -> Iterator[Peaks]:
    """Samples the device and the server's KV cache as long as the block lasts."""
    peaks = Peaks(free_and_total(kind)[0])
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_SECONDS):
            with contextlib.suppress(OSError, HTTPException, DeviceError):
                peaks.least_free_bytes = min(peaks.least_free_bytes, free_and_total(kind)[0])
                peaks.peak_kv_usage = max(peaks.peak_kv_usage, server.metric("vllm:kv_cache_usage_perc"))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join(5)


def take(kind: Kind, size_bytes: int) -> Any:
    """Memory of the device that is really taken by this process, until what is returned is gone.

    Raises:
        RuntimeError, OSError: there isn't so much.
    """
    if kind == "cpu":
        from dev.provocations import taken

        return taken(size_bytes / 2**30)
    import torch

    block = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    return block
