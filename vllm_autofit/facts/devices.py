"""Total and free memory per device, without touching it: NVML for NVIDIA, the operating system for the host.

A CUDA context in the process that forks or spawns engines would cost memory and break forking, so none is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psutil

from vllm_autofit.errors import DeviceError
from vllm_autofit.values import DeviceFacts


def nvidia_devices(
    environ: Mapping[str, str], ranks: int, device_ids: Sequence[int | str] | None = None
) -> list[DeviceFacts]:
    """The devices that ``ranks`` local workers will use, as CUDA will number them.

    Args:
        environ: for ``CUDA_VISIBLE_DEVICES`` (indices, UUIDs or their beginnings, MIG UUIDs) and
            ``CUDA_DEVICE_ORDER``.
        ranks: local workers; 0 means all visible devices.
        device_ids: vLLM's own ``--device-ids``: positions among the visible devices, or UUIDs.

    Raises:
        DeviceError: no driver, no such device, or memory that can't be read.
    """
    with _nvml() as nvml:
        names = _visible(nvml, environ)
        if device_ids:
            names = [_pick(names, wanted) for wanted in device_ids]
        used = names[:ranks] if 0 < ranks <= len(names) else names
        if not used:
            raise DeviceError(
                f"CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES')!r}",
                "no NVIDIA device is visible",
                "Name devices that nvidia-smi lists",
            )
        devices = [_read(nvml, index, _handle(nvml, name)) for index, name in enumerate(used)]
        if _order_is_unknown(environ, names) and len(used) < len(names):
            # CUDA may number the devices by speed, NVML by slot: any visible one could be ours.
            everyone = [_read(nvml, index, _handle(nvml, name)) for index, name in enumerate(names)]
            if len({device.total_bytes for device in everyone}) > 1:
                return everyone
        return devices


def host_memory(ranks: int = 1) -> DeviceFacts:
    """The whole host's memory, as the operating system counts it (available, not merely unused)."""
    memory = psutil.virtual_memory()
    return DeviceFacts(
        kind="cpu",
        index=0,
        name="host memory",
        total_bytes=memory.total,
        free_bytes=memory.available,
        ranks=ranks,
        size_is_fixed=False,
    )


def visible_device_count(environ: Mapping[str, str]) -> int:
    """How many NVIDIA devices CUDA will show; 0 without a driver."""
    try:
        with _nvml() as nvml:
            return len(_visible(nvml, environ))
    except DeviceError:
        return 0


@contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise DeviceError("the NVIDIA driver (NVML)", str(error), "Check that nvidia-smi works here") from error
    try:
        yield pynvml
    except pynvml.NVMLError as error:
        raise DeviceError("an NVIDIA device", str(error), "Compare with what nvidia-smi -L lists") from error
    finally:
        pynvml.nvmlShutdown()


def _visible(nvml: Any, environ: Mapping[str, str]) -> list[str]:
    """CUDA's devices by name: an index as text, a UUID, or the beginning of one."""
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return [str(index) for index in range(nvml.nvmlDeviceGetCount())]
    names: list[str] = []
    for name in (part.strip() for part in setting.split(",")):
        if not name or name == "-1":
            break  # CUDA stops at the first entry that names no device
        names.append(name)
    return names


def _pick(names: Sequence[str], wanted: int | str) -> str:
    """One of ``--device-ids``: a position among the visible devices, or a UUID as it is."""
    text = str(wanted)
    if not text.isdigit():
        return text
    if int(text) >= len(names):
        raise DeviceError(f"--device-ids {text}", f"{len(names)} devices are visible", "Name a position among them")
    return names[int(text)]


def _handle(nvml: Any, name: str) -> Any:
    if name.isdigit():
        handle = nvml.nvmlDeviceGetHandleByIndex(int(name))
        return _first_instance(nvml, handle)
    if name.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(name):
            return _first_instance(nvml, handle)
    raise DeviceError(name, "no NVIDIA device has this UUID", "Compare with what nvidia-smi -L lists")


def _first_instance(nvml: Any, handle: Any) -> Any:
    """A whole device, or the first MIG instance of a partitioned one: what CUDA uses when it is named by number."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        if current == nvml.NVML_DEVICE_MIG_ENABLE:
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0)
    except nvml.NVMLError:
        pass  # no MIG on this device, or no instance made yet
    return handle


def _read(nvml: Any, index: int, handle: Any) -> DeviceFacts:
    name = _text(nvml.nvmlDeviceGetName(handle))
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:
        # Integrated devices (GB10, Jetson) share the host's memory and NVML has no figure for it; vLLM itself
        # takes the host's available memory as free there.
        host = psutil.virtual_memory()
        total, free = host.total, host.available
    return DeviceFacts(kind="cuda", index=index, name=name, total_bytes=total, free_bytes=free)


def _order_is_unknown(environ: Mapping[str, str], names: Sequence[str]) -> bool:
    return environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and any(name.isdigit() for name in names)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
