"""A node that only runs workers: each adds itself to the record of its own node's start."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.experience.store import Store
from vllm_autofit.hooks.follower import note_end, note_of
from vllm_autofit.hooks.runs import new_run, record_start

KEY = "0123456789abcdef"


def config(node_rank: int | None) -> Any:
    parallel = SimpleNamespace(data_parallel_rank=0, data_parallel_index=1)
    if node_rank is not None:
        parallel.node_rank_within_dp = node_rank
    return SimpleNamespace(
        parallel_config=parallel,
        scheduler_config=SimpleNamespace(max_num_seqs=128, max_num_batched_tokens=2048),
        cache_config=SimpleNamespace(cache_dtype="auto"),
        model_config=SimpleNamespace(enforce_eager=False, max_model_len=4096),
    )


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    return new_run(KEY, tmp_path, {"identity": {"devices": []}, "settings": {}, "plan": {}})


def record(run: dict[str, Any]) -> dict[str, Any]:
    (only,) = Store(Path(run["cache_dir"])).records(KEY)
    return only


@pytest.mark.parametrize("node_rank", [None, 0], ids=["a vLLM without nodes", "the engine core's node"])
def test_where_an_engine_core_asks_workers_note_nothing(node_rank: int | None, run: dict[str, Any]) -> None:
    assert note_of(run, config(node_rank)) is None


def test_workers_add_themselves_in_whatever_order(run: dict[str, Any]) -> None:
    record_start(run)
    for rank, weights in ((3, 1), (2, 2), (3, 3)):
        note = note_of(run, config(1))
        assert note is not None
        note({"rank": rank, "weights_bytes": weights, "place": {"host": "node1"}})
    (engine,) = record(run)["engines"]
    assert engine["dp_rank"] == 1
    assert engine["max_model_len"] == 4096
    assert engine["ranks"] == [{"rank": 2, "weights_bytes": 2}, {"rank": 3, "weights_bytes": 3}]
    assert record(run)["outcome"]["state"] == "serving"


def test_what_goes_wrong_never_reaches_the_worker(run: dict[str, Any]) -> None:
    note = note_of(run, SimpleNamespace(parallel_config=SimpleNamespace(node_rank_within_dp=1)))
    assert note is not None
    note({"rank": 1})


def test_the_end_of_its_worker_is_the_end_of_the_process_that_started_it(run: dict[str, Any]) -> None:
    record_start(run)
    note = note_of(run, config(1))
    assert note is not None
    note({"rank": 1})
    worker = os.fork()
    if worker == 0:
        note_end(run)
        os._exit(0)
    assert os.waitpid(worker, 0)[1] == 0
    assert record(run)["outcome"]["ended"]["how"] == "clean"
