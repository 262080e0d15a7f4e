"""Grades: one word for what a start's settings are worth."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import record
from vllm_autofit.experience.grade import GRADES, Grade, grade
from vllm_autofit.experience.observed import LOAD_REQUESTS, LOAD_SECONDS
from vllm_autofit.experience.record import Record


def failed(phase: str, type: str = "RuntimeError", message: str = "", **more: Any) -> Record:
    failure = {"phase": phase, "type": type, "message": message, **more}
    return record(state="failed", outcome={"state": "failed", "failure": failure})


def served(*engines: dict[str, Any] | None) -> Record:
    return record(engines=[{"serving": serving} for serving in engines])


@pytest.mark.parametrize(
    ("phase", "type", "message"),
    [
        ("startup_check", "ValueError", "Free memory on device cuda:0 (3/80 GiB) on startup is less than desired GPU"),
        ("startup_check", "ValueError", "Available memory on node 0 (1/2 GiB) on startup is less than desired CPU"),
        ("no_kv_memory", "ValueError", "No available memory for the cache blocks."),
        ("no_kv_memory", "ValueError", "on kv cache allocation is less than requested memory for kv (-3/7 GiB)"),
        ("max_len_too_long", "ValueError", "To serve at least one request with the models's max seq len"),
        ("kv_alloc", "OutOfMemoryError", "Tried to allocate 2.00 GiB."),
        ("kv_alloc", "RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        ("profile_run", "OutOfMemoryError", "CUDA out of memory."),
        ("cudagraph_capture", "RuntimeError", "CUDA error: out of memory"),
        (
            "sampler_warmup",
            "RuntimeError",
            "CUDA out of memory occurred when warming up sampler with 256 dummy requests",
        ),
        ("weight_load", "MemoryError", ""),
        ("weight_load", "OSError", "[Errno 12] Cannot allocate memory"),
        ("profile_run", "RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_start_that_failed_for_memory_will_not_fit(phase: str, type: str, message: str) -> None:
    assert grade(failed(phase, type, message), "failed") == "won't fit"


@pytest.mark.parametrize(
    ("phase", "type", "message"),
    [
        ("startup_check", "RuntimeError", "No CUDA GPUs are available"),
        ("weight_load", "BrokenPipeError", "[Errno 32] Broken pipe"),
        ("profile_run", "TypeError", "forward() got an unexpected keyword argument"),
        ("kv_alloc", "RuntimeError", "cancelled"),
        ("cudagraph_capture", "RuntimeError", "CUDA error: an illegal memory access was encountered"),
        ("other", "KeyError", "'memory'"),
    ],
)
def test_a_start_that_failed_for_something_else_failed(phase: str, type: str, message: str) -> None:
    assert grade(failed(phase, type, message), "failed") == "failed"


def test_what_a_record_says_about_its_cause_goes_before_its_words() -> None:
    assert grade(failed("other", message="out of memory", is_capacity=False), "failed") == "failed"
    assert grade(failed("other", message="no words for it", is_capacity=True), "failed") == "won't fit"


def test_a_failure_without_a_cause_is_no_evidence_about_memory() -> None:
    assert grade(record(state="failed"), "failed") == "failed"


@pytest.mark.parametrize("ended", ["serving", "clean"])
@pytest.mark.parametrize(
    ("serving", "expected"),
    [
        (None, "came up"),
        ({"requests": 0, "seconds": 10 * LOAD_SECONDS, "peak_kv_usage": 0.0}, "came up"),
        ({"requests": 1, "seconds": 2, "peak_kv_usage": 0.01}, "works"),
        ({"requests": 1, "seconds": None, "peak_kv_usage": None}, "works"),
        ({"requests": LOAD_REQUESTS, "seconds": 2}, "proven"),
        ({"requests": 1, "seconds": LOAD_SECONDS}, "proven"),
    ],
)
def test_a_start_that_came_up_is_graded_by_what_it_served(
    serving: dict[str, Any] | None, expected: Grade, ended: str
) -> None:
    assert grade(served(serving), ended) == expected


def test_the_load_of_one_engine_is_enough_and_waiting_is_no_load() -> None:
    idle, busy = {"requests": 0, "seconds": LOAD_SECONDS}, {"requests": 3, "seconds": 1, "peak_kv_usage": 0.0}
    assert grade(served(idle, busy), "clean") == "works"
    assert grade(served(busy, {**busy, "requests": LOAD_REQUESTS - 3}), "clean") == "proven"


@pytest.mark.parametrize(
    ("ended", "expected"),
    [("starting", "starting"), ("killed", "killed"), ("out_of_memory", "ran out"), ("engine_died", "died")],
)
def test_how_it_ended_goes_before_what_it_served(ended: str, expected: Grade) -> None:
    assert grade(served({"requests": 1000, "seconds": 10 * LOAD_SECONDS}), ended) == expected


def test_grades_are_listed_from_best_to_worst() -> None:
    assert GRADES[0] == "proven"
    assert len(set(GRADES)) == 9
