"""A node that only runs workers of an engine whose core is on another node (``--nnodes`` with ``--headless``).

The engine core asks every worker for its figures, wherever it runs (``worker_report.py``), and they go into its node's
record. This node plans by itself, from records of its own: a worker that is asked writes its figures into that of this
node's start, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.runs import Run, dp_rank_of, record_stop, record_worker, settings_in_force

Note = Callable[[dict[str, Any]], None]


def note_of(run: Run, config: Any) -> Note | None:
    """What a worker does with its figures when it is asked for them; None where an engine core is here to record them.

    Args:
        run: this node's start.
        config: the worker's ``VllmConfig``. A vLLM without ``nnodes`` has no such nodes.
    """
    if getattr(config.parallel_config, "node_rank_within_dp", 0) == 0:
        return None

    def note(figures: dict[str, Any]) -> None:
        attempt("recording this worker", _note, run, config, figures)

    return note


def _note(run: Run, config: Any, figures: dict[str, Any]) -> None:
    rank = {name: value for name, value in figures.items() if name != "place"}
    engine = {
        "dp_rank": dp_rank_of(config),
        "max_model_len": int(config.model_config.max_model_len),
        **settings_in_force(config),
        "kv_cache": {},
    }
    record_worker(run, engine, rank)


def note_end(run: Run) -> None:
    """A worker is told to end, so the process that started it is about to."""
    record_stop(run, [os.getppid()])
