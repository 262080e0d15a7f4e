"""A start's identity, on its way from the front end to engine cores and workers.

It travels as a plain dictionary in an attribute of the ``VllmConfig``: pickled with it to every process, part of no
hash, readable where we are not installed. Nothing is written to disk before an engine starts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from vllm_autofit import __version__
from vllm_autofit.experience.record import SCHEMA, Record, new_run_id, now

ATTRIBUTE = "_vllm_autofit"

KEPT_LATER = 5
"""Exceptions kept of a start that serves."""

Run: TypeAlias = dict[str, Any]


def attach(config: Any, run: Run) -> None:
    """Put a start's identity on its ``VllmConfig``."""
    setattr(config, ATTRIBUTE, run)


def run_of(config: Any) -> Run | None:
    """The start that a ``VllmConfig`` belongs to, if we had a hand in it."""
    run = getattr(config, ATTRIBUTE, None)
    return run if isinstance(run, dict) and "run_id" in run else None


def new_run(key: str, cache_dir: Path, contents: Record, *, trouble_is_known: bool = False) -> Run:
    """A start about to happen.

    Args:
        key: what its record is filed under.
        cache_dir: where.
        contents: the sections ``identity``, ``settings`` and ``plan`` of the record.
        trouble_is_known: the user has been warned about the folder; its other processes keep quiet about it.
    """
    run_id = new_run_id()
    return {
        "run_id": run_id,
        "key": key,
        "cache_dir": str(cache_dir),
        "clock": time.time(),
        "trouble_is_known": trouble_is_known,
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


def seconds_since_start(run: Run) -> float:
    """Wall-clock seconds since the plan was made."""
    return round(time.time() - float(run["clock"]), 2)


def record_start(run: Run) -> None:
    """Write the record of a start whose engine is coming up. A second engine of it (data parallel) adds nothing."""
    _update(run, lambda record: record or _fresh(run))


def record_success(run: Run, engine: dict[str, Any]) -> None:
    """Add what one engine measured."""

    def change(record: Record | None) -> Record:
        record = record or _fresh(run)
        others = [each for each in record["engines"] if each.get("dp_rank") != engine.get("dp_rank")]
        record["engines"] = sorted([*others, engine], key=lambda each: each.get("dp_rank") or 0)
        if record["outcome"]["state"] != "failed":
            record["outcome"] = {"state": "serving", "at": now()}
        return record

    _update(run, change)


def record_failure(run: Run, failure: dict[str, Any]) -> None:
    """Note why a start failed. The first cause noted stays: those after it only report it.

    Once it serves, an exception in a worker is noted beside: vLLM goes on after most of them.
    """

    def change(record: Record | None) -> Record:
        record = record or _fresh(run)
        if record["outcome"]["state"] == "serving":
            record["outcome"].setdefault("later", []).append(failure)
            del record["outcome"]["later"][:-KEPT_LATER]
            return record
        first = record["outcome"].get("failure")
        record["outcome"] = {"state": "failed", "at": now(), "failure": first or failure}
        return record

    _update(run, change)


def _update(run: Run, change: Callable[[Record | None], Record]) -> None:
    # Imported here: every process of vLLM's loads this module, few of them write.
    from vllm_autofit.errors import StoreError
    from vllm_autofit.experience.store import Store

    try:
        Store(Path(run["cache_dir"])).update(run["key"], run["run_id"], change)
    except StoreError:
        if not run["trouble_is_known"]:
            raise


def _fresh(run: Run) -> Record:
    return dict(run["record"])
