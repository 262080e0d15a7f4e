"""What records teach the next plan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.builders import GIB, measured, record
from vllm_autofit.experience.lessons import CONSIDERED, lessons_from
from vllm_autofit.experience.record import Record
from vllm_autofit.values import Lessons


def two_devices(*free_at_check: int | None) -> Record:
    """A start on two devices of which 40 GiB each were free when it was planned."""
    return record(
        identity={"devices": [{"index": index, "free_bytes": 40 * GIB} for index in (0, 1)]},
        engines=[
            {
                "ranks": [
                    {"device_index": index, "before": {"free_bytes": free}} for index, free in enumerate(free_at_check)
                ]
            }
        ],
    )


def failed(run_id: str, phase: str, overhead_bytes: int, **numbers: Any) -> Record:
    """A start that failed with ``overhead_bytes`` less free on its device than when it was planned."""
    return record(
        run_id,
        identity={"devices": [{"index": 0, "free_bytes": 40 * GIB}]},
        outcome={
            "state": "failed",
            "failure": {
                "phase": phase,
                "numbers": {"device_index": 0, "free_bytes": 40 * GIB - overhead_bytes, **numbers},
            },
        },
    )


def test_without_records_there_are_no_lessons() -> None:
    assert lessons_from([]) == Lessons()


def test_what_a_start_took_before_vllms_check_is_its_overhead() -> None:
    assert lessons_from([measured("run", GIB, tokens=5000)]) == Lessons("run", GIB, 5000)


def test_the_device_that_lost_most_counts() -> None:
    assert lessons_from([two_devices(39 * GIB, 37 * GIB)]).startup_overhead_bytes == 3 * GIB


def test_memory_that_was_freed_meanwhile_is_no_negative_overhead() -> None:
    assert lessons_from([two_devices(41 * GIB, 42 * GIB)]).startup_overhead_bytes == 0


def test_the_largest_of_the_newest_starts_counts() -> None:
    newest_first = [measured("c", 1 * GIB), measured("b", 3 * GIB, tokens=7), measured("a", 2 * GIB)]
    assert lessons_from(newest_first) == Lessons("b", 3 * GIB, 7)


def test_what_a_neighbour_took_long_ago_is_forgotten() -> None:
    newest_first = [measured(f"new {number}", GIB) for number in range(CONSIDERED)] + [measured("old", 20 * GIB)]
    assert lessons_from(newest_first).startup_overhead_bytes == GIB


def test_no_more_records_are_read_than_count() -> None:
    def newest_first() -> Iterator[Record]:
        for number in range(CONSIDERED):
            yield measured(str(number), GIB)
        pytest.fail("one record too many was read")

    assert lessons_from(newest_first()).startup_overhead_bytes == GIB


def test_a_start_that_failed_vllms_check_teaches_its_overhead() -> None:
    assert lessons_from([failed("run", "startup_check", 2 * GIB)]) == Lessons("run", 2 * GIB, None)


@pytest.mark.parametrize("phase", ["weight_load", "profile_run", "no_kv_memory", "cudagraph_capture", "runtime"])
def test_a_start_that_failed_later_teaches_no_overhead(phase: str) -> None:
    assert lessons_from([failed("run", phase, 30 * GIB)]) == Lessons()


def test_a_failure_without_figures_teaches_nothing() -> None:
    assert lessons_from([failed("run", "startup_check", 0, free_bytes=None)]) == Lessons()
    bare = record("run", outcome={"state": "failed", "failure": {"phase": "startup_check"}})
    assert lessons_from([bare]) == Lessons()


def test_starts_that_measured_nothing_take_no_place_among_the_newest() -> None:
    silent = [record(f"silent {number}", state="starting") for number in range(CONSIDERED)]
    assert lessons_from([*silent, measured("run", GIB)]) == Lessons("run", GIB, None)


def test_ranks_that_could_not_be_measured_are_passed_over() -> None:
    start = two_devices(38 * GIB, None)
    start["engines"][0]["ranks"].append({"error": "RuntimeError: no figures"})
    start["engines"][0]["ranks"].append({"device_index": 1, "before": None})
    assert lessons_from([start]).startup_overhead_bytes == 2 * GIB


def test_a_device_that_was_not_planned_for_is_passed_over() -> None:
    start = two_devices(38 * GIB, 1 * GIB)
    start["identity"]["devices"].pop()
    assert lessons_from([start]).startup_overhead_bytes == 2 * GIB


def test_the_engines_of_one_start_add_up_their_tokens() -> None:
    start = measured("run", GIB, tokens=1000)
    start["engines"].append({"dp_rank": 1, "kv_cache": {"tokens": 200}, "ranks": []})
    start["engines"].append({"dp_rank": 2, "kv_cache": {}, "ranks": []})
    assert lessons_from([start]).kv_cache_tokens == 1200
