"""Which devices vLLM will use, and their memory as vLLM's own workers will read it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.devices import cpu_features, host_memory, nvidia_devices, visible_device_count
from vllm_autofit.facts.request import local_ranks
from vllm_autofit.hooks.limits import data_limit
from vllm_autofit.values import DeviceFacts


def device_type() -> str:
    """vLLM's name for the backend: ``cuda``, ``cpu``, ``rocm``, ``xpu``, ..."""
    platform = sys.modules["vllm.platforms"].current_platform
    if getattr(platform, "is_rocm", lambda: False)():
        return "rocm"  # its device type is "cuda" too
    return str(platform.device_type)


def read_devices(engine_args: Any) -> list[DeviceFacts]:
    """The devices of this launch's local workers.

    Raises:
        DeviceError: the memory can't be read, or the backend is one that we don't know.
    """
    kind, ranks = device_type(), local_ranks(engine_args, os.environ)
    if kind == "cuda":
        return nvidia_devices(os.environ, _ranks_on_gpus(engine_args, ranks), _device_ids(engine_args))
    if kind == "cpu":
        return _memory_nodes(ranks)
    raise DeviceError(f"the backend {kind!r}", "only cuda and cpu are supported yet", "vLLM keeps its own defaults")


def visible_devices() -> int | None:
    """How many devices this machine shows to CUDA; None where the number of workers isn't bound to devices."""
    return visible_device_count(os.environ) if device_type() == "cuda" else None


def _ranks_on_gpus(engine_args: Any, ranks: int) -> int:
    """Ray places its workers itself, so any visible device may be one of ours (0: all of them)."""
    return 0 if getattr(engine_args, "distributed_executor_backend", None) == "ray" else ranks


def _device_ids(engine_args: Any) -> list[int | str] | None:
    """``--device-ids`` (vLLM 0.32; absent before)."""
    return getattr(engine_args, "device_ids", None) or None


def _memory_nodes(ranks: int) -> list[DeviceFacts]:
    """The NUMA nodes that CPU workers are bound to, with the figures that each worker compares its request with."""
    try:
        resources: Any = importlib.import_module("vllm.utils.cpu_resource_utils")
        nodes = resources.get_visible_memory_node()
    except (ImportError, AttributeError):
        return [host_memory(ranks)]  # before vLLM 0.18 the CPU worker looked at the whole host
    if not nodes:
        raise DeviceError(
            "CPU_VISIBLE_MEMORY_NODES", "it names no node that this process may use", "Unset or correct it"
        )
    spread = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") == "auto" and not _has_container_limit(resources)
    per_node = -(-ranks // len(nodes)) if spread else ranks
    return [_memory_node(resources, node, per_node) for node in nodes]


def _has_container_limit(resources: Any) -> bool:
    """One limit for all nodes together: each node shows it, and all ranks share it."""
    return getattr(resources, "get_cgroup_memory_limit", lambda: None)() is not None


def _memory_node(resources: Any, node: int, ranks: int) -> DeviceFacts:
    memory = resources.get_memory_node_info(node)
    free, limit = int(memory.available_memory), data_limit()
    return DeviceFacts(
        kind="cpu",
        index=node,
        name=f"cpu node {node}",
        total_bytes=int(memory.total_memory),
        free_bytes=free if limit is None else min(free, limit * ranks),  # vLLM doesn't know of the limit
        ranks=ranks,
        size_is_fixed=False,
        cpu_features=cpu_features(),
    )
