"""Free and total memory of this process's own device at this moment, as vLLM reads it."""

from __future__ import annotations

import sys
from typing import Any


def memory_now() -> dict[str, Any] | None:
    """``{device_index, free_bytes, total_bytes}``, or None where it can't be read without touching a device.

    On CUDA it asks the driver only where this process already has a context.
    """
    platforms = sys.modules.get("vllm.platforms")
    kind = getattr(getattr(platforms, "current_platform", None), "device_type", None)
    if kind == "cpu":
        return _memory_node()
    torch = sys.modules.get("torch")
    if kind == "cuda" and torch is not None and torch.cuda.is_initialized():
        index = torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(index)
        return {"device_index": index, "free_bytes": int(free), "total_bytes": int(total)}
    return None


def _memory_node() -> dict[str, Any] | None:
    """The NUMA node that this process is bound to, like vLLM's CPU worker."""
    resources = sys.modules.get("vllm.utils.cpu_resource_utils")
    if resources is None:
        return None
    node = resources.get_allowed_cpu_list()[0].numa_node
    memory = resources.get_memory_node_info(node)
    return {
        "device_index": node,
        "free_bytes": int(memory.available_memory),
        "total_bytes": int(memory.total_memory),
    }
