"""A plan as a table."""

from __future__ import annotations

from tests.builders import GIB, cuda, request
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.render.plan import plan_table
from vllm_autofit.values import Lessons, Rules


def test_a_table_names_every_device_and_adds_up_the_tightest() -> None:
    devices = [cuda(80, name="roomy"), cuda(80, 40, index=1, name="busy")]
    table = plan_table(
        make_plan(request(), devices, Lessons("run", GIB), Rules(headroom_bytes=GIB)), devices, "A note."
    )
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["A", "note."]
    assert ["0", "roomy", "80.00", "GiB", "free", "of", "80.00"] in lines
    assert ["1", "busy", "40.00", "GiB", "free", "of", "80.00"] in lines
    assert "The tightest is busy:" in table
    assert ["less", "for", "start-up", "1.00", "record"] in lines
    assert ["less", "headroom", "1.00", "user"] in lines
    assert ["vLLM", "may", "ask", "for", "38.00"] in lines
    assert table.endswith("As flags: --gpu-memory-utilization 0.475 --max-model-len auto")


def test_a_table_of_a_full_device_has_the_warning_and_no_utilisation_among_the_flags() -> None:
    devices = [cuda(80, 1)]
    table = plan_table(make_plan(request(), devices, Lessons(), Rules()), devices, "A note.")
    assert "\nwarning: nothing fits: " in table
    assert table.endswith("As flags: --max-model-len auto")


def test_a_table_leaves_out_fields_that_have_no_value() -> None:
    table = plan_table(make_plan(request(), [], Lessons(), Rules()), [], "A note.")
    assert "max_num_seqs" not in table
    assert "The tightest" not in table
