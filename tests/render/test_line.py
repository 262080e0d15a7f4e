"""The one line per start, and values as flags of vLLM's."""

from __future__ import annotations

import pytest

from tests.builders import GIB, cuda, host, request
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.render.line import flags, plan_line
from vllm_autofit.render.options import shown
from vllm_autofit.values import AUTO_CONTEXT, FieldValue, Lessons, Measured, Plan, Request, Rules

RUN = "20261121T120000Z-1-aaaa"
EARLIER = "20261120T120000Z-1-bbbb"


def plan_for(asked: Request, lessons: Lessons | None = None, free_gib: float = 70) -> Plan:
    return make_plan(asked, [cuda(80, free_gib)], lessons or Lessons(), Rules())


def test_a_first_start() -> None:
    assert plan_line(plan_for(request()), RUN) == (
        "set gpu_memory_utilization=0.8508, max_model_len=auto "
        "(70.00 of 80.00 GiB free on NVIDIA H100 80GB HBM3, less 0.63 for start-up (estimate) and 1.30 headroom); "
        "pin it with --gpu-memory-utilization 0.8508 --max-model-len auto; "
        f"details: vllm-autofit history show {RUN}"
    )


def test_a_start_that_learned_from_a_record_names_it() -> None:
    line = plan_line(plan_for(request(), Lessons(Measured(GIB, EARLIER))), RUN)
    assert "less 1.00 for start-up (record)" in line
    assert f"; from the record of start {EARLIER};" in line


def test_a_start_without_a_record_names_none() -> None:
    assert "from the record" not in plan_line(plan_for(request()), RUN)


def test_what_the_user_set_is_theirs_and_our_choice_is_said_beside_it() -> None:
    line = plan_line(plan_for(request({"gpu_memory_utilization": 0.5, "max_num_seqs": 8})), RUN)
    assert line.startswith("set max_model_len=auto; ")
    assert "gpu_memory_utilization=0.5 is yours, vllm-autofit would have chosen 0.8508; " in line
    assert "max_num_seqs=8 is yours; " in line
    assert "pin it with --max-model-len auto; " in line


def test_a_choice_of_the_users_that_is_ours_too_is_not_compared() -> None:
    line = plan_line(plan_for(request({"gpu_memory_utilization": 0.8508})), RUN)
    assert "gpu_memory_utilization=0.8508 is yours;" in line


def test_with_all_set_there_is_nothing_to_fill_in_or_pin() -> None:
    line = plan_line(plan_for(request({"gpu_memory_utilization": 0.5, "max_model_len": 4096})), RUN)
    assert line.startswith("nothing to fill in; ")
    assert "pin it with" not in line


def test_observing_says_what_would_be_set_and_how_it_was_switched_on() -> None:
    line = plan_line(plan_for(request()), RUN, observing=True)
    assert line.startswith("would set (VLLM_AUTOFIT=observe) gpu_memory_utilization=0.8508, max_model_len=auto (")
    assert "pin it with" not in line


def test_a_context_that_is_filled_alone_is_not_explained_with_the_devices_memory() -> None:
    line = plan_line(plan_for(request(), free_gib=1), RUN)
    assert line.startswith("set max_model_len=auto; pin it with ")


@pytest.mark.parametrize("observing", [False, True])
def test_it_is_one_line_that_ends_with_where_the_details_are(observing: bool) -> None:
    plan = make_plan(request({"kv_cache_dtype": "fp8"}), [host()], Lessons(Measured(GIB, EARLIER)), Rules("safe"))
    line = plan_line(plan, RUN, observing=observing)
    assert "\n" not in line
    assert line.endswith(f"; details: vllm-autofit history show {RUN}")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ""),
        ({"gpu_memory_utilization": 0.9}, "--gpu-memory-utilization 0.9"),
        ({"max_model_len": AUTO_CONTEXT}, "--max-model-len auto"),
        ({"max_model_len": 4096}, "--max-model-len 4096"),
        ({"enforce_eager": True}, "--enforce-eager"),
        ({"enforce_eager": False}, "--no-enforce-eager"),
        ({"kv_cache_dtype": "fp8", "max_num_seqs": 64}, "--kv-cache-dtype fp8 --max-num-seqs 64"),
    ],
)
def test_values_as_flags(values: dict[str, FieldValue], expected: str) -> None:
    assert flags(values) == expected


def test_only_a_context_of_minus_one_is_shown_as_auto() -> None:
    assert shown("max_model_len", AUTO_CONTEXT) == "auto"
    assert shown("max_num_seqs", -1) == "-1"
    assert shown("max_model_len", None) == "None"
