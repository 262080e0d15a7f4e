"""Asks every worker of an engine for its memory figures, wherever it runs.

``measure`` goes to the workers by value, so a node without vllm-autofit can run it. It must never raise: with several
workers, vLLM's replies would fall out of step. For the same reason the call gets no timeout: what of the system might
not answer, ``measure`` itself asks with a limit.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import platform
import sys
import threading
from typing import Any, NamedTuple

RANK_FIGURES = (
    "weights_bytes",
    "activation_peak_bytes",
    "non_torch_bytes",
    "cuda_graph_bytes",
    "requested_bytes",
    "kv_cache_bytes",
)


HOST_SECONDS = 10.0
"""For the host's figures, as ``deadline.HOST``: that module may not be where ``measure`` runs."""


class Report(NamedTuple):
    """What one worker told.

    Attributes:
        figures: for the record; ``{"error": ...}`` if they couldn't be had. Those of a worker on another host have a
            ``node``: its name, hashed like ``host`` of an outcome.
        place: where its device can be found from here: ``device_index`` as in ``figures``, ``uuid`` as torch spells it
            (None for a device that isn't CUDA's), ``ordinal`` (CUDA's number of it there), ``in_engine_core`` (whether
            the worker lives in this process). None for a worker on another host.
    """

    figures: dict[str, Any]
    place: dict[str, Any] | None


def collect(executor: Any) -> list[Report]:
    """One report per worker, in rank order."""
    import cloudpickle

    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    try:
        return [_report(_sane(reply)) for reply in executor.collective_rpc(measure)]
    finally:
        cloudpickle.unregister_pickle_by_value(here)


def _report(figures: dict[str, Any]) -> Report:
    told = figures.pop("place", None)
    if told is None:
        return Report(figures, None)
    host = told.pop("host")
    if host != platform.node():
        return Report({**figures, "node": hashlib.sha256(host.encode()).hexdigest()[:16]}, None)
    in_engine_core = told.pop("pid") == os.getpid()
    return Report(figures, {"device_index": figures["device_index"], **told, "in_engine_core": in_engine_core})


def _sane(reply: Any) -> dict[str, Any]:
    """Negative figures (sleep mode and moving neighbours can print them) say nothing: they become None."""
    if not isinstance(reply, dict):
        return {"error": f"a worker answered {type(reply).__name__}"}
    for name in RANK_FIGURES:
        value = reply.get(name)
        if isinstance(value, int) and value < 0:
            reply[name] = None
    return reply


def measure(wrapper: Any) -> dict[str, Any]:
    """Run in a worker: what its device holds, in bytes. None means that this backend or version doesn't say.

    Sources, in vLLM's own terms: ``model_memory_usage`` or the parameters and buffers as loaded (weights),
    ``peak_activation_memory`` less the graph estimate that 0.28 and later count into it, ``total_consumed`` less
    weights (0.28 on) or ``non_torch_memory`` (before), the return of ``capture_model``, ``requested_memory``,
    and the KV tensors' own storage. The CPU backend doesn't measure activations: its ``non_torch_bytes`` is the
    worker's resident memory at KV sizing less weights, activations included.
    """
    try:
        worker = getattr(wrapper, "worker", wrapper)
        runner = getattr(worker, "model_runner", None)

        def figure(owner: Any, *names: str) -> Any:
            for name in names:
                value = getattr(owner, name, None)
                if value is not None:
                    return int(value)
            return None

        def storage_bytes(tensors: Any) -> int:
            storages = {}
            stack = list(tensors)
            while stack:
                item = stack.pop()
                if isinstance(item, (list, tuple)):
                    stack.extend(item)
                elif hasattr(item, "untyped_storage"):
                    storage = item.untyped_storage()
                    storages[storage.data_ptr()] = int(storage.nbytes())
            return sum(storages.values())

        model = getattr(runner, "model", None)
        weights = figure(runner, "model_memory_usage")
        if not weights:
            weights = figure(model, "_vllm_autofit_weights_bytes")
        requested = figure(worker, "requested_memory", "requested_cpu_memory")
        activation = figure(worker, "peak_activation_memory")
        consumed = figure(worker, "total_consumed")
        estimate = figure(worker, "cudagraph_memory_estimate") or 0
        if activation is not None and consumed is not None:
            if os.environ.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "1") not in ("0", "false"):
                activation -= estimate
            non_torch = consumed - (weights or 0)
        else:
            non_torch = figure(worker, "non_torch_memory")
        caches = storage_bytes(getattr(runner, "kv_caches", None) or [])
        device: Any = getattr(worker, "device", None) or getattr(runner, "device", None)  # the CPU worker's, up to 0.19
        kind = getattr(device, "type", None)
        on_cpu = kind == "cpu"
        uuid = ordinal = None
        if kind == "cuda":
            import torch

            uuid, ordinal = str(torch.cuda.get_device_properties(device).uuid), device.index
        fixed = getattr(getattr(worker, "cache_config", None), "kv_cache_memory_bytes", None)
        if on_cpu and fixed is None and requested is not None and caches and weights is not None:
            non_torch = requested - caches - weights
        before = getattr(wrapper, "_vllm_autofit_before", None)
        snapshot = getattr(worker, "init_snapshot", None)
        if snapshot is not None:
            before = {
                "device_index": int(getattr(worker, "local_rank", 0)),
                "free_bytes": int(snapshot.free_memory),
                "total_bytes": int(snapshot.total_memory),
            }
        after = None
        if on_cpu:

            def look() -> None:
                with contextlib.suppress(Exception):  # nobody catches what a thread raises
                    try:
                        from vllm.utils import cpu_resource_utils as resources
                    except ImportError:  # up to 0.19
                        import psutil

                        host = psutil.virtual_memory()
                        seen.append({"free_bytes": int(host.available), "total_bytes": int(host.total)})
                        return
                    memory = resources.get_memory_node_info(resources.get_allowed_cpu_list()[0].numa_node)
                    seen.append({"free_bytes": int(memory.available_memory), "total_bytes": int(memory.total_memory)})

            seen: list[dict[str, int]] = []
            looking = threading.Thread(target=look, daemon=True)
            looking.start()
            looking.join(HOST_SECONDS)
            after = seen[0] if seen else None
        elif snapshot is not None:
            now = copy.copy(snapshot)
            now.measure()  # vLLM's own reading: on an integrated device it isn't CUDA's
            after = {"free_bytes": int(now.free_memory), "total_bytes": int(now.total_memory)}
        figures = {
            "rank": int(getattr(worker, "rank", 0)),
            "device_index": None if before is None else before["device_index"],
            "weights_bytes": weights,
            "activation_peak_bytes": activation,
            "non_torch_bytes": non_torch,
            "cuda_graph_bytes": getattr(runner, "_vllm_autofit_cuda_graph_bytes", None),
            "cuda_graph_estimate_bytes": estimate or None,
            "requested_bytes": requested,
            "kv_cache_bytes": caches,
            "before": before,
            "after": after,
            "profiling_skipped": fixed is not None or getattr(worker, "_vllm_autofit_profiling_skipped", False),
            "place": {"host": platform.node(), "pid": os.getpid(), "uuid": uuid, "ordinal": ordinal},
        }
        note = getattr(wrapper, "_vllm_autofit_note", None)  # hooks/follower.py
        if note is not None:
            note(figures)
        return figures
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
