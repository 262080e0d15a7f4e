"""A start's identity, on its way from the front end to engine cores and workers.

It travels as a plain dictionary in an attribute of the ``VllmConfig``: pickled with it to every process, part of no
hash, readable where we are not installed. Nothing is written to disk before an engine starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeAlias

from vllm_autofit import __version__
from vllm_autofit.experience.record import SCHEMA, Record, new_run_id, now
from vllm_autofit.hooks.channel import tell
from vllm_autofit.hooks.deadline import folder, waits, within
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.shared_memory import mapped

ATTRIBUTE = "_vllm_autofit"
NOTED = "noted"
"""Set in a run whose end stands below the exception that its user gets."""

KEPT_LATER = 5
"""Exceptions kept of a start that serves."""
BY_GRAVITY = ("clean", "engine_died", "out_of_memory")
"""How an engine ended: what the end of one engine tells, a better end of another doesn't hide."""
RECOGNISED_BY = 200
"""Characters of a worker's message by which the engine core's report of it is known."""

Run: TypeAlias = dict[str, Any]

_planned_here: dict[str, Run] = {}
_failed_here: dict[str, Record] = {}


def attach(config: Any, run: Run) -> None:
    """Put a start's identity on its ``VllmConfig``."""
    setattr(config, ATTRIBUTE, run)
    _planned_here[run["run_id"]] = run


def planned_here() -> list[Run]:
    """The starts that this process made the plans of, or took over from its parent."""
    return list(_planned_here.values())


def run_of(config: Any) -> Run | None:
    """The start that a ``VllmConfig`` belongs to, if we had a hand in it."""
    run = getattr(config, ATTRIBUTE, None)
    return run if isinstance(run, dict) and "run_id" in run else None


def dp_rank_of(config: Any) -> int:
    """Which engine of its start a config belongs to: the entry in ``engines``.

    vLLM 0.14 and later set the rank of a dense model's engines back to 0 and keep the number as an index.
    """
    parallel = config.parallel_config
    index = getattr(parallel, "data_parallel_index", None)
    return int(getattr(parallel, "data_parallel_rank", 0) if index is None else index)


def settings_in_force(config: Any) -> dict[str, Any]:
    """Of a ``VllmConfig``, those that what a start takes depends on, by their names in ``RunSettings``.

    Without the context, which an engine may still have to fit.
    """
    return {
        "max_num_seqs": int(config.scheduler_config.max_num_seqs),
        "max_num_batched_tokens": int(config.scheduler_config.max_num_batched_tokens),
        "kv_cache_dtype": str(config.cache_config.cache_dtype),
        "enforce_eager": bool(config.model_config.enforce_eager),
    }


def new_run(key: str, cache_dir: Path, contents: Record, *, trouble_is_known: bool = False) -> Run:
    """A start about to happen.

    Args:
        key: what its record is filed under.
        cache_dir: where.
        contents: the sections ``identity``, ``settings`` and ``plan`` of the record.
        trouble_is_known: the user has been warned about the folder; its other processes keep quiet about it.
    """
    run_id = attempt("naming this start", _new_run_id, key, cache_dir) or new_run_id()
    return {
        "run_id": run_id,
        "key": key,
        "cache_dir": str(cache_dir),
        "clock": time.time(),
        "trouble_is_known": trouble_is_known,
        "unrecorded": waits(folder(cache_dir)),
        "record": {
            "schema": SCHEMA,
            "run_id": run_id,
            "key": key,
            "vllm_autofit": __version__,
            "started_at": now(),
            **contents,
            "engines": [],
            "outcome": {"state": "starting", "at": now(), "pid": os.getpid()},
        },
    }


def _new_run_id(key: str, cache_dir: Path) -> str:
    from vllm_autofit.experience.store import Store

    return new_run_id() if waits(folder(cache_dir)) else within(folder(cache_dir), Store(cache_dir).new_run_id, key)


def seconds_since_start(run: Run) -> float:
    """Wall-clock seconds since the plan was made."""
    return round(time.time() - float(run["clock"]), 2)


def front_end(run: Run) -> int:
    """The process that made the plan; all others of the start descend from it, on its own machine."""
    return int(run["record"]["outcome"]["pid"])


def tell_process(run: Run) -> None:
    """Let the front end know of this process: should the start fail, it waits for the end of it."""
    from vllm_autofit.experience.ending import this_process

    tell(run, process=this_process(), mapped=mapped())


