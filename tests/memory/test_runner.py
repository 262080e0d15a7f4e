"""Which of vLLM's two model runners a launch gets."""

from __future__ import annotations

import pytest

from vllm_autofit.architecture import Attention, Dense, Experts, Layer, ModelFacts, State
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.memory.runner import uses_second_runner

DENSE = Layer(Attention(32, 8, 128, 128), Dense(14336))


def model(architecture: str = "Qwen3ForCausalLM", layer: Layer = DENSE) -> ModelFacts:
    return ModelFacts(architecture, "any", 4096, 128256, (layer,))


@pytest.mark.parametrize(
    ("architecture", "version", "second"),
    [
        ("Qwen3ForCausalLM", (0, 21), False),
        ("Qwen3ForCausalLM", (0, 22), True),
        ("LlamaForCausalLM", (0, 22), False),
        ("LlamaForCausalLM", (0, 23), True),
        ("PhiForCausalLM", (0, 24), False),
        ("PhiForCausalLM", (0, 25), True),
    ],
)
def test_each_version_chooses_for_more_models(architecture: str, version: tuple[int, int], second: bool) -> None:
    assert uses_second_runner(model(architecture), Deployment(vllm=version)) is second


@pytest.mark.parametrize("layer", [Layer(DENSE.mixer, Experts(1024, 64, 8)), Layer(State("mamba2"), Dense(14336))])
def test_mixtures_and_states_come_last(layer: Layer) -> None:
    assert not uses_second_runner(model("NewForCausalLM", layer), Deployment(vllm=(0, 28)))
    assert uses_second_runner(model("NewForCausalLM", layer), Deployment(vllm=(0, 29)))


@pytest.mark.parametrize("version", [(0, 16), (0, 24), (0, 33)])
@pytest.mark.parametrize("asked", [True, False])
def test_what_the_user_says_counts(version: tuple[int, int], asked: bool) -> None:
    assert uses_second_runner(model(), Deployment(vllm=version, second_runner=asked)) is asked


def test_the_cpu_backend_is_left_with_the_first() -> None:
    assert not uses_second_runner(model(), Deployment(vllm=(0, 33), device="cpu", second_runner=True))


@pytest.mark.parametrize(
    ("method", "version", "second"),
    [
        ("mlp_speculator", (0, 30), False),
        ("mlp_speculator", (0, 32), False),
        ("mlp_speculator", (0, 33), True),
        ("custom_class", (0, 33), False),
        ("draft_model", (0, 30), False),
        ("draft_model", (0, 32), True),
        ("eagle", (0, 24), True),
    ],
)
def test_what_it_cannot_draft_with_goes_to_the_first(method: str, version: tuple[int, int], second: bool) -> None:
    drafting = Deployment(vllm=version, speculation=Speculation(method, 3))
    assert uses_second_runner(model(), drafting) is second
