"""``vllm_autofit.plan``: the command's plan as an object."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vllm_autofit
from tests.answers import answered, model_folder
from tests.builders import GIB
from tests.claims.test_ledger import entry
from vllm_autofit.api import Question, _defaults, _version
from vllm_autofit.claims.claim import Part
from vllm_autofit.claims.ledger import Ledger
from vllm_autofit.errors import AutofitError, FlagError, UnknownDeviceError
from vllm_autofit.values import Model, Plan


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The shapes of an 8-billion-parameter model."""
    return model_folder(tmp_path / "model")


def test_it_is_the_plan_of_the_command(model: str) -> None:
    made = vllm_autofit.plan(model, gpu="H100", vllm_version="0.32.0", tensor_parallel_size=2, max_model_len="8k")
    assert isinstance(made, Plan)
    assert made == answered(model, options={"tensor_parallel_size": 2, "max_model_len": 8000}).plan


def test_a_device_may_be_described_in_gib(model: str) -> None:
    made = vllm_autofit.plan(model, gpu_memory_gib=48, gpu_free_gib=40.5)
    assert made.budget is not None
    assert (made.budget.total_bytes, made.budget.free_bytes) == (48 * GIB, 40.5 * GIB)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"gpu": "a100"}, UnknownDeviceError),
        ({"gpu": "H100", "tensor_paralel_size": 2}, FlagError),
        ({"gpu": "H100", "gpu_memory_utilization": 90}, FlagError),
        ({"gpu": "H100", "policy": "fast"}, FlagError),
        ({"gpu_memory_gib": -1}, FlagError),
        ({"gpu_memory_gib": 8, "gpu_free_gib": -1}, FlagError),
        ({"gpu_memory_gib": float("nan")}, FlagError),
        ({"gpu_memory_gib": 1e308}, FlagError),
        ({"gpu_memory_gib": "80"}, FlagError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[AutofitError], model: str) -> None:
    with pytest.raises(error):
        vllm_autofit.plan(model, **arguments)


def test_a_bad_setting_is_a_warning(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_POLICY", "fast")
    with pytest.warns(UserWarning, match="VLLM_AUTOFIT_POLICY"):
        vllm_autofit.plan(model, gpu="H100")


def test_the_package_loads_it_only_when_asked() -> None:
    program = (
        "import sys, vllm_autofit\n"
        "assert [name for name in sys.modules if name.startswith('vllm_autofit')] == ['vllm_autofit']\n"
        "assert vllm_autofit.plan.__module__ == 'vllm_autofit.api'\n"
        "assert not hasattr(vllm_autofit, 'nonsense')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


# What vLLM would be told


def knobs(model: str, **options: Any) -> dict[str, object]:
    """What reaches the planner, seen through the launch that it was made for."""
    from vllm_autofit.api import _merged

    return _merged(Question(model, options).options)


def test_short_forms_are_put_where_the_engine_has_them(model: str) -> None:
    merged = knobs(model, spec_method="ngram", spec_tokens=4)
    assert merged["speculative_config"] == {"method": "ngram", "num_speculative_tokens": 4}


def test_overrides_of_the_config_count(model: str) -> None:
    plain, halved = (
        answered(model, options=options).plan for options in ({}, {"hf_overrides": {"num_hidden_layers": 16}})
    )
    assert plain.kv is not None
    assert halved.kv is not None
    assert halved.kv.bytes_per_token * 2 == plain.kv.bytes_per_token


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("99.9", "vLLM 99.9 is newer than any that is known: the rules of 0.33, the newest known, are used"),
        ("0.5.1", "vLLM 0.5.1 is not known, only 0.8 and newer: the rules of 0.8 are assumed"),
        ("0.8.0", None),
        ("0.33.0", None),
    ],
)
def test_a_version_that_is_not_known_is_said_to_be_so(version: str, said: str | None, model: str) -> None:
    warnings = answered(model, vllm_version=version).plan.warnings
    assert [warning for warning in warnings if warning.startswith("vLLM ")] == ([] if said is None else [said])


@pytest.mark.parametrize(("version", "share"), [("0.19", 0.9), ("0.20", 0.92), ("v0.32.0+cpu", 0.92)])
def test_the_share_that_a_version_takes_by_itself(version: str, share: float) -> None:
    assert _defaults(_version(version)[1])["gpu_memory_utilization"] == share


@pytest.mark.parametrize(("size", "odd"), [(7, True), (8, True), (16, False), (48, False)])
def test_a_block_size_without_an_attention_backend_is_said(size: int, odd: bool, model: str) -> None:
    warnings = answered(model, options={"block_size": size}).plan.warnings
    assert any(f"--block-size {size} is not a multiple" in warning for warning in warnings) is odd


def test_a_model_that_drafts_for_itself_is_read_once(model: str, tmp_path: Path) -> None:
    def draft(name: str) -> Model | None:
        options = {"speculative_config": {"method": "mtp", "model": name, "num_speculative_tokens": 1}}
        read = answered(model, options=options).model
        assert read is not None
        return read.draft

    other = model_folder(tmp_path / "other", num_hidden_layers=1)
    found = draft(other)
    assert found is not None
    assert found.name == other
    assert draft(model) is None


def test_this_machine_s_environment_is_nothing_to_a_device_elsewhere(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answered(model).plan
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_ENABLE_STARTUP_PLAN", "1")
    assert answered(model).plan == before


def test_a_script_and_a_server_have_different_batches(model: str) -> None:
    server, script = (answered(model, usage=usage).plan.budget for usage in ("server", "llm"))
    assert server is not None
    assert script is not None
    assert script.activations_bytes > server.activations_bytes


def test_a_figure_that_nobody_measured_is_said_to_be_so(model: str) -> None:
    assert any("not measured" in warning for warning in answered(model, gpu="RTX 4070").plan.warnings)
    assert not any("not measured" in warning for warning in answered(model, gpu="RTX 4090").plan.warnings)


@pytest.mark.parametrize(
    ("gpu", "uncalibrated"), [("mi300x", True), ("arc b580", True), ("gb10", True), ("gh200 480gb", False)]
)
def test_a_device_that_the_estimate_was_not_fitted_to_is_said_to_be(model: str, gpu: str, uncalibrated: bool) -> None:
    assert any("not calibrated" in warning for warning in answered(model, gpu=gpu).plan.warnings) == uncalibrated


def test_a_plan_for_this_machine_leaves_what_its_engines_claim(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    claim = entry(state="serving", devices={"cpu:0": Part(asleep=GIB)})
    Ledger(tmp_path).change(lambda claims: [*claims, claim])
    made = vllm_autofit.plan(model)
    assert made.budget is not None
    assert made.budget.claimed_bytes == GIB
    described = vllm_autofit.plan(model, gpu_free_gib=1.0)
    assert described.budget is not None
    assert described.budget.claimed_bytes == 0


def test_claims_that_cannot_be_read_are_said_to_be_so(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path))
    Ledger(tmp_path).path.parent.write_text("a file where a folder should be")
    assert any("planned without what other engines claim" in each for each in vllm_autofit.plan(model).warnings)
