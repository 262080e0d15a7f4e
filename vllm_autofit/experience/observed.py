"""What one record says, as figures. Pure: what is missing, or was not measured, reads as None or as nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vllm_autofit.experience.record import Record
from vllm_autofit.units import MIB
from vllm_autofit.values import Elsewhere, RunSettings

UNREST_BYTES = 256 * MIB
"""What a device's free memory may move by itself while a start takes its share: page cache, other programs' usual
life. A neighbour that takes or gives back more makes whole-device figures worthless."""

LOAD_REQUESTS = 8
LOAD_SECONDS = 60.0
"""What counts as load. The KV cache is taken whole before the first request; what comes later (the sampler's buffers,
kernels loaded when first used) comes with the first batches. Our choice, not measured."""

TERMS = {
    "weights": "weights_bytes",
    "activations": "activation_peak_bytes",
    "non_torch": "non_torch_bytes",
}
"""Names of ``Demand``'s terms, and of a rank's figures."""


def startup_overhead(record: Record) -> int | None:
    """Free memory when we planned less free memory at the worker's own check, on the device that lost most."""
    at_plan = {device.get("index"): device.get("free_bytes") for device in record["identity"].get("devices", [])}
    losses = [then - free for index, free in free_at_check(record).items() if (then := at_plan.get(index)) is not None]
    return max(0, *losses) if losses else None


def free_at_check(record: Record) -> dict[Any, int]:
    """By device: free memory when vLLM's workers looked, the least that any of them saw."""
    if record["outcome"]["state"] == "failed":
        found = [numbers for numbers in _numbers_of_check(record) if not numbers.get("elsewhere")]
    else:
        found = [
            {"device_index": rank.get("device_index"), **(rank.get("before") or {})} for rank in _ranks_here(record)
        ]
    return _least(found, "free_bytes")


def elsewhere(record: Record) -> list[Elsewhere]:
    """The devices of other nodes when vLLM's workers there looked; of one that failed, the device that was too full."""
    run = str(record["run_id"])
    found: dict[Any, list[tuple[int, int]]] = {}
    for rank in ranks(record):
        before = rank.get("before") or {}
        free, total = before.get("free_bytes"), before.get("total_bytes")
        if rank.get("node") is not None and isinstance(free, int) and isinstance(total, int) and total > 0:
            found.setdefault((rank["node"], rank.get("device_index")), []).append((free, total))
    seen = [Elsewhere(*min(figures), ranks=len(figures), record_id=run) for figures in found.values()]
    for numbers in _numbers_of_check(record):
        free, total = numbers.get("free_bytes"), numbers.get("total_bytes")
        if numbers.get("elsewhere") and isinstance(free, int) and isinstance(total, int) and total > 0:
            seen.append(Elsewhere(free, total, ranks=1, record_id=run))
    return seen


def asked(record: Record) -> dict[Any, int]:
    """By device: what all ranks on it together were told to take; nothing where a rank doesn't say."""
    total: dict[Any, int] = {}
    for rank in _ranks_here(record):
        requested = rank.get("requested_bytes")
        if not isinstance(requested, int):
            return {}
        index = rank.get("device_index")
        total[index] = total.get(index, 0) + requested
    return total


def kept(record: Record) -> int | None:
    """What was free beside what vLLM asked for when it looked, on the tightest device; as planned for one that failed.

    Negative where vLLM was told to take more than there was.
    """
    if record["outcome"]["state"] == "failed":
        return _kept_as_planned(record)
    free, taken = free_at_check(record), asked(record)
    return min((free[index] - taken[index] for index in free.keys() & taken.keys()), default=None)


def needed_beside(record: Record) -> int | None:
    """What a start that served took at most beside what vLLM had asked for, on the device where that was most."""
    free, taken, least = free_at_check(record), asked(record), least_free(record)
    known = free.keys() & taken.keys() & least.keys()
    return max((max(0, free[index] - taken[index] - least[index]) for index in known), default=None)


def least_free(record: Record) -> dict[Any, int]:
    """By device: the least memory that was ever seen free, once vLLM was up."""
    devices = [
        {**device, "free_bytes": device.get("least_free_bytes")}
        for engine in record["engines"]
        for device in (engine.get("serving") or {}).get("devices", [])
    ]
    after = [{"device_index": rank.get("device_index"), **(rank.get("after") or {})} for rank in _ranks_here(record)]
    return _least([*devices, *after], "free_bytes")


def requests(record: Record) -> int:
    """Answered by all of its engines."""
    return sum((engine.get("serving") or {}).get("requests") or 0 for engine in record["engines"])


def seconds_served(record: Record) -> float:
    """Of the engine that served longest."""
    return max((float((engine.get("serving") or {}).get("seconds") or 0) for engine in record["engines"]), default=0.0)


