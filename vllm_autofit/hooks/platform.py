"""Which devices vLLM will use, and their memory as vLLM's own workers will read it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psutil

from vllm_autofit.errors import DeviceError, UnsupportedDeviceError
from vllm_autofit.facts.cgroups import memory_room
from vllm_autofit.facts.devices import cpu_features, host_memory, nvidia_devices, visible_device_count
from vllm_autofit.facts.request import local_ranks
from vllm_autofit.hooks.limits import process_limit
from vllm_autofit.values import DeviceFacts

UNSUPPORTED = {"rocm": "AMD GPUs (ROCm)", "xpu": "Intel GPUs (XPU)", "tpu": "TPUs", "": "unknown devices"}
"""Platforms of vLLM's own for which nothing is filled in: docs/devices.md says why."""


def device_type() -> str:
    """vLLM's name for the backend: ``cuda``, ``cpu``, ``rocm``, ``xpu``, ...; empty where it found none.

    The first two are vLLM's own. Platforms of other packages may have their device types, and none of their drivers.
    """
    platform = sys.modules["vllm.platforms"].current_platform
    if platform.is_cuda():
        return "cuda"
    if platform.is_cpu():
        return "cpu"
    if platform.is_rocm():
        return "rocm"  # its device type is "cuda" too
    name = str(platform.device_type and (getattr(platform, "device_name", "") or platform.device_type))
    return type(platform).__name__ if name in ("cuda", "cpu") else name


def read_devices(engine_args: Any) -> list[DeviceFacts]:
    """The devices of this launch's local workers.

    Raises:
        DeviceError: the memory can't be read.
        UnsupportedDeviceError: the backend is one that no plan is made for.
    """
    kind, ranks = device_type(), local_ranks(engine_args, os.environ)
    if kind == "cuda":
        found = nvidia_devices(os.environ, _ranks_on_gpus(engine_args, ranks), _device_ids(engine_args))
        return [_as_vllm_reads(device) for device in found]
    if kind == "cpu":
        return _memory_nodes(ranks, _device_ids(engine_args))
    raise UnsupportedDeviceError(UNSUPPORTED.get(kind, f"devices of the platform {kind}"))


def visible_devices() -> int | None:
    """How many devices this machine shows to CUDA; None where the number of workers isn't bound to devices."""
    return visible_device_count(os.environ) if device_type() == "cuda" else None


def _as_vllm_reads(device: DeviceFacts) -> DeviceFacts:
    """Before 0.12 vLLM takes CUDA's figure on integrated devices too: pages of files aren't free there."""
    if not device.shares_host or importlib.util.find_spec("vllm.utils.mem_utils") is not None:
        return device
    return replace(device, free_bytes=min(device.free_bytes, int(psutil.virtual_memory().free)))


def _ranks_on_gpus(engine_args: Any, ranks: int) -> int:
    """Ray places its workers itself, so any visible device may be one of ours (0: all of them)."""
    return 0 if getattr(engine_args, "distributed_executor_backend", None) == "ray" else ranks


def _device_ids(engine_args: Any) -> list[int | str] | None:
    """``--device-ids`` (in vLLM 0.24, not in 0.20)."""
    return getattr(engine_args, "device_ids", None) or None


def _memory_nodes(ranks: int, device_ids: Sequence[int | str] | None) -> list[DeviceFacts]:
    """The NUMA nodes that CPU workers are bound to, with the figures that each worker compares its request with, and
    never more than the control groups and limits of this process leave."""
    room = memory_room()
    try:
        resources: Any = importlib.import_module("vllm.utils.cpu_resource_utils")
        nodes = _visible_nodes(resources.get_visible_memory_node, device_ids)
    except (ImportError, AttributeError):
        return [host_memory(ranks)]  # before vLLM 0.20 the CPU worker looked at the whole host
    if not nodes:
        asked = "CPU_VISIBLE_MEMORY_NODES or --device-ids"
        raise DeviceError(asked, "it names no node that this process may use", "Unset or correct it")
    # A control group has one limit for all nodes together: all ranks share what each node shows.
    spread = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") == "auto" and room is None
    per_node = -(-ranks // len(nodes)) if spread else ranks
    return [_memory_node(resources, node, per_node, room) for node in nodes]


def _visible_nodes(visible_to_vllm: Callable[..., list[int]], device_ids: Sequence[int | str] | None) -> list[int]:
    """Nodes in vLLM's order. Up to 0.32 its CPU workers pass over ``--device-ids``; since 0.33 they are bound to those
    nodes (``utils/cpu_resource_utils.py``)."""
    if device_ids is None or not inspect.signature(visible_to_vllm).parameters:
        return visible_to_vllm()
    try:
        return visible_to_vllm(_node_numbers(device_ids, os.environ.get("CPU_VISIBLE_MEMORY_NODES")))
    except (IndexError, ValueError) as error:
        raise DeviceError(f"--device-ids {device_ids}", str(error), "Name memory nodes of this host") from error


def _node_numbers(device_ids: Sequence[int | str], setting: str | None) -> list[int]:
    """As ``EngineArgs._resolve_device_ids``: where the variable is set, an integer is a position in it; text is a
    node's number."""
    listed = setting.split(",") if setting else None
    return [int(listed[wanted] if listed and isinstance(wanted, int) else wanted) for wanted in device_ids]


def _memory_node(resources: Any, node: int, ranks: int, room: int | None) -> DeviceFacts:
    memory = resources.get_memory_node_info(node)
    limit = process_limit()
    # vLLM knows no limit of a process, and of control groups only the one at the root.
    bounds = [int(memory.available_memory), room, None if limit is None else limit * ranks]
    return DeviceFacts(
        kind="cpu",
        index=node,
        name=f"cpu node {node}",
        total_bytes=int(memory.total_memory),
        free_bytes=min(bound for bound in bounds if bound is not None),
        ranks=ranks,
        size_is_fixed=False,
        cpu_features=cpu_features(),
    )