def record_start(run: Run) -> None:
    """Write the record of a start whose engine is coming up. A second engine of it (data parallel) adds nothing."""

    def change(record: Record | None) -> Record:
        if record is not None:
            return record
        outcome = {"state": "starting", "phase": "weight_load", "at": now(), **this_process()}
        return {**_fresh(run), "outcome": outcome}

    from vllm_autofit.experience.ending import this_process

    tell_process(run)
    tell(run, phase="weight_load")
    _update(run, change)


def record_phase(run: Run, phase: str) -> None:
    """Note how far a start has come."""

    def change(record: Record | None) -> Record:
        record = record or _fresh(run)
        if record["outcome"]["state"] == "starting":
            record["outcome"] = {**record["outcome"], "phase": phase, "at": now()}
        return record

    tell(run, phase=phase, mapped=mapped())
    _update(run, change)


def record_success(run: Run, engine: dict[str, Any]) -> None:
    """Add what one engine measured."""

    _update(run, lambda record: _with_engine(record or _fresh(run), engine))


def record_worker(run: Run, engine: dict[str, Any], rank: dict[str, Any]) -> None:
    """Add what one worker measured of an engine whose core is on another node, and so asks nobody for this record."""

    def change(record: Record | None) -> Record:
        record = record or _fresh(run)
        known = [each for each in record["engines"] if each.get("dp_rank") == engine["dp_rank"]]
        others = [each for found in known for each in found["ranks"] if each.get("rank") != rank.get("rank")]
        return _with_engine(
            record, {**engine, "ranks": sorted([*others, rank], key=lambda each: each.get("rank") or 0)}
        )

    _update(run, change)


def record_failure(run: Run, failure: dict[str, Any]) -> None:
    """Note why a start failed. The first cause noted stays: those after it only report it, unless they alone know that
    memory was short.

    Once it serves, an exception in a worker is noted beside: vLLM goes on after most of them.
    """

    def change(record: Record | None) -> Record:
        record = record or _fresh(run)
        outcome = record["outcome"]
        if outcome["state"] in ("serving", "ended"):
            outcome.setdefault("later", []).append(failure)
            del outcome["later"][:-KEPT_LATER]
            return record
        record["outcome"] = _outcome(record, "failed", failure=more_telling(outcome.get("failure"), failure))
        return record

    tell(run, failure=failure, mapped=mapped())
    _update(run, change)


def more_telling(first: dict[str, Any] | None, later: dict[str, Any]) -> dict[str, Any]:
    """Of two causes of one failure, noted in this order."""
    if first is None or (later.get("is_capacity") and not first.get("is_capacity")):
        return later
    return first


def record_failed_here(run: Run, failure: dict[str, Any]) -> None:
    """Remember a failed attempt in this process: the next one is planned from it wherever records can't be written."""
    from vllm_autofit.experience.record import check, presentable

    record = {**_fresh(run), "outcome": {"state": "failed", "at": now(), "failure": failure}}
    _failed_here[run["run_id"]] = check(presentable(record), run["run_id"])


def failed_here(key: str) -> list[Record]:
    """Failed attempts of a key that this process made, the newest first."""
    return [record for record in reversed(_failed_here.values()) if record["key"] == key]


def record_death(run: Run, processes: Collection[int], failure: dict[str, Any]) -> None:
    """Note that an engine core, one of ``processes``, was killed: it said nothing itself.

    A start that came up ended with it; of one that didn't, its phase says how far it had come.
    """

    def change(record: Record) -> Record:
        outcome = record["outcome"]
        if outcome.get("pid") not in processes:
            return record
        if outcome["state"] == "starting":
            failed = {**failure, "phase": outcome.get("phase") or failure["phase"]}
            record["outcome"] = _outcome(record, "failed", failure=failed)
        elif outcome["state"] == "serving":
            how = "out_of_memory" if failure["is_capacity"] else "engine_died"
            ended = {"how": how, "at": now(), "failure": {**failure, "phase": "runtime"}}
            record["outcome"] = _outcome(record, "ended", ended=ended)
        return record

    _update_existing(run, change)


def record_serving(run: Run, dp_rank: int, serving: dict[str, Any]) -> None:
    """Add what one engine served so far. A record that was deleted meanwhile stays so."""
    _update_existing(run, lambda record: _with_serving(record, dp_rank, serving))


