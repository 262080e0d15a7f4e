"""Free and total memory at this moment, as vLLM reads it, and what torch's allocator held at its peak.

Nothing here makes a CUDA context: that would cost memory in a process that has none.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm_autofit.hooks.deadline import DRIVER_IN_USE, HOST, within

if TYPE_CHECKING:
    from vllm_autofit.values import DeviceFacts


def memory_now() -> dict[str, Any] | None:
    """``{device_index, free_bytes, total_bytes}`` of this process's own device, or None where it can't be read.

    On CUDA it asks the driver only where this process already has a context.

    Raises:
        NoAnswerError: the system doesn't answer.
    """
    kind = _device_type()
    if kind == "cpu":
        return within(HOST, _own_memory_node)
    torch = _torch_on_cuda()
    if kind == "cuda" and torch is not None:
        index = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(index)
        if getattr(torch.cuda.get_device_properties(index), "is_integrated", False):
            import psutil

            free = psutil.virtual_memory().available  # like vLLM since 0.12: CUDA leaves out what the host gives back
        return {"device_index": index, "free_bytes": int(free), "total_bytes": int(total)}
    return None


def free_bytes_of(place: Mapping[str, Any]) -> int | None:
    """Free memory of the device that a worker told us about (``worker_report.place``), from any process of its host.

    Raises:
        NoAnswerError: the driver, or the system, doesn't answer.
    """
    if place["uuid"] is not None:
        return within(DRIVER_IN_USE, _by_uuid, place["uuid"]).free_bytes
    resources = sys.modules.get("vllm.utils.cpu_resource_utils")
    if _device_type() != "cpu":
        return None
    if resources is None:
        return int(within(HOST, _host)["free_bytes"])
    return int(within(HOST, resources.get_memory_node_info, place["device_index"]).available_memory)


def allocator_peaks(ordinal: int | None) -> tuple[int, int] | None:
    """Bytes that torch reserved and allocated at most on a device, by CUDA's number in this process.

    Since vLLM last reset the counters, before it profiled; None where this process doesn't use CUDA.
    """
    torch = _torch_on_cuda()
    if torch is None or ordinal is None:
        return None
    return int(torch.cuda.max_memory_reserved(ordinal)), int(torch.cuda.max_memory_allocated(ordinal))


def _device_type() -> str | None:
    platforms = sys.modules.get("vllm.platforms")
    return getattr(getattr(platforms, "current_platform", None), "device_type", None)


def _torch_on_cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _own_memory_node() -> dict[str, Any] | None:
    """The NUMA node that this process is bound to, like vLLM's CPU worker; the whole host up to vLLM 0.19."""
    resources = sys.modules.get("vllm.utils.cpu_resource_utils")
    if resources is None:
        return _host()
    node = resources.get_allowed_cpu_list()[0].numa_node
    memory = resources.get_memory_node_info(node)
    return {
        "device_index": node,
        "free_bytes": int(memory.available_memory),
        "total_bytes": int(memory.total_memory),
    }


def _host() -> dict[str, Any]:
    from vllm_autofit.facts.unified import host_pool  # late, like all that few processes need

    total, available = host_pool()
    return {"device_index": 0, "free_bytes": available, "total_bytes": total}


@functools.cache
def _stay_with_driver() -> None:
    """Opening NVML once more is cheap as long as somebody keeps it open."""
    import pynvml

    pynvml.nvmlInit()


def _by_uuid(uuid: str) -> DeviceFacts:
    """torch leaves out whether the name is a whole device's or an instance's of one."""
    # Imported here: every process of vLLM's loads this module, few read devices.
    from vllm_autofit.errors import DeviceError
    from vllm_autofit.facts.devices import nvidia_devices

    _stay_with_driver()
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    try:
        (device,) = nvidia_devices({**order, "CUDA_VISIBLE_DEVICES": f"GPU-{uuid}"}, 1)
    except DeviceError:
        (device,) = nvidia_devices({**order, "CUDA_VISIBLE_DEVICES": f"MIG-{uuid}"}, 1)
    return device
