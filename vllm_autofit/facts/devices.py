"""Total and free memory per device, without touching it: NVML for NVIDIA, the operating system for the host.

A CUDA context in the process that forks or spawns engines would cost memory and break forking, so none is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.cgroups import memory_room
from vllm_autofit.facts.client_limits import WSL_UNSEEN_BYTES, in_wsl, mps_limit
from vllm_autofit.facts.unified import INTEGRATED, host_pool, jetson
from vllm_autofit.units import MOST_BYTES
from vllm_autofit.values import DeviceFacts

CPU_FEATURES = ("avx512_bf16", "amx_tile")
"""By their names in ``/proc/cpuinfo``: vLLM 0.32's CPU backend lays out its KV cache by them."""

NODES = Path("/sys/devices/system/node")

Place = int | str
"""Where NVML finds a device: its number there, or the UUID of a MIG instance."""


def nvidia_devices(
    environ: Mapping[str, str], ranks: int, device_ids: Sequence[int | str] | None = None
) -> list[DeviceFacts]:
    """The devices that ``ranks`` local workers will use, as CUDA will number them.

    Where it can't be told which devices a number means to CUDA, and they differ, every device of the machine.

    Args:
        environ: for ``CUDA_VISIBLE_DEVICES`` (indices, UUIDs or their beginnings, MIG UUIDs), ``CUDA_DEVICE_ORDER``
            and the limit of MPS.
        ranks: local workers; 0 means all visible devices.
        device_ids: vLLM's own ``--device-ids``: positions among the visible devices, or names of them.

    Raises:
        DeviceError: no driver, no such device, or memory that can't be read.
    """
    if (alone := _without_nvml(environ)) is not None:
        return [alone]
    with _nvml() as nvml:
        visible = _visible(nvml, environ)
        chosen = [_pick(nvml, visible, wanted) for wanted in device_ids] if device_ids else visible
        used = chosen[:ranks] if 0 < ranks <= len(chosen) else chosen
        if not used:
            setting = environ.get("CUDA_VISIBLE_DEVICES")
            raise DeviceError(
                "this machine" if setting is None else f"CUDA_VISIBLE_DEVICES={setting!r}",
                "no NVIDIA device is visible",
                "Name devices that nvidia-smi -L lists, each once",
            )
        devices = [_as_allowed(nvml, environ, _read(nvml, index, place), place) for index, place in enumerate(used)]
        if _order_is_unknown(environ) and len(used) < nvml.nvmlDeviceGetCount():
            # CUDA may number the devices by speed, NVML by slot: a number could mean any of them.
            everyone = _everyone(nvml, environ)
            if len({(device.name, device.total_bytes) for device in everyone}) > 1:
                return everyone
        return devices


def check_sizes(device: DeviceFacts) -> None:
    """A driver may say anything.

    Raises:
        DeviceError: the sizes aren't what a device can have.
    """
    total, free = device.total_bytes, device.free_bytes
    if not (isinstance(total, int) and isinstance(free, int) and 0 < total <= MOST_BYTES and 0 <= free <= total):
        told = f"it says that {free!r} of {total!r} bytes are free"
        raise DeviceError(device.name, told, "Compare with what nvidia-smi or free say")


def nvidia_processes(environ: Mapping[str, str]) -> list[tuple[DeviceFacts, dict[int, int | None]]]:
    """Every visible device, and the bytes that each process holds of it, by process id as the driver numbers them.

    None where the driver knows the process and not its memory.

    Raises:
        DeviceError: no driver, or a device that can't be read.
    """
    if (alone := _without_nvml(environ)) is not None:
        return [(alone, {})]
    with _nvml() as nvml:
        places = _visible(nvml, environ)
        return [(_read(nvml, index, place), _processes(nvml, place)) for index, place in enumerate(places)]


def host_memory(ranks: int = 1) -> DeviceFacts:
    """The whole host's memory as the operating system counts it (available, not merely unused), and of that what the
    control groups of this process leave it."""
    total, available = host_pool()
    room = memory_room()
    return DeviceFacts(
        kind="cpu",
        index=0,
        name="host memory",
        total_bytes=total,
        free_bytes=available if room is None else min(available, room),
        ranks=ranks,
        size_is_fixed=False,
        cpu_features=cpu_features(),
        memory_nodes=_memory_nodes(),
    )


def _memory_nodes() -> int:
    """As vLLM 0.16 and 0.19 count them (``platforms/cpu.py: get_device_total_memory``)."""
    return len(list(NODES.glob("node*"))) or 1