def record_end(run: Run, dp_rank: int, serving: dict[str, Any], failure: dict[str, Any] | None) -> None:
    """Add the last figures of one engine, and how it ended: cleanly, or for ``failure``.

    What a worker noted just before is the cause of a failure that quotes it.
    """

    def change(record: Record) -> Record:
        _with_serving(record, dp_rank, serving)
        outcome = record["outcome"]
        if outcome["state"] == "failed":
            return record
        ended: dict[str, Any] = {"how": "clean", "at": now()}
        if failure is not None:
            cause = _cause(outcome, failure)
            ended = {"how": "out_of_memory" if lacked_memory(cause) else "engine_died", "at": now(), "failure": cause}
        before = outcome.get("ended")
        if before and BY_GRAVITY.index(before["how"]) > BY_GRAVITY.index(ended["how"]):
            ended = before
        record["outcome"] = _outcome(record, "ended", ended=ended)
        return record

    from vllm_autofit.experience.grade import lacked_memory

    _update_existing(run, change)


def record_stop(run: Run, processes: Collection[int]) -> None:
    """Note that the front end stops an engine core that serves, one of ``processes``: it may have no time to say so."""

    def change(record: Record) -> Record:
        outcome = record["outcome"]
        if outcome["state"] == "serving" and outcome.get("pid") in processes:
            record["outcome"] = _outcome(record, "ended", ended={"how": "clean", "at": now()})
        return record

    _update_existing(run, change)


def record_peaks(run: Run, dp_rank: int, device_index: int, peaks: tuple[int, int]) -> None:
    """Add what torch reserved and allocated at most on the device of one worker."""

    def change(record: Record) -> Record:
        for engine in record["engines"]:
            if engine.get("dp_rank") != dp_rank:
                continue
            for device in (engine.get("serving") or {}).get("devices", []):
                if device.get("device_index") == device_index:
                    device["peak_reserved_bytes"], device["peak_allocated_bytes"] = peaks
        return record

    _update_existing(run, change)


def _outcome(record: Record, state: str, **more: Any) -> dict[str, Any]:
    """A new outcome of the same process: only what belongs to the old state is left out."""
    kept = {name: value for name, value in record["outcome"].items() if name not in ("phase", "failure", "ended")}
    return {**kept, "state": state, "at": now(), **more}


def _with_engine(record: Record, engine: dict[str, Any]) -> Record:
    """An engine that came up, instead of what was known of it."""
    others = [each for each in record["engines"] if each.get("dp_rank") != engine.get("dp_rank")]
    record["engines"] = sorted([*others, engine], key=lambda each: each.get("dp_rank") or 0)
    if record["outcome"]["state"] == "starting":
        record["outcome"] = _outcome(record, "serving")
    return record


def _with_serving(record: Record, dp_rank: int, serving: dict[str, Any]) -> Record:
    """What is known of a device already stays where the new figures leave it open."""
    for engine in record["engines"]:
        if engine.get("dp_rank") != dp_rank:
            continue
        before = {each.get("device_index"): each for each in (engine.get("serving") or {}).get("devices", [])}
        devices = [_filled(each, before.get(each["device_index"], {})) for each in serving["devices"]]
        engine["serving"] = {**serving, "devices": devices}
    return record


def _filled(figures: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    return {name: before.get(name) if value is None else value for name, value in figures.items()}


def _cause(outcome: dict[str, Any], failure: dict[str, Any]) -> dict[str, Any]:
    for noted in reversed(outcome.get("later", [])):
        message = str(noted.get("message") or "")[:RECOGNISED_BY]
        if message and message in failure["message"]:
            return dict(noted)
    return failure


def _update_existing(run: Run, change: Callable[[Record], Record]) -> None:
    _update(run, lambda record: change(record or _fresh(run)), new=False)


def _update(run: Run, change: Callable[[Record | None], Record], *, new: bool = True) -> None:
    """Change the record; where there is none, make it if it is a ``new`` one."""
    from vllm_autofit.errors import NoAnswerError, StoreError

    if run.get("unrecorded"):
        return
    try:
        within(folder(run["cache_dir"]), _write, run, change, new)
    except (NoAnswerError, StoreError):
        if not run["trouble_is_known"]:
            raise


def _write(run: Run, change: Callable[[Record | None], Record], new: bool) -> None:
    # Imported here: every process of vLLM's loads this module, few of them write.
    from vllm_autofit.experience.store import Store

    store = Store(Path(run["cache_dir"]))
    if new or store.path(run["key"], run["run_id"]).exists():
        store.update(run["key"], run["run_id"], change)


def _fresh(run: Run) -> Record:
    return dict(run["record"])
