"""Several engines on one device: the share that one may take, and what others have a claim on."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, cuda, host, llama, request
from vllm_autofit.planning.certain import certain_failures
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.planning.sharing import may_grow, share_bytes, will_take
from vllm_autofit.values import DeviceFacts, Lessons, Measured, Plan, Rules, Share

HALF = Share(0.5, is_fraction=True)


def made(device: DeviceFacts, share: Share | None = None, past: Lessons | None = None, **asked: Any) -> Plan:
    return make_plan(request(**asked), [device], past or Lessons(), Rules(share=share))


def utilization(plan: Plan) -> float:
    value = plan.decision("gpu_memory_utilization").suggested
    return float(value) if isinstance(value, int | float) else 0.0


def test_a_fraction_is_one_of_the_whole_device_and_a_size_is_a_size() -> None:
    assert share_bytes(HALF, 80 * GIB) == 40 * GIB
    assert share_bytes(Share(20 * GIB, is_fraction=False), 80 * GIB) == 20 * GIB
    assert share_bytes(Share(200 * GIB, is_fraction=False), 80 * GIB) == 80 * GIB
    assert share_bytes(None, 80 * GIB) is None


def test_an_engine_stays_within_its_share_start_up_and_headroom_included() -> None:
    plan = made(cuda(80), HALF)
    assert plan.budget is not None
    taken = math.ceil(80 * GIB * utilization(plan)) + plan.budget.startup_overhead_bytes + plan.budget.headroom_bytes
    assert 40 * GIB - 80 * GIB // 10_000 <= taken <= 40 * GIB
    assert ", 40.00 at most by VLLM_AUTOFIT_SHARE, less" in plan.decision("gpu_memory_utilization").why


def test_a_share_larger_than_what_is_free_changes_nothing() -> None:
    device = cuda(80, free_gib=30)
    assert utilization(made(device, HALF)) == utilization(made(device))


def test_a_utilisation_of_the_users_counts_more_than_a_share() -> None:
    device = cuda(80)
    own = {"gpu_memory_utilization": 0.8}
    plan = made(device, HALF, set_by_user=own)
    assert plan.decision("gpu_memory_utilization").value == 0.8
    assert plan.warnings == made(device, set_by_user=own).warnings


def test_a_pinned_utilisation_counts_more_than_a_share() -> None:
    plan = made(cuda(80), HALF, Lessons(pinned={"gpu_memory_utilization": 0.8}))
    assert plan.filled["gpu_memory_utilization"] == 0.8


def test_what_proved_right_is_not_asked_for_beyond_the_share() -> None:
    proven = Lessons(proven_asked=Measured(70 * GIB, "a"))
    assert utilization(made(cuda(80), HALF, proven)) * 80 <= 40


def test_a_share_in_which_nothing_fits_is_said_with_what_to_raise() -> None:
    plan = made(cuda(80), Share(GIB, is_fraction=False))
    (warning,) = plan.warnings
    assert "VLLM_AUTOFIT_SHARE" in warning.partition("At least")[0]
    assert warning.endswith("raise VLLM_AUTOFIT_SHARE")


def test_what_others_claim_is_left_to_them_and_said() -> None:
    device = cuda(80, claimed_bytes=50 * GIB)
    plan = made(device)
    assert utilization(plan) == utilization(made(cuda(80, free_gib=30)))
    assert "50.00 of them claimed by engines beside this one" in plan.decision("gpu_memory_utilization").why


def test_a_model_that_has_no_room_in_its_share_is_told_to_take_more() -> None:
    small = Share(8 * GIB, is_fraction=False)
    plan = make_plan(request(), [cuda(80)], Lessons(), Rules(share=small), model=llama())
    assert plan.shortfall_bytes > 0
    assert plan.remedies[0].change == "let it take more than VLLM_AUTOFIT_SHARE does"
    assert plan.remedies[0].effect_bytes == 72 * GIB


def test_a_start_is_not_refused_for_what_others_only_claim() -> None:
    device = cuda(80, claimed_bytes=70 * GIB)
    asked = request({"gpu_memory_utilization": 0.9})
    plan = make_plan(asked, [device], Lessons(), Rules(), model=llama())
    assert certain_failures(plan, asked, [device], Rules(), (0, 32)) == ()


def test_what_an_engine_will_take_is_what_is_asked_and_its_start_up() -> None:
    device = host(32, ranks=2)
    plan = made(device)
    assert plan.budget is not None
    asked = 2 * math.ceil(32 * GIB * utilization(plan))
    assert will_take(plan, request(), device) == asked + plan.budget.startup_overhead_bytes


def test_an_engine_with_a_fixed_kv_cache_takes_the_sum_of_its_parts() -> None:
    device = cuda(80)
    asked = request(kv_cache_fixed_by="kv_cache_memory_bytes", knobs={"kv_cache_memory_bytes": 4 * GIB})
    plan = make_plan(asked, [device], Lessons(), Rules(), model=llama())
    assert plan.budget is not None
    budget = plan.budget
    assert budget.kv_cache_bytes == 4 * GIB
    assert will_take(plan, asked, device) < 40 * GIB
    assert will_take(plan, asked, device) > 4 * GIB + budget.weights_bytes


def test_headroom_of_the_users_is_not_growth_of_the_engine() -> None:
    device = cuda(80)
    assert may_grow(make_plan(request(), [device], Lessons(), Rules(headroom_bytes=60 * GIB))) == 0
    plan = made(device)
    assert plan.budget is not None
    assert may_grow(plan) == plan.budget.headroom_bytes > 0


def test_without_a_device_nothing_is_taken() -> None:
    plan = make_plan(request(), [], Lessons(), Rules())
    assert (will_take(plan, request(), cuda()), may_grow(plan)) == (0, 0)


shares = st.one_of(
    st.none(),
    st.floats(0.01, 1).map(lambda part: Share(part, is_fraction=True)),
    st.integers(1, 200 * GIB).map(lambda size: Share(float(size), is_fraction=False)),
)


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), shares, st.integers(1, 4))
def test_an_engine_never_plans_beyond_its_share_nor_into_what_others_claim(
    total: int, free: float, claimed: float, share: Share | None, ranks: int
) -> None:
    device = host(total, total * free, ranks=ranks)
    device = dataclasses.replace(device, claimed_bytes=int(device.free_bytes * claimed))
    plan = made(device, share, local_ranks=ranks)
    if "gpu_memory_utilization" in plan.filled:
        room = share_bytes(share, device.total_bytes) or device.total_bytes
        grown = will_take(plan, request(), device) + may_grow(plan)
        assert grown <= min(room, device.free_bytes - device.claimed_bytes)


@pytest.mark.parametrize("engines", [2, 3, 4])
def test_equal_shares_one_after_the_other_leave_the_last_as_much_as_the_first(engines: int) -> None:
    share, free = Share(1 / engines, is_fraction=True), 80 * GIB
    asked = []
    for _ in range(engines):
        device = cuda(80, free / GIB)
        plan = made(device, share)
        asked.append(utilization(plan))
        free -= will_take(plan, request(), device) + may_grow(plan)
    assert free >= 0
    assert asked == [pytest.approx(asked[0], abs=2e-4)] * engines


def test_who_finds_no_room_beside_another_engine_is_refused_and_told_how_to_share() -> None:
    device = cuda(80, free_gib=1.5, claimed_bytes=GIB)
    asked = request()
    plan = make_plan(asked, [device], Lessons(), Rules(), model=llama())
    first, *_ = certain_failures(plan, asked, [device], Rules(), (0, 32))
    assert first == (
        "gpu_memory_utilization=0.92 asks for 73.60 GiB of NVIDIA H100 80GB HBM3, and only 1.50 of 80.00 GiB are free"
    )
    assert plan.remedies[0].change == (
        "close what holds 78.50 GiB of NVIDIA H100 80GB HBM3, or give each engine on it a part with VLLM_AUTOFIT_SHARE"
    )
