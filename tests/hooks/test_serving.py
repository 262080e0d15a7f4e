"""When a record is written while an engine serves, and that nothing of it can disturb the engine."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_autofit.experience.store import Store
from vllm_autofit.hooks import guard, serving
from vllm_autofit.hooks.runs import new_run, record_start, record_success
from vllm_autofit.hooks.serving import LONGEST_PAUSE_SECONDS, NOTABLE_BYTES, QUIET_SECONDS, SAMPLE_SECONDS, Pace

KEY = "0123456789abcdef"
GIB = 2**30


def figures(requests: int = 0, least_free: int | None = 8 * GIB) -> dict[str, Any]:
    return {"requests": requests, "devices": [{"device_index": 0, "least_free_bytes": least_free}]}


def moments_of_writes(seconds: int, seen: Any) -> list[float]:
    """When an engine is written that shows ``seen(moment)`` for ``seconds``."""
    pace, step = Pace(0.0), SAMPLE_SECONDS
    moments = [step * number for number in range(1, int(seconds / step) + 1)]
    return [moment for moment in moments if pace.due(moment, seen(moment))]


def test_an_engine_that_serves_evenly_is_written_ever_less_often() -> None:
    moments = moments_of_writes(2000, lambda moment: figures(requests=1000 + int(moment)))  # of one magnitude
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert moments[0] == SAMPLE_SECONDS
    assert pauses[:4] == [10, 20, 40, 80]
    assert pauses[-2:] == [LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]


def test_an_engine_that_nobody_uses_is_written_once() -> None:
    assert moments_of_writes(4000, lambda _moment: figures()) == [SAMPLE_SECONDS]


def test_the_first_request_is_written_at_once() -> None:
    assert 90.0 in moments_of_writes(100, lambda moment: figures(requests=int(moment >= 90)))


@pytest.mark.parametrize(("fall", "written"), [(NOTABLE_BYTES + 1, True), (NOTABLE_BYTES, False)])
def test_a_notable_low_is_written_at_once_and_a_small_one_in_time(fall: int, written: bool) -> None:
    pace = Pace(0.0)
    assert pace.due(5.0, figures(1))
    assert pace.due(10.0, figures(1, 8 * GIB - fall)) is written


def test_what_was_served_is_written_when_the_engine_falls_quiet() -> None:
    moments = moments_of_writes(600, lambda moment: figures(requests=min(int(moment), 160)))
    assert moments[-1] <= 160 + QUIET_SECONDS + SAMPLE_SECONDS
    assert moments_of_writes(600, lambda moment: figures(requests=int(moment // 10)))[-1] > 500, "quiet now and then"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**40)), min_size=1, max_size=200))
def test_writes_are_never_closer_than_samples_and_never_say_the_same_twice(steps: list[tuple[int, int]]) -> None:
    pace, written = Pace(0.0), []
    for number, (requests, least_free) in enumerate(steps, 1):
        seen = figures(requests, least_free)
        if pace.due(number * SAMPLE_SECONDS, seen):
            written.append(copy.deepcopy(seen))
    assert all(earlier != later for earlier, later in itertools.pairwise(written))
    if len(steps) > 1:
        assert written, "the first figures are always written"


class Engine:
    """As much of vLLM's engine core as is looked at before its scheduler exists."""


@pytest.fixture(autouse=True)
def _own_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning given here must not silence one in a later test."""
    monkeypatch.setattr(guard, "_warned", False)


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    run = new_run(KEY, tmp_path, {"identity": {"devices": []}, "settings": {}, "plan": {}})
    record_start(run)
    record_success(run, {"dp_rank": 0, "ranks": []})
    return run


def record(run: dict[str, Any]) -> dict[str, Any]:
    (only,) = Store(Path(run["cache_dir"])).records(KEY)
    return only


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vllm-autofit"]


def wait_until_no_thread_is_left() -> None:
    deadline = time.monotonic() + 10
    while our_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not our_threads()


def test_an_engine_that_is_collected_ended_cleanly_and_its_thread_goes(run: dict[str, Any]) -> None:
    engine = Engine()
    serving.watch(run, engine, 0, [])
    assert len(our_threads()) == 1
    del engine
    gc.collect()
    assert record(run)["outcome"]["ended"]["how"] == "clean"
    assert record(run)["engines"][0]["serving"]["requests"] == 0
    wait_until_no_thread_is_left()


def test_only_the_first_end_counts_and_nothing_is_written_after_it(run: dict[str, Any]) -> None:
    engine = Engine()
    serving.watch(run, engine, 0, [])
    serving.end(engine, MemoryError("no more"))
    before = record(run)
    assert before["outcome"]["ended"]["how"] == "out_of_memory"
    serving.end(engine)
    del engine
    gc.collect()
    assert record(run) == before
    wait_until_no_thread_is_left()


def test_a_sampler_that_breaks_leaves_the_engine_alone_and_tries_again(
    run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SAMPLE_SECONDS", 0.01)
    place = {"device_index": 0, "uuid": "of no device", "ordinal": None, "in_engine_core": False}
    engine = Engine()
    serving.watch(run, engine, 0, [place])
    deadline = time.monotonic() + 10
    while not record(run)["engines"][0].get("serving") and time.monotonic() < deadline:
        time.sleep(0.01)
    (device,) = record(run)["engines"][0]["serving"]["devices"]
    assert device["least_free_bytes"] is None
    assert len(our_threads()) == 1
    serving.end(engine)
    wait_until_no_thread_is_left()


def test_a_record_that_was_deleted_while_it_served_stays_deleted(run: dict[str, Any]) -> None:
    engine = Engine()
    serving.watch(run, engine, 0, [])
    Store(Path(run["cache_dir"])).forget([run["run_id"]])
    serving.end(engine)
    assert list(Store(Path(run["cache_dir"])).records(KEY)) == []
    wait_until_no_thread_is_left()
