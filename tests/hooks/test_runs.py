"""One start's record, added to by the processes of that start."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.errors import StoreError
from vllm_autofit.experience.store import Store
from vllm_autofit.hooks.runs import (
    KEPT_LATER,
    attach,
    dp_rank_of,
    new_run,
    record_end,
    record_failure,
    record_peaks,
    record_phase,
    record_serving,
    record_start,
    record_stop,
    record_success,
    run_of,
)

KEY = "0123456789abcdef"
SECTIONS: dict[str, Any] = {"identity": {"devices": []}, "settings": {}, "plan": {}}


def engine(rank: int) -> dict[str, Any]:
    return {"dp_rank": rank, "ranks": []}


def failure(phase: str, message: str = "") -> dict[str, Any]:
    return {"phase": phase, "type": "ValueError", "message": message or phase, "numbers": {}}


def served(requests: int, **peaks: int) -> dict[str, Any]:
    device = {"device_index": 0, "least_free_bytes": 1, "peak_reserved_bytes": None, "peak_allocated_bytes": None}
    return {"requests": requests, "devices": [{**device, **peaks}]}


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    return new_run(KEY, tmp_path, SECTIONS)


def record(run: dict[str, Any]) -> dict[str, Any]:
    (only,) = Store(Path(run["cache_dir"])).records(KEY)
    return only


def test_a_start_travels_on_the_config_and_a_config_without_one_has_none(run: dict[str, Any]) -> None:
    config = SimpleNamespace()
    assert run_of(config) is None
    attach(config, run)
    assert run_of(config) == run


def test_nothing_is_written_before_an_engine_starts(run: dict[str, Any], tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    record_start(run)
    assert record(run)["outcome"]["state"] == "starting"


def test_every_engine_of_a_start_is_in_one_record_in_order(run: dict[str, Any]) -> None:
    for rank in (1, 0, 1):
        record_start(run)
        record_success(run, engine(rank))
    assert [each["dp_rank"] for each in record(run)["engines"]] == [0, 1]
    assert record(run)["outcome"]["state"] == "serving"


def test_the_first_cause_stays_and_a_failed_start_is_not_called_serving(run: dict[str, Any]) -> None:
    record_start(run)
    record_failure(run, failure("startup_check"))
    record_failure(run, failure("other"))
    record_success(run, engine(1))
    assert record(run)["outcome"]["state"] == "failed"
    assert record(run)["outcome"]["failure"]["phase"] == "startup_check"


def test_an_exception_while_serving_is_noted_and_does_not_undo_the_start(run: dict[str, Any]) -> None:
    record_success(run, engine(0))
    for number in range(KEPT_LATER + 2):
        record_failure(run, failure(f"runtime {number}"))
    outcome = record(run)["outcome"]
    assert outcome["state"] == "serving"
    assert [each["phase"] for each in outcome["later"]] == [f"runtime {n}" for n in range(2, KEPT_LATER + 2)]


def test_a_start_says_how_far_it_came_and_which_process_it_is(run: dict[str, Any]) -> None:
    record_start(run)
    outcome = record(run)["outcome"]
    assert outcome["phase"] == "weight_load"
    assert outcome["pid"] == os.getpid()
    assert outcome["pid_started"] > 0
    record_phase(run, "profile_run")
    assert record(run)["outcome"]["phase"] == "profile_run"
    record_success(run, engine(0))
    record_phase(run, "kv_alloc")
    outcome = record(run)["outcome"]
    assert outcome["state"] == "serving"
    assert "phase" not in outcome
    assert outcome["pid"] == os.getpid()


def test_every_engine_adds_what_it_served_to_its_own_entry(run: dict[str, Any]) -> None:
    for rank in (0, 1):
        record_success(run, engine(rank))
    record_serving(run, 1, served(7))
    record_serving(run, 0, served(3))
    assert [each["serving"]["requests"] for each in record(run)["engines"]] == [3, 7]


def test_a_workers_peaks_stay_when_the_engine_core_does_not_know_them(run: dict[str, Any]) -> None:
    record_success(run, engine(0))
    record_serving(run, 0, served(1))
    record_peaks(run, 0, 0, (30, 20))
    record_end(run, 0, served(2), None)
    (device,) = record(run)["engines"][0]["serving"]["devices"]
    assert (device["peak_reserved_bytes"], device["peak_allocated_bytes"]) == (30, 20)


@pytest.mark.parametrize(
    ("message", "how"),
    [
        ("Executor failed.", "engine_died"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "out_of_memory"),
        ("Worker failed with error 'HIP out of memory', please check the stack trace above", "out_of_memory"),
    ],
)
def test_an_engine_that_dies_leaves_its_reason(message: str, how: str, run: dict[str, Any]) -> None:
    record_success(run, engine(0))
    record_end(run, 0, served(1), failure("runtime", message))
    outcome = record(run)["outcome"]
    assert outcome["state"] == "ended"
    assert outcome["ended"]["how"] == how
    assert outcome["ended"]["failure"]["message"] == message


def test_the_cause_that_a_worker_noted_is_kept_not_the_engine_cores_report_of_it(run: dict[str, Any]) -> None:
    record_success(run, engine(0))
    record_failure(run, failure("other", "something before"))
    record_failure(run, {**failure("runtime", "no room left"), "type": "OutOfMemoryError"})
    record_end(run, 0, served(1), failure("other", "Worker failed with error 'no room left', please check"))
    ended = record(run)["outcome"]["ended"]
    assert ended["how"] == "out_of_memory"
    assert ended["failure"]["phase"] == "runtime"


@pytest.mark.parametrize("dies_first", [True, False])
def test_a_clean_end_of_one_engine_does_not_hide_that_another_died(dies_first: bool, run: dict[str, Any]) -> None:
    for rank in (0, 1):
        record_success(run, engine(rank))
    ends = [failure("runtime", "CUDA out of memory. Tried to allocate 2.00 GiB."), None]
    for rank, reason in enumerate(ends if dies_first else reversed(ends)):
        record_end(run, rank, served(1), reason)
    assert record(run)["outcome"]["ended"]["how"] == "out_of_memory"


def test_a_failure_of_a_worker_that_is_stopped_does_not_undo_the_end(run: dict[str, Any]) -> None:
    record_success(run, engine(0))
    record_end(run, 0, served(1), None)
    record_failure(run, failure("other"))
    assert record(run)["outcome"]["state"] == "ended"
    assert record(run)["outcome"]["ended"]["how"] == "clean"


def test_a_front_end_notes_only_the_end_of_its_own_engine_that_serves(run: dict[str, Any]) -> None:
    record_start(run)
    record_stop(run, [os.getpid()])
    assert record(run)["outcome"]["state"] == "starting"
    record_success(run, engine(0))
    record_stop(run, [os.getpid() + 1])
    assert record(run)["outcome"]["state"] == "serving"
    record_stop(run, [os.getpid()])
    assert record(run)["outcome"]["ended"]["how"] == "clean"


def test_engines_of_a_dense_model_are_told_apart_where_vllm_gives_them_all_rank_0() -> None:
    assert (
        dp_rank_of(SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_rank=0, data_parallel_index=3))) == 3
    )
    assert dp_rank_of(SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_rank=2))) == 2


@pytest.mark.parametrize("known", [True, False])
def test_trouble_with_the_folder_is_kept_quiet_only_where_the_user_knows_of_it(tmp_path: Path, known: bool) -> None:
    (tmp_path / "file").write_text("no folder")
    run = new_run(KEY, tmp_path / "file" / "below", SECTIONS, trouble_is_known=known)
    if known:
        record_start(run)
    else:
        with pytest.raises(StoreError):
            record_start(run)
