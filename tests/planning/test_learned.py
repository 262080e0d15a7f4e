"""The estimate, corrected by what starts measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, cuda, llama, request
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.estimate import Estimator
from vllm_autofit.planning.learned import RECORD_ERROR, TERMS, LearnedEstimator
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.values import Lessons, Measured, Rules, RunSettings

MODEL = llama()
ESTIMATE = Estimator(MODEL)
NOW = Deployment(max_model_len=8192, max_num_seqs=256, max_num_batched_tokens=2048)
SETTINGS = RunSettings(8192, 256, 2048, "auto", False)


def learned(**terms: Measured) -> LearnedEstimator:
    return LearnedEstimator(ESTIMATE, terms)


def test_without_figures_it_is_the_estimate() -> None:
    assert learned().demand(NOW) == ESTIMATE.demand(NOW)


def test_what_was_measured_with_the_same_settings_replaces_the_estimate() -> None:
    found = learned(activations=Measured(GIB // 2, "run", settings=SETTINGS)).demand(NOW)
    assert (found.activations.bytes, found.activations.error) == (GIB // 2, RECORD_ERROR["activations"])
    assert "run" in found.activations.why
    assert found.weights == ESTIMATE.demand(NOW).weights


def test_with_other_settings_it_scales_with_the_estimate_and_is_less_sure() -> None:
    fewer = replace(NOW, max_num_seqs=128, max_num_batched_tokens=1024)
    then, now = ESTIMATE.demand(NOW).activations, ESTIMATE.demand(fewer).activations
    assert now.bytes < then.bytes
    found = learned(activations=Measured(2 * then.bytes, "run", settings=SETTINGS)).demand(fewer).activations
    assert found.bytes == pytest.approx(2 * now.bytes, abs=1)
    assert found.error == now.error / 2


def test_a_figure_from_another_key_has_wider_margins() -> None:
    near = learned(activations=Measured(GIB, "run", settings=SETTINGS)).demand(NOW).activations
    far = learned(activations=Measured(GIB, "run", "prior", SETTINGS)).demand(NOW).activations
    assert far.bytes == near.bytes
    assert far.error > near.error


@pytest.mark.parametrize("weights", [0, 2**50])
def test_what_cannot_be_is_not_believed(weights: int) -> None:
    assert learned(weights=Measured(weights, "run", settings=SETTINGS)).demand(NOW) == ESTIMATE.demand(NOW)


def test_a_sum_that_is_more_than_its_terms_is_taken_for_what_is_not_known() -> None:
    estimate = ESTIMATE.demand(NOW)
    total = sum(getattr(estimate, name).bytes for name in TERMS)
    found = learned(consumed=Measured(total + 3 * GIB, "run")).demand(NOW)
    assert found.non_torch.bytes == estimate.non_torch.bytes + 3 * GIB
    assert learned(consumed=Measured(total - GIB, "run")).demand(NOW) == estimate
    assert learned(consumed=Measured(3 * total, "run")).demand(NOW) == estimate


figures = st.builds(
    Measured,
    st.integers(0, 2**50),
    st.just("run"),
    st.sampled_from(["record", "prior"]),
    st.none()
    | st.builds(
        RunSettings,
        st.integers(1, 10**6),
        st.integers(1, 4096),
        st.integers(1, 10**5),
        st.sampled_from(["auto", "fp8"]),
        st.booleans(),
    ),
)


@given(st.dictionaries(st.sampled_from([*TERMS, "consumed"]), figures), figures, figures, figures, figures)
def test_no_record_can_push_a_plan_beyond_what_is_free(
    terms: dict[str, Measured], overhead: Measured, headroom: Measured, least: Measured, proven: Measured
) -> None:
    lessons = Lessons(overhead, headroom, least, proven, terms, settings=overhead.settings)
    device = cuda(80, free_gib=60)
    plan = make_plan(request(), [device], lessons, Rules(), model=MODEL)
    assert plan.budget is not None
    budget = plan.budget
    assert budget.asked_bytes + budget.startup_overhead_bytes <= device.free_bytes
    assert min(value for value in vars(budget).values() if isinstance(value, int)) >= 0
    share = plan.filled.get("gpu_memory_utilization", 0.0)
    assert isinstance(share, float)
    assert 0 <= share * device.total_bytes <= device.free_bytes
