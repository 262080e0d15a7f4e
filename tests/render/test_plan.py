"""A plan as a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.answers import UNHEARD_OF, answered, model_folder
from vllm_autofit.render.plan import WIDTH, plan_table
from vllm_autofit.values import Concession


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The shapes of an 8-billion-parameter model."""
    return model_folder(tmp_path / "model")


def test_a_plan_that_fits(model: str) -> None:
    table = plan_table(answered(model))
    lines = table.splitlines()
    assert lines[0] == f"{model} on NVIDIA H100 80GB HBM3, vLLM 0.32.0"
    assert "FITS. The KV cache holds about " in table
    assert "LlamaForCausalLM; weights estimated, from config" in table
    assert "What would" not in table
    assert lines[-1].startswith(f"  vllm serve {model} --gpu-memory-utilization 0.")


def test_the_rows_of_the_budget_add_up(model: str) -> None:
    for gpu in ("H100", "L4"):
        rows = _budget_rows(plan_table(answered(model, gpu=gpu)))
        assert sum(rows.values()) - rows["total"] == pytest.approx(rows["total"], abs=0.05)


def test_estimates_have_error_bars_and_large_terms_long_bars(model: str) -> None:
    lines = plan_table(answered(model)).splitlines()
    cache, weights = (next(line for line in lines if line.startswith(f"  {name} ")) for name in ("KV cache", "weights"))
    assert "±" in cache
    assert cache.count("#") > weights.count("#") > 0


def test_every_setting_has_a_source_and_a_reason(model: str) -> None:
    table = plan_table(answered(model, options={"max_num_seqs": 8}))
    rows = [line.split() for line in table.splitlines()]
    assert ["--max-num-seqs", "8", "yours"] in rows
    assert ["--max-model-len", "auto", "estimated"] in rows
    assert "set by you" in table


def test_what_was_given_up_is_said(model: str) -> None:
    answer = answered(model)
    given_up = replace(answer.plan, concessions=(Concession("context of 9 tokens instead of 10", 2**30),))
    table = plan_table(replace(answer, plan=given_up))
    assert "Given up so that it fits\n      1.00 GiB  context of 9 tokens instead of 10" in table


def test_what_does_not_fit_has_remedies_in_place_of_a_command(model: str) -> None:
    table = plan_table(answered(model, gpu="RTX 3060"))
    assert "DOES NOT FIT, " in table
    assert " GiB short on each device." in table
    assert "What would make it fit, the most useful first\n  1. " in table
    assert "Start it with" not in table


def test_a_model_that_is_not_understood(tmp_path: Path) -> None:
    table = plan_table(answered(model_folder(tmp_path / "odd", UNHEARD_OF)))
    assert "NOT KNOWN whether it fits" in table
    assert "FITS." not in table
    assert "  vLLM, for everything" in table
    assert "  weights" not in table


def test_without_a_model_only_the_device_is_looked_at() -> None:
    table = plan_table(answered(None))
    assert table.startswith("Any model on NVIDIA H100 80GB HBM3")
    assert "Give vLLM\n  vllm serve --gpu-memory-utilization 0." in table


def test_several_devices_are_counted(model: str) -> None:
    table = plan_table(answered(model, options={"tensor_parallel_size": 2}))
    assert f"{model} on 2 x NVIDIA H100 80GB HBM3" in table
    assert "Where the memory of each device goes" in table


def test_lines_are_no_longer_than_a_terminal_unless_they_are_to_be_copied(model: str) -> None:
    for gpu in ("H100", "RTX 3060"):
        lines = plan_table(answered(model, gpu=gpu)).splitlines()
        assert [
            line for line in lines if len(line) > WIDTH + 1 and "vllm serve" not in line and model not in line
        ] == []
        assert all(line == line.rstrip() for line in lines)


def _budget_rows(table: str) -> dict[str, float]:
    section = table.split("goes, in GiB\n")[1].split("\n\n")[0]
    return {line[:30].strip(): float(line[30:40]) for line in section.splitlines()}