def bore_load(record: Record) -> bool:
    """Whether it answered so many requests, or some for so long, that its settings were put to the test."""
    served = [each for engine in record["engines"] if (each := engine.get("serving") or {}).get("requests")]
    long = any((each.get("seconds") or 0) >= LOAD_SECONDS for each in served)
    return long or requests(record) >= LOAD_REQUESTS


def run_settings(record: Record) -> RunSettings | None:
    """What its first engine had in force."""
    for engine in record["engines"]:
        try:
            return RunSettings(
                int(engine["max_model_len"]),
                int(engine["max_num_seqs"]),
                int(engine["max_num_batched_tokens"]),
                str(engine["kv_cache_dtype"]),
                bool(engine["enforce_eager"]),
            )
        except (KeyError, TypeError, ValueError):
            return None
    return None


def was_eager(record: Record) -> bool:
    """Whether it was to do without compiling, as planned."""
    return bool((record["settings"].get("enforce_eager") or {}).get("value"))


def terms(record: Record) -> dict[str, int]:
    """By the names of ``Demand``'s terms: what the fullest rank measured. ``consumed``: all that isn't KV cache."""
    found: dict[str, int] = {}
    for rank in ranks(record):
        if rank.get("profiling_skipped"):
            return {}  # it measured nothing, and repeats what an earlier start did
        figures = {name: rank.get(figure) for name, figure in TERMS.items()}
        figures["cuda_graphs"] = rank.get("cuda_graph_estimate_bytes") or rank.get("cuda_graph_bytes")
        figures["consumed"] = _consumed(rank)
        for name, value in figures.items():
            if isinstance(value, int):
                found[name] = max(value, found.get(name, 0))
    return found


def skipped_profiling(record: Record) -> bool:
    """Whether it did without vLLM's own measurement."""
    return any(rank.get("profiling_skipped") for rank in ranks(record))


def is_quiet(record: Record) -> bool:
    """Whether no neighbour's memory moved while it started, as far as can be told.

    On a host our own processes' memory is known, so what else left the machine is too.
    """
    loss, before = startup_overhead(record), record["plan"].get("own_bytes")
    own = [(rank.get("before") or {}).get("own_bytes") for rank in _ranks_here(record)]
    own.append((failure_of(record).get("numbers") or {}).get("own_bytes"))
    known = [each for each in own if isinstance(each, int)]
    if loss is None or not isinstance(before, int) or not known:
        return True
    return abs(loss - (max(known) - before)) <= UNREST_BYTES


def failure_of(record: Record) -> Mapping[str, Any]:
    """What ended it, at start or later; empty where nothing did, or nobody knows."""
    outcome = record["outcome"]
    return outcome.get("failure") or (outcome.get("ended") or {}).get("failure") or {}


def is_about_device(record: Record) -> bool:
    """Whether a failure, if it says, was for memory of the devices that vLLM was told to take a share of.

    The host's memory is that only where vLLM runs on the host.
    """
    failure = failure_of(record)
    if failure.get("is_capacity") is False:
        return False
    kinds = {device.get("kind") for device in record["identity"].get("devices", [])}
    return failure.get("resource") in (None, "device") or (failure.get("resource") == "host" and kinds == {"cpu"})


def ranks(record: Record) -> Iterator[Mapping[str, Any]]:
    """The workers of all engines."""
    for engine in record["engines"]:
        yield from engine.get("ranks") or []


def _ranks_here(record: Record) -> Iterator[Mapping[str, Any]]:
    """Those on the machine that the plan was made on: numbers of devices count there."""
    return (rank for rank in ranks(record) if rank.get("node") is None)


def _numbers_of_check(record: Record) -> list[Mapping[str, Any]]:
    """What a start that failed vLLM's check said of the device, if this one did."""
    failure = failure_of(record) if record["outcome"]["state"] == "failed" else {}
    return [failure.get("numbers") or {}] if failure.get("phase") == "startup_check" else []


def _consumed(rank: Mapping[str, Any]) -> int | None:
    requested, cache = rank.get("requested_bytes"), rank.get("kv_cache_bytes")
    if not isinstance(requested, int) or not isinstance(cache, int) or cache == 0:
        return None
    return max(0, requested - cache)


def _kept_as_planned(record: Record) -> int | None:
    budget = record["plan"].get("budget") or {}
    share = (record["settings"].get("gpu_memory_utilization") or {}).get("value")
    names = ("free_bytes", "startup_overhead_bytes", "total_bytes", "ranks")
    figures = [value for name in names if isinstance(value := budget.get(name), int)]
    if not isinstance(share, int | float) or len(figures) < len(names):
        return None
    free, overhead, total, sharers = figures
    return round(free - overhead - share * total * sharers)


def _least(found: Iterable[Mapping[str, Any]], name: str) -> dict[Any, int]:
    least: dict[Any, int] = {}
    for each in found:
        index, value = each.get("device_index"), each.get(name)
        if isinstance(value, int):
            least[index] = min(value, least.get(index, value))
    return least
