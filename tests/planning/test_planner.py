"""The plan: first by example, then what holds for every request, machine and history."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, MIB, VLLM_DEFAULTS, cuda, host, llama, request
from vllm_autofit import FIELDS
from vllm_autofit.planning.planner import SMALLEST_ASK_BYTES, make_plan
from vllm_autofit.settings import POLICIES
from vllm_autofit.values import (
    AUTO_CONTEXT,
    DeviceFacts,
    Elsewhere,
    FieldValue,
    Lessons,
    Measured,
    Plan,
    Request,
    Rules,
)

LARGEST_GIB = 2048
"""Beyond 2.5 TiB the smallest ask is below one step of utilisation; see the last test but one."""


# By example


def test_an_idle_device_is_asked_for_all_but_context_and_headroom() -> None:
    plan = make_plan(request(), [cuda(80)], Lessons(), Rules())
    decision = plan.decision("gpu_memory_utilization")
    assert decision.value == 0.9758  # 80 less 0.63 for the context and 1.30 headroom
    assert decision.source == "estimate"
    assert decision.why == (
        "80.00 of 80.00 GiB free on NVIDIA H100 80GB HBM3, less 0.63 for start-up (estimate) and 1.30 headroom"
    )


def test_what_others_hold_is_left_to_them() -> None:
    plan = make_plan(request(), [cuda(80, free_gib=40)], Lessons(), Rules())
    assert plan.filled["gpu_memory_utilization"] == 0.4758


def test_the_context_is_left_to_vllm_to_fit() -> None:
    plan = make_plan(request(), [cuda()], Lessons(), Rules(min_context_tokens=8192))
    decision = plan.decision("max_model_len")
    assert (decision.value, decision.source) == (AUTO_CONTEXT, "estimate")
    assert "8192 tokens" in decision.why


def test_after_a_kill_while_it_compiled_a_start_does_without() -> None:
    lessons = Lessons(killed_compiling="20261121T120000Z-1-aaaa")
    for model in (None, llama()):
        plan = make_plan(request(), [cuda()], lessons, Rules(), model=model)
        assert plan.filled["enforce_eager"] is True
        assert plan.decision("enforce_eager").source == "record"
        assert any("start 20261121T120000Z-1-aaaa was killed" in warning for warning in plan.warnings)
    own = make_plan(request({"enforce_eager": False}), [cuda()], lessons, Rules())
    assert own.decision("enforce_eager").value is False
    assert "enforce_eager" not in own.filled


def test_memory_that_moved_just_before_is_left_room_to_move_again_unless_the_user_chose_the_headroom() -> None:
    def spare(lessons: Lessons, rules: Rules) -> int:
        budget = make_plan(request(), [cuda()], lessons, rules).budget
        assert budget is not None
        return budget.headroom_bytes

    restless = Lessons(restless_bytes=300 * MIB)
    assert spare(restless, Rules()) == spare(Lessons(), Rules()) + 300 * MIB
    assert spare(restless, Rules(headroom_bytes=GIB)) == GIB


def test_a_context_that_was_too_long_for_a_vllm_that_fits_none_is_as_long_as_it_said() -> None:
    lessons = Lessons(estimated_context=(65536, "20261121T120000Z-1-aaaa"))
    plan = make_plan(request(), [cuda()], lessons, Rules(), context_automatic=False)
    assert plan.decision("max_model_len").source == "record"
    assert plan.filled["max_model_len"] == 65536
    for other in (
        make_plan(request({"max_model_len": 131072}), [cuda()], lessons, Rules(), context_automatic=False),
        make_plan(request(), [cuda()], lessons, Rules(min_context_tokens=65537), context_automatic=False),
    ):
        assert "max_model_len" not in other.filled
    assert make_plan(request(), [cuda()], lessons, Rules()).filled["max_model_len"] == AUTO_CONTEXT


def test_the_other_three_fields_stay_with_vllm() -> None:
    plan = make_plan(request(), [cuda()], Lessons(), Rules())
    assert plan.filled.keys() == {"gpu_memory_utilization", "max_model_len"}
    for name in ("enforce_eager", "kv_cache_dtype", "max_num_seqs"):
        decision = plan.decision(name)
        assert (decision.value, decision.source) == (VLLM_DEFAULTS[name], "vllm")


def test_a_value_of_the_users_stands_and_the_plan_says_what_it_would_have_chosen() -> None:
    plan = make_plan(request({"gpu_memory_utilization": 0.92}), [cuda(80)], Lessons(), Rules())
    decision = plan.decision("gpu_memory_utilization")
    assert (decision.value, decision.source, decision.suggested) == (0.92, "user", 0.9758)
    assert "gpu_memory_utilization" not in plan.filled


def test_what_the_user_pinned_is_filled_in_and_named_as_that() -> None:
    lessons = Lessons(pinned={"max_num_seqs": 64, "gpu_memory_utilization": 0.5, "max_model_len": None})
    plan = make_plan(request(), [cuda(80)], lessons, Rules())
    assert plan.filled == {"max_num_seqs": 64, "gpu_memory_utilization": 0.5, "max_model_len": None}
    assert all(plan.decision(name).why.startswith("pinned by you") for name in lessons.pinned)


@pytest.mark.parametrize("value", [32, 64])
def test_what_this_launch_sets_is_the_users_whatever_is_pinned(value: int) -> None:
    plan = make_plan(request({"max_num_seqs": value}), [cuda(80)], Lessons(pinned={"max_num_seqs": 64}), Rules())
    decision = plan.decision("max_num_seqs")
    assert (decision.value, decision.source, decision.why) == (value, "user", "set by you")
    assert "max_num_seqs" not in plan.filled


def test_a_measured_overhead_replaces_the_estimate() -> None:
    plan = make_plan(request(), [cuda(80)], Lessons(Measured(GIB, "20261121T120000Z-1-aaaa")), Rules())
    assert plan.budget is not None
    assert (plan.budget.startup_overhead_bytes, plan.budget.startup_overhead_source) == (GIB, "record")
    assert plan.decision("gpu_memory_utilization").source == "record"
    assert plan.record_id == "20261121T120000Z-1-aaaa"


def test_lessons_about_the_model_are_not_named_where_it_is_not_weighed() -> None:
    plan = make_plan(
        request(), [cuda(80)], Lessons(terms={"weights": Measured(GIB, "20261121T120000Z-1-aaaa")}), Rules()
    )
    assert plan.record_id is None
    assert plan.decision("gpu_memory_utilization").source == "estimate"


@pytest.mark.parametrize(("measured", "believed"), [(0, 650 * MIB // 2), (60 * GIB, 3 * 650 * MIB)])
def test_a_measurement_that_a_neighbour_spoilt_is_believed_within_reason(measured: int, believed: int) -> None:
    plan = make_plan(request(), [cuda(80)], Lessons(Measured(measured, "20261121T120000Z-1-aaaa")), Rules())
    assert plan.budget is not None
    assert (plan.budget.startup_overhead_bytes, plan.budget.startup_overhead_source) == (believed, "record")


def test_where_vllm_must_choose_the_utilisation_nothing_is_filled_in_for_it() -> None:
    asked = dataclasses.replace(request(), utilization_left_to_vllm="because")
    decision = make_plan(asked, [cuda(80)], Lessons(), Rules()).decision("gpu_memory_utilization")
    assert (decision.source, decision.why) == ("vllm", "because")


def test_a_headroom_of_the_users_stays_and_that_it_was_too_little_is_said() -> None:
    ran_out = Lessons(least_headroom=Measured(4 * GIB, "20261121T120000Z-1-aaaa"))
    plan = make_plan(request(), [cuda(80)], ran_out, Rules(headroom_bytes=2 * GIB))
    assert plan.budget is not None
    assert (plan.budget.headroom_bytes, plan.budget.headroom_source) == (2 * GIB, "user")
    assert plan.warnings == (
        "start 20261121T120000Z-1-aaaa ran out of memory with less than 4.00 GiB kept free; "
        "VLLM_AUTOFIT_HEADROOM keeps 2.00 GiB, and yours counts",
    )
    enough = make_plan(request(), [cuda(80)], ran_out, Rules(headroom_bytes=4 * GIB))
    assert enough.warnings == ()


def test_a_headroom_of_the_users_replaces_ours() -> None:
    plan = make_plan(request(), [cuda(80)], Lessons(), Rules(policy="safe", headroom_bytes=0))
    assert plan.budget is not None
    assert (plan.budget.headroom_bytes, plan.budget.headroom_source) == (0, "user")


def test_the_policy_safe_asks_for_less() -> None:
    balanced = make_plan(request(), [cuda()], Lessons(), Rules("balanced")).filled["gpu_memory_utilization"]
    safe = make_plan(request(), [cuda()], Lessons(), Rules("safe")).filled["gpu_memory_utilization"]
    assert isinstance(safe, float)
    assert isinstance(balanced, float)
    assert safe < balanced


def test_several_cuda_ranks_leave_room_to_talk() -> None:
    alone = make_plan(request(), [cuda()], Lessons(), Rules()).budget
    both = make_plan(request(local_ranks=2), [cuda(), cuda(index=1)], Lessons(), Rules()).budget
    assert alone is not None
    assert both is not None
    assert both.asked_bytes == alone.asked_bytes - 512 * MIB


def test_cpu_ranks_share_the_host() -> None:
    plan = make_plan(request(local_ranks=2), [host(32, ranks=2)], Lessons(), Rules())
    assert plan.filled["gpu_memory_utilization"] == 0.4637  # (32 - 2 x 1 - 0.32) / 2 / 32
    assert plan.decision("gpu_memory_utilization").why.endswith(", over 2 ranks")


def test_an_engine_in_the_callers_process_may_ask_for_more() -> None:
    apart = make_plan(request(), [host()], Lessons(), Rules()).budget
    inside = make_plan(request(), [host()], Lessons(), Rules(), separate_processes=False).budget
    assert apart is not None
    assert inside is not None
    assert inside.asked_bytes - apart.asked_bytes == 768 * MIB


def test_of_several_devices_the_one_with_the_smallest_share_decides() -> None:
    small_but_idle, large_but_busy = cuda(24, name="small"), cuda(80, free_gib=30, name="large")
    plan = make_plan(request(local_ranks=2), [small_but_idle, large_but_busy], Lessons(), Rules())
    assert plan.budget is not None
    assert plan.budget.device == "large"


def test_a_full_device_is_left_to_vllm_and_the_missing_gib_are_named() -> None:
    plan = make_plan(request(), [cuda(80, free_gib=2)], Lessons(), Rules())
    assert "gpu_memory_utilization" not in plan.filled
    assert plan.decision("gpu_memory_utilization").value == VLLM_DEFAULTS["gpu_memory_utilization"]
    (warning,) = plan.warnings
    assert warning.startswith("nothing fits: 2.00 of 80.00 GiB free")
    assert "At least 0.18 GiB more must be free" in warning
    assert "VLLM_AUTOFIT_HEADROOM" in warning


def test_devices_that_can_not_be_read_are_left_to_vllm() -> None:
    plan = make_plan(request(), [], Lessons(Measured(GIB, "20261121T120000Z-1-aaaa")), Rules())
    decision = plan.decision("gpu_memory_utilization")
    assert (decision.value, decision.source) == (0.92, "vllm")
    assert decision.why == "the device's memory could not be read"
    assert (plan.budget, plan.warnings, plan.record_id) == (None, (), None)


def test_a_plan_fits_when_there_is_something_to_ask_for_whoever_decides() -> None:
    mine = request({"gpu_memory_utilization": 0.5})
    for asked in (request(), mine):
        assert make_plan(asked, [cuda(80)], Lessons(), Rules()).fits
        assert not make_plan(asked, [cuda(80, free_gib=1)], Lessons(), Rules()).fits
        assert not make_plan(asked, [], Lessons(), Rules()).fits


def test_different_devices_of_which_it_is_not_known_which_will_be_used_are_warned_of() -> None:
    small, large = cuda(24, name="small"), cuda(80, name="large")
    (warning,) = make_plan(request(), [large, small], Lessons(), Rules()).warnings
    assert "large, small" in warning
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in warning


@pytest.mark.parametrize(
    ("ranks", "devices"),
    [
        (2, [cuda(24, name="small"), cuda(80, name="large")]),
        (1, [cuda(80), cuda(80, 20, index=1)]),
        (1, [host()]),
        (1, []),
    ],
    ids=["as many ranks as devices", "devices of one kind", "the host", "no device"],
)
def test_devices_that_are_certain_are_not_warned_of(ranks: int, devices: list[DeviceFacts]) -> None:
    assert make_plan(request(local_ranks=ranks), devices, Lessons(), Rules()).warnings == ()


def test_a_vllm_that_can_not_fit_the_context_keeps_its_own() -> None:
    decision = make_plan(request(), [cuda()], Lessons(), Rules(), context_automatic=False).decision("max_model_len")
    assert (decision.value, decision.source) == (None, "vllm")


def test_a_device_of_another_node_decides_where_it_is_the_tightest() -> None:
    here, asked = cuda(80), request(local_ranks=2, spans_nodes=True)
    alone = make_plan(asked, [here], Lessons(), Rules()).budget
    assert alone is not None

    tight = Lessons(elsewhere=Elsewhere(20 * GIB, 40 * GIB, 1, "earlier"))
    plan = make_plan(asked, [here], tight, Rules())
    assert plan.budget is not None
    assert plan.budget.total_bytes == 40 * GIB
    share = plan.filled["gpu_memory_utilization"]
    assert isinstance(share, float)
    assert share * 40 * GIB <= 20 * GIB - plan.budget.headroom_bytes
    assert "another node" in plan.decision("gpu_memory_utilization").why

    roomy = Lessons(elsewhere=Elsewhere(79 * GIB, 80 * GIB, 1, "earlier"))
    assert make_plan(asked, [here], roomy, Rules()).budget == alone


def test_a_node_that_plans_for_itself_is_not_planned_for() -> None:
    tight = Lessons(elsewhere=Elsewhere(20 * GIB, 40 * GIB, 1, "earlier"))
    asked = request(spans_nodes=True, planned_in_parts=True)
    assert (
        make_plan(asked, [cuda(80)], tight, Rules()).budget == make_plan(asked, [cuda(80)], Lessons(), Rules()).budget
    )


def test_parts_that_must_agree_on_the_context_keep_vllms() -> None:
    plan = make_plan(request(planned_in_parts=True), [cuda()], Lessons(), Rules())
    assert plan.filled.keys() == {"gpu_memory_utilization"}
    assert "every part of this launch must agree" in plan.decision("max_model_len").why


def test_parts_that_must_agree_concede_nothing_where_one_plan_for_all_would() -> None:
    tight = cuda(80, free_gib=19)
    together = make_plan(request(spans_nodes=True), [tight], Lessons(), Rules(), model=llama())
    assert together.concessions
    assert together.filled.keys() > {"gpu_memory_utilization", "max_model_len"}
    apart = make_plan(request(planned_in_parts=True), [tight], Lessons(), Rules(), model=llama())
    assert apart.filled.keys() == {"gpu_memory_utilization"}
    assert apart.concessions == ()
    assert apart.shortfall_bytes > 0


def test_a_fixed_kv_cache_is_named_where_the_utilisation_no_longer_sizes_it() -> None:
    plan = make_plan(request(kv_cache_fixed_by="kv_cache_memory_bytes"), [cuda()], Lessons(), Rules())
    assert "kv_cache_memory_bytes fixes the KV cache" in plan.decision("gpu_memory_utilization").why


# For everything


@st.composite
def devices(draw: st.DrawFn) -> DeviceFacts:
    """Any device, from a tiny one to a large host, as full or empty as can be."""
    kind: Literal["cuda", "cpu"] = draw(st.sampled_from(["cuda", "cpu"]))
    total = draw(st.integers(GIB // 4, LARGEST_GIB * GIB))
    free = draw(st.integers(0, total))
    return DeviceFacts(kind, 0, draw(st.sampled_from("abc")), total, free, draw(st.integers(1, 8)))


sizes = st.integers(0, LARGEST_GIB * GIB)
field_values: st.SearchStrategy[FieldValue] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
)
figures = st.builds(Measured, sizes, st.just("20261121T120000Z-1-aaaa"), st.sampled_from(["record", "prior"]))
lessons = st.builds(
    Lessons,
    startup_overhead=st.none() | figures,
    headroom=st.none() | figures,
    least_headroom=st.none() | figures,
    proven_asked=st.none() | figures,
)
rules = st.builds(
    Rules, policy=st.sampled_from(POLICIES), min_context_tokens=st.integers(1), headroom_bytes=st.none() | sizes
)
requests = st.builds(
    request,
    st.dictionaries(st.sampled_from(FIELDS), field_values),
    local_ranks=st.integers(1, 8),
    spans_nodes=st.booleans(),
    kv_cache_fixed_by=st.none() | st.just("num_gpu_blocks_override"),
)
machines = st.lists(devices(), max_size=3)


def share(plan: Plan) -> float:
    """What the planner itself would ask for; nothing where nothing fits."""
    suggested = plan.decision("gpu_memory_utilization").suggested
    return suggested if isinstance(suggested, float) else 0.0


def left_for_vllm(device: DeviceFacts, given_lessons: Lessons, given_rules: Rules, ranks: int) -> int:
    """Free memory less overhead and headroom, as the plan for this device alone states them."""
    budget = make_plan(request(local_ranks=ranks), [device], given_lessons, given_rules).budget
    assert budget is not None
    return max(0, budget.free_bytes - budget.startup_overhead_bytes - budget.headroom_bytes)


@given(requests, machines, lessons, rules, st.booleans(), st.booleans())
def test_what_the_user_set_survives_any_input(
    asked: Request, machine: list[DeviceFacts], past: Lessons, wishes: Rules, apart: bool, automatic: bool
) -> None:
    plan = make_plan(asked, machine, past, wishes, separate_processes=apart, context_automatic=automatic)
    assert not plan.filled.keys() & asked.set_by_user
    for name in asked.set_by_user:
        decision = plan.decision(name)
        assert decision.value is asked.values[name]
        assert decision.source == "user"


@given(requests, machines, lessons, rules)
def test_every_field_is_decided_once_and_with_a_reason(
    asked: Request, machine: list[DeviceFacts], past: Lessons, wishes: Rules
) -> None:
    plan = make_plan(asked, machine, past, wishes)
    assert tuple(decision.field for decision in plan.decisions) == FIELDS
    assert all(decision.why for decision in plan.decisions)


@given(requests, machines, lessons, rules)
def test_what_is_neither_set_nor_filled_stays_as_it_was(
    asked: Request, machine: list[DeviceFacts], past: Lessons, wishes: Rules
) -> None:
    plan = make_plan(asked, machine, past, wishes)
    for name in FIELDS:
        if name not in plan.filled:
            assert plan.decision(name).value is asked.values[name]


@given(machines, lessons, rules, st.integers(1, 8))
def test_no_device_is_asked_for_more_than_free_less_overhead_less_headroom(
    machine: list[DeviceFacts], past: Lessons, wishes: Rules, ranks: int
) -> None:
    plan = make_plan(request(local_ranks=ranks), machine, past, wishes)
    utilisation = plan.filled.get("gpu_memory_utilization", 0.0)
    assert isinstance(utilisation, float)
    for device in machine:
        taken = math.ceil(device.total_bytes * utilisation) * device.ranks
        assert taken <= left_for_vllm(device, past, wishes, ranks)


@given(requests, machines, lessons, rules)
def test_nothing_is_negative_and_a_filled_utilisation_is_one_that_vllm_accepts(
    asked: Request, machine: list[DeviceFacts], past: Lessons, wishes: Rules
) -> None:
    plan = make_plan(asked, machine, past, wishes)
    if plan.budget is not None:
        assert all(value >= 0 for value in dataclasses.asdict(plan.budget).values() if isinstance(value, int))
    if "gpu_memory_utilization" in plan.filled:
        value = plan.filled["gpu_memory_utilization"]
        assert isinstance(value, float)
        assert 0 < value <= 1


@given(devices(), sizes, lessons, rules, st.integers(1, 8))
def test_more_free_memory_never_gives_a_smaller_utilisation(
    device: DeviceFacts, more: int, past: Lessons, wishes: Rules, ranks: int
) -> None:
    freer = dataclasses.replace(device, free_bytes=min(device.total_bytes, device.free_bytes + more))
    asked = request(local_ranks=ranks)
    assert share(make_plan(asked, [device], past, wishes)) <= share(make_plan(asked, [freer], past, wishes))


@given(machines.filter(bool), devices(), lessons, rules)
def test_one_more_device_never_gives_a_larger_utilisation(
    machine: list[DeviceFacts], another: DeviceFacts, past: Lessons, wishes: Rules
) -> None:
    fewer, more = make_plan(request(), machine, past, wishes), make_plan(request(), [*machine, another], past, wishes)
    assert share(more) <= share(fewer)


@given(st.lists(devices(), min_size=1, max_size=3), lessons, rules)
def test_the_tightest_device_decides_in_any_order(machine: list[DeviceFacts], past: Lessons, wishes: Rules) -> None:
    plan = make_plan(request(), machine, past, wishes)
    alone = [make_plan(request(), [device], past, wishes) for device in machine]
    assert share(make_plan(request(), machine[::-1], past, wishes)) == share(plan)
    assert share(plan) <= min(share(each) for each in alone)
    assert plan.budget in [each.budget for each in alone]


@given(st.lists(devices(), min_size=1, max_size=3), lessons, rules)
def test_a_full_device_is_warned_of_once_and_freeing_what_the_warning_says_is_enough(
    machine: list[DeviceFacts], past: Lessons, wishes: Rules
) -> None:
    device = machine[0]
    plan = make_plan(request(), [device], past, wishes)
    warnings = [each for each in plan.warnings if "VLLM_AUTOFIT_HEADROOM keeps" not in each]
    if "gpu_memory_utilization" in plan.filled:
        assert warnings == []
        return
    (warning,) = warnings
    named = re.search(r"At least (\d+\.\d\d) GiB more", warning)
    assert named is not None
    rounding = GIB // 200 + 1
    freed = device.free_bytes + int(float(named[1]) * GIB) + rounding
    assert left_for_vllm(dataclasses.replace(device, free_bytes=freed), past, wishes, 1) >= (
        SMALLEST_ASK_BYTES * device.ranks
    )


@given(requests, machines, lessons, rules)
def test_planning_changes_nothing_that_it_is_given_and_repeats_itself(
    asked: Request, machine: list[DeviceFacts], past: Lessons, wishes: Rules
) -> None:
    before = dict(asked.values), list(machine)
    first = make_plan(asked, machine, past, wishes)
    assert (asked.values, machine) == before
    assert make_plan(asked, machine, past, wishes) == first


@given(requests, machines, lessons, rules)
def test_the_record_is_named_exactly_when_its_measurement_was_used(
    asked: Request, machine: list[DeviceFacts], past: Lessons, wishes: Rules
) -> None:
    plan = make_plan(asked, machine, past, wishes)
    budget = plan.budget
    used = budget is not None and "record" in (budget.startup_overhead_source, budget.headroom_source)
    assert (plan.record_id is not None) == used


def test_a_very_large_host_is_never_asked_for_a_utilisation_of_zero() -> None:
    four_tib = host(4096, free_gib=2.3)
    plan = make_plan(
        request(), [four_tib], Lessons(Measured(GIB, "20261121T120000Z-1-aaaa")), Rules(headroom_bytes=GIB)
    )
    assert plan.filled.get("gpu_memory_utilization") != 0.0
