"""What is refused before anything is loaded: only what can't succeed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, cuda, host, llama, request
from vllm_autofit.planning.certain import certain_failures
from vllm_autofit.planning.defaults import Version
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.values import DeviceFacts, FieldValue, Lessons, Model, Rules

LLAMA_8B = llama()
"""15 GiB of weights in 16 bits."""


def certain(
    device: DeviceFacts,
    fields: dict[str, FieldValue] | None = None,
    model: Model | None = LLAMA_8B,
    version: Version = (0, 32),
    rules: Rules = Rules(),  # noqa: B008
    more_devices: tuple[DeviceFacts, ...] = (),
    **more: Any,
) -> tuple[str, ...]:
    asked, devices = request(fields, **more), [device, *more_devices]
    plan = make_plan(asked, devices, Lessons(), rules, model=model, version=version)
    return certain_failures(plan, asked, devices, rules, version)


def test_what_fits_is_not_refused() -> None:
    assert certain(cuda(80)) == ()
    assert certain(cuda(24)) == ()


def test_weights_that_are_larger_than_the_device_are() -> None:
    (reason,) = certain(cuda(8))
    assert "are missing on NVIDIA H100 80GB HBM3: it takes 1" in reason


def test_a_close_call_is_not() -> None:
    assert certain(cuda(17)) == ()
    assert certain(cuda(16)) == ()


def test_a_context_shorter_than_our_floor_is_vllms_to_fit() -> None:
    """131,072 tokens take 16 GiB: as our floor they only warn, as the user's own context they can't be served."""
    assert certain(cuda(22), rules=Rules(min_context_tokens=131072)) == ()
    (reason,) = certain(cuda(22), {"max_model_len": 131072})
    assert "are missing" in reason


def test_a_kv_cache_of_a_given_size_is_arithmetic() -> None:
    """131,072 tokens of 128 KiB take 16 GiB."""
    given: dict[str, Any] = {"knobs": {"kv_cache_memory_bytes": 8 * GIB}, "kv_cache_fixed_by": "kv_cache_memory_bytes"}
    (reason,) = certain(cuda(80), {"max_model_len": 131072}, **given)
    assert reason == (
        "kv_cache_memory_bytes gives the KV cache 8.00 GiB, and one request of the whole context needs 16.00"
    )
    assert certain(cuda(80), {"max_model_len": 65536}, **given) == ()
    nearly: dict[str, Any] = {
        "knobs": {"kv_cache_memory_bytes": 15.9 * GIB},
        "kv_cache_fixed_by": "kv_cache_memory_bytes",
    }
    assert certain(cuda(80), {"max_model_len": 131072}, **nearly) == ()


def test_without_its_model_nothing_is_said_about_room() -> None:
    assert certain(cuda(8), model=None) == ()


def test_a_share_of_the_users_that_is_not_free_is_refused_with_one_that_would_do() -> None:
    (reason,) = certain(cuda(80, free_gib=40), {"gpu_memory_utilization": 0.9}, model=None)
    assert reason == (
        "gpu_memory_utilization=0.9 asks for 72.00 GiB of NVIDIA H100 80GB HBM3, and only 40.00 of 80.00 GiB are free: "
        "0.4758 would work"
    )


@pytest.mark.parametrize("missing_gib", [0.0, 0.2])
def test_a_share_that_may_yet_be_free_is_not(missing_gib: float) -> None:
    assert certain(cuda(80, free_gib=72 - missing_gib), {"gpu_memory_utilization": 0.9}, model=None) == ()


def test_vllms_own_share_is_refused_where_no_other_can_be_asked_for() -> None:
    (reason,) = certain(cuda(80, free_gib=1), model=None)
    assert "gpu_memory_utilization=0.92 asks for 73.60 GiB" in reason


def test_the_cpu_worker_looks_since_0_18_and_not_where_the_kv_cache_is_given() -> None:
    share: dict[str, FieldValue] = {"gpu_memory_utilization": 0.9}
    busy = host(32, free_gib=10)
    assert certain(busy, share, model=None)
    assert not certain(busy, share, model=None, version=(0, 17))
    assert not certain(busy, share, model=None, kv_cache_fixed_by="VLLM_CPU_KVCACHE_SPACE")
    assert certain(busy, share, model=None, kv_cache_fixed_by="num_gpu_blocks_override")
    assert certain(busy, share, model=None, version=(0, 32))
    assert not certain(busy, share, model=None, version=(0, 33))


def test_vllms_share_is_not_judged_where_another_process_holds_the_weights() -> None:
    held = cuda(80, free_gib=40)
    assert certain(held, {"gpu_memory_utilization": 0.92})
    assert certain(held, utilization_left_to_vllm="another process holds the weights") == ()


def test_devices_that_vllm_may_not_use_refuse_only_together() -> None:
    share: dict[str, FieldValue] = {"gpu_memory_utilization": 0.9}
    assert certain(cuda(80, free_gib=10), share, None, more_devices=(cuda(80, index=1),)) == ()
    assert certain(cuda(80, free_gib=10), share, None, more_devices=(cuda(80, 20, index=1),))
    assert certain(cuda(80, free_gib=10), share, None, more_devices=(cuda(80, index=1),), local_ranks=2)


def test_vllms_own_refusals_count_for_the_version_they_were_read_in() -> None:
    seven = llama(heads=7, kv_heads=7)
    knobs: dict[str, Any] = {"knobs": {"tensor_parallel_size": 2}}
    assert any("7 attention heads" in reason for reason in certain(cuda(80), None, seven, **knobs))
    assert certain(cuda(80), None, seven, version=(0, 31), **knobs) == ()


def test_other_nodes_are_not_judged() -> None:
    assert certain(cuda(8), spans_nodes=True) == ()


@given(total=st.floats(4, 200), free=st.floats(0.01, 1), layers=st.integers(2, 80), context=st.integers(512, 65536))
def test_whatever_fits_by_the_estimate_is_never_refused(total: float, free: float, layers: int, context: int) -> None:
    device, asked, model = cuda(total, total * free), request({"max_model_len": context}), llama(layers=layers)
    plan = make_plan(asked, [device], Lessons(), Rules(), model=model)
    if plan.fits or plan.shortfall_bytes < GIB // 8:
        share = plan.decision("gpu_memory_utilization").suggested
        reasons = certain_failures(plan, asked, [device], Rules(), (0, 32))
        assert not reasons or share is None