def cpu_features() -> tuple[str, ...]:
    """Those of ``CPU_FEATURES`` that this host's processor has; none where the system doesn't tell."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            flags = next((line.split() for line in lines if line.startswith("flags")), [])
    except OSError:
        return ()
    return tuple(feature for feature in CPU_FEATURES if feature in flags)


def visible_device_count(environ: Mapping[str, str]) -> int:
    """How many NVIDIA devices CUDA will show; 0 without a driver."""
    if _without_nvml(environ) is not None:
        return 1
    try:
        with _nvml() as nvml:
            return len(_visible(nvml, environ))
    except DeviceError:
        return 0


def _without_nvml(environ: Mapping[str, str]) -> DeviceFacts | None:
    """The device of a Jetson that has no NVML; None where it is hidden, and on every other machine."""
    device = jetson()
    first = environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if device is None or first == "" or first.startswith("-"):
        return None
    with suppress(DeviceError), _nvml():
        return None
    return device


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
        with suppress(pynvml.NVMLError):  # what was read stands, and so does the error that is on its way
            pynvml.nvmlShutdown()


def _visible(nvml: Any, environ: Mapping[str, str]) -> list[Place]:
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    if setting is None:
        return list(range(nvml.nvmlDeviceGetCount()))
    places: list[Place] = []
    for name in setting.split(","):
        place = _find(nvml, name.strip())
        if place is None:
            break  # CUDA stops at the first entry that names no device
        if place in places:
            return []  # CUDA shows no device at all when one is named twice
        places.append(place)
    return places


def _find(nvml: Any, name: str) -> Place | None:
    """The device of this number, UUID, or beginning of a UUID; None where there is none, or no single one."""
    count = nvml.nvmlDeviceGetCount()
    if name.isdecimal():
        return int(name) if int(name) < count else None
    if name.startswith("MIG-"):
        try:
            nvml.nvmlDeviceGetHandleByUUID(name)
        except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
            return None
        return name
    if not name.startswith("GPU-"):
        return None
    found = [index for index in range(count) if _uuid(nvml, index).startswith(name)]
    return found[0] if len(found) == 1 else None


def _uuid(nvml: Any, index: int) -> str:
    """Empty for a device that NVML can't open: it must not hide another one that it can."""
    try:
        return _uuid_of(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except nvml.NVMLError:
        return ""


def _uuid_of(nvml: Any, handle: Any) -> str:
    """Empty where the driver doesn't say."""
    try:
        return _text(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return ""


def _pick(nvml: Any, visible: Sequence[Place], wanted: int | str) -> Place:
    """One of ``--device-ids``: to vLLM an integer is a position among the visible devices, text names a device."""
    if isinstance(wanted, int):
        if 0 <= wanted < len(visible):
            return visible[wanted]
        raise DeviceError(f"--device-ids {wanted}", f"{len(visible)} devices are visible", "Name a position among them")
    place = _find(nvml, wanted)
    if place is None or place not in visible:
        raise DeviceError(
            f"--device-ids {wanted}", "no visible device has this name", "Compare with what nvidia-smi -L lists"
        )
    return place


def _handle(nvml: Any, place: Place) -> Any:
    if isinstance(place, str):
        return nvml.nvmlDeviceGetHandleByUUID(place)
    device = nvml.nvmlDeviceGetHandleByIndex(place)
    return _first_instance(nvml, device) if _is_partitioned(nvml, device) else device


def _is_partitioned(nvml: Any, device: Any) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(device)
    except nvml.NVMLError:
        return False  # no MIG on this device, or a driver that doesn't know it
    return bool(current == nvml.NVML_DEVICE_MIG_ENABLE)


def _first_instance(nvml: Any, device: Any) -> Any:
    """What CUDA uses of a partitioned device that is named by number or by its own UUID."""
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        with suppress(nvml.NVMLError):  # deleting an instance leaves a gap in the numbers
            return nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index)
    raise DeviceError(
        _text(nvml.nvmlDeviceGetName(device)),
        "MIG is on, but there is no instance to use",
        "Create one with nvidia-smi mig, or turn MIG off",
    )


def _read(nvml: Any, index: int, place: Place) -> DeviceFacts:
    handle = _handle(nvml, place)
    name = _text(nvml.nvmlDeviceGetName(handle))
    capability = _compute_capability(nvml, handle)
    own = _own_memory(nvml, handle)
    shares_host = own is None or capability in INTEGRATED
    total, free = own or host_pool()
    if shares_host:
        free = host_pool()[1]
    elif in_wsl():
        free = max(0, free - WSL_UNSEEN_BYTES)
    return DeviceFacts(
        kind="cuda",
        index=index,
        name=name,
        total_bytes=total,
        free_bytes=free,
        compute_capability=capability,
        shares_host=shares_host,
        uuid=_uuid_of(nvml, handle),
    )


def _own_memory(nvml: Any, handle: Any) -> tuple[int, int] | None:
    """Total and free bytes; None of an integrated device, for which NVML has no figures (GB10, Jetson)."""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_NotSupported:
        return None
    return int(memory.total), int(memory.free)


def _as_allowed(nvml: Any, environ: Mapping[str, str], device: DeviceFacts, place: Place) -> DeviceFacts:
    """A client of MPS may be kept to less than is free. Its numbers are CUDA's to the client, or NVML's."""
    uuid = _uuid(nvml, place) if isinstance(place, int) else place
    limit = mps_limit(environ, str(device.index), str(place), uuid)
    return device if limit is None or limit > device.free_bytes else replace(device, free_bytes=limit)


def _compute_capability(nvml: Any, handle: Any) -> tuple[int, int] | None:
    try:
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        return None  # a MIG instance, or a driver that doesn't know: nothing depends on it but fp8
    return int(major), int(minor)


def _processes(nvml: Any, place: Place) -> dict[int, int | None]:
    handle = _handle(nvml, place)
    found: dict[int, int | None] = {}
    for listing in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        with suppress(nvml.NVMLError_NotSupported):  # a process that draws and computes is in both lists
            found.update((int(each.pid), each.usedGpuMemory) for each in listing(handle))
    return found


def _everyone(nvml: Any, environ: Mapping[str, str]) -> list[DeviceFacts]:
    """Every device of the machine that NVML can read: what it can't, CUDA can't use either."""
    devices: list[DeviceFacts] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        with suppress(nvml.NVMLError, DeviceError):
            devices.append(_as_allowed(nvml, environ, _read(nvml, index, index), index))
    return devices


def _order_is_unknown(environ: Mapping[str, str]) -> bool:
    """Whether a number may mean one device to CUDA and another to NVML.

    ``--device-ids`` has no say in it: vLLM turns the UUIDs given there into NVML's numbers and hands CUDA these, unless
    ``CUDA_VISIBLE_DEVICES`` leads back to a UUID.
    """
    if environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return False
    setting = environ.get("CUDA_VISIBLE_DEVICES")
    return setting is None or any(name.strip().isdecimal() for name in setting.split(","))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
