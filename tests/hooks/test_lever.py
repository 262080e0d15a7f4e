"""Which way settings must move after a failure."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_autofit.hooks.lever import Lever, is_there_again, lever, missing_share, turned
from vllm_autofit.values import AUTO_CONTEXT

BEFORE: dict[str, Any] = {
    "gpu_memory_utilization": 0.8,
    "max_model_len": 8192,
    "enforce_eager": False,
    "kv_cache_dtype": "auto",
    "max_num_seqs": 256,
}


def failure(phase: str, resource: str = "device", is_capacity: bool = True, **numbers: int) -> dict[str, Any]:
    return {"phase": phase, "resource": resource, "is_capacity": is_capacity, "numbers": numbers}


@pytest.mark.parametrize("phase", ["startup_check", "kv_alloc", "cudagraph_capture", "sampler_warmup"])
def test_what_ran_out_beside_wants_less(phase: str) -> None:
    assert lever(failure(phase), "cuda") == "less"
    assert lever(failure(phase, "host"), "cpu") == "less"


def test_a_kv_cache_without_room_wants_more() -> None:
    assert lever(failure("no_kv_memory"), "cuda") == "more"
    assert lever(failure("max_len_too_long"), "cpu") == "more"
    assert lever(failure("kv_alloc", "host", consumed_bytes=5), "cpu") == "more"
    assert lever(failure("profile_run", consumed_bytes=5), "cuda") == "more"


def test_what_the_five_fields_do_not_govern_has_no_lever() -> None:
    assert lever(failure("kv_alloc", "host"), "cuda") is None
    assert lever(failure("kv_alloc", "shm"), "cpu") is None
    assert lever(failure("weight_load"), "cuda") is None
    assert lever(failure("kv_alloc", is_capacity=False), "cuda") is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_kill_while_vllm_compiles_wants_nothing_but_that_it_does_not(device: str) -> None:
    killed = {**failure("profile_run", "host"), "type": "killed"}
    assert lever(killed, device) == "eager"
    assert lever({**killed, "phase": "weight_load"}, device) is None
    assert turned("eager", BEFORE, {**BEFORE, "enforce_eager": True})
    assert not turned("eager", BEFORE, {**BEFORE, "gpu_memory_utilization": 0.5, "max_num_seqs": 8})


@pytest.mark.parametrize(
    ("phase", "requested", "free", "there"),
    [
        ("startup_check", 30, 70, True),
        ("startup_check", 30, 69, False),
        ("kv_alloc", 30, 70, False),
        ("startup_check", None, 70, False),
    ],
)
def test_what_was_missing_at_the_check_may_be_free_by_now(
    phase: str, requested: int | None, free: int, there: bool
) -> None:
    failed = {**failure(phase), "numbers": {"requested_bytes": requested}}
    assert is_there_again(failed, {"free_bytes": free, "startup_overhead_bytes": 10, "ranks": 2}) is there
    assert not is_there_again(failed, None)


@pytest.mark.parametrize(
    ("changed", "less", "more"),
    [
        ({}, False, False),
        ({"gpu_memory_utilization": 0.7}, True, False),
        ({"gpu_memory_utilization": 0.8004}, False, False),
        ({"gpu_memory_utilization": 0.9}, False, True),
        ({"max_num_seqs": 128}, True, True),
        ({"max_num_seqs": 128, "gpu_memory_utilization": 0.9}, False, True),
        ({"max_num_seqs": 512}, False, False),
        ({"enforce_eager": True}, True, True),
        ({"max_model_len": AUTO_CONTEXT}, False, True),
        ({"max_model_len": 4096}, False, True),
        ({"max_model_len": 16384}, False, False),
        ({"kv_cache_dtype": "fp8"}, False, True),
    ],
)
def test_only_the_right_direction_counts(changed: dict[str, Any], less: bool, more: bool) -> None:
    after = {**BEFORE, **changed}
    assert turned("less", BEFORE, after) is less
    assert turned("more", BEFORE, after) is more


def test_a_number_where_vllm_chose_before_is_fewer() -> None:
    assert turned("more", {**BEFORE, "max_num_seqs": None}, BEFORE)
    assert not turned("more", BEFORE, {**BEFORE, "max_num_seqs": None})


@pytest.mark.parametrize(
    ("way", "phase", "numbers", "missing"),
    [
        ("less", "startup_check", {"requested_bytes": 60, "free_bytes": 40}, 0.2),
        ("less", "kv_alloc", {"requested_bytes": 90, "tried_bytes": 50, "free_bytes": 20}, 0.3),
        ("less", "kv_alloc", {"tried_bytes": 10, "free_bytes": 20}, 0.0),
        ("less", "sampler_warmup", {}, 0.0),
        ("more", "max_len_too_long", {"kv_needed_bytes": 30, "kv_available_bytes": 5}, 0.25),
        ("more", "no_kv_memory", {}, 0.0),
    ],
)
def test_what_is_missing_sets_the_least_step(way: Lever, phase: str, numbers: dict[str, Any], missing: float) -> None:
    assert missing_share(way, failure(phase, **numbers, total_bytes=100), False) == pytest.approx(missing)
    step = max(missing, 0.01) * (-1 if way == "less" else 1)
    assert turned(way, BEFORE, {**BEFORE, "gpu_memory_utilization": 0.8 + step}, missing)
    assert not missing or not turned(way, BEFORE, {**BEFORE, "gpu_memory_utilization": 0.8 + step / 2}, missing)


def test_no_share_enlarges_a_kv_cache_of_a_given_size() -> None:
    missing = missing_share("more", failure("max_len_too_long"), True)
    assert not turned("more", BEFORE, {**BEFORE, "gpu_memory_utilization": 1.0}, missing)
    assert turned("more", BEFORE, {**BEFORE, "max_model_len": 4096}, missing)
    assert missing_share("less", failure("kv_alloc"), True) == 0.0
