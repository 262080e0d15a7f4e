"""Which of vLLM's two model runners a launch gets: they hold different things while they profile.

The second is v1/worker/gpu/model_runner.py. ``VllmConfig.use_v2_model_runner`` chooses; read in the wheels of 0.20, and
0.22 to 0.33.
"""

from __future__ import annotations

from vllm_autofit.architecture import Experts, ModelFacts, State
from vllm_autofit.deployment import Deployment

SOME_PLAIN_MODELS = (0, 22)
QUANTIZED_TOO = (0, 24)
DENSE_MODELS = (0, 25)
EVERY_MODEL = (0, 29)

BY_NAME = {
    (0, 22): {"Qwen3ForCausalLM"},
    (0, 23): {"LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"},
    (0, 24): {
        "DeepseekV2ForCausalLM",
        "GraniteMoeForCausalLM",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3ForCausalLM",
    },
    (0, 25): {"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"},
    (0, 28): {"DeepseekV2ForCausalLM", "DeepseekV4ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"},
}
"""Architectures that got the second runner by name, from the version on, until the next entry."""

LACKING = {
    (0, 22): {"ngram", "suffix", "medusa", "draft_model"},
    (0, 32): {"suffix", "medusa"},
    (0, 33): {"suffix"},
}
"""Ways of speculating that the second runner lacks, from the version on."""


def uses_second_runner(facts: ModelFacts, deployment: Deployment) -> bool:
    """Whether vLLM runs this model with the second runner when nobody chose one (VLLM_USE_V2_MODEL_RUNNER)."""
    version = deployment.vllm
    if deployment.device == "cpu" or version < SOME_PLAIN_MODELS:  # it needs Triton
        return False
    if deployment.speculation and deployment.speculation.method in _valid_at(LACKING, version):
        return False
    if version >= EVERY_MODEL:
        return True
    if facts.runner == "pooling":
        return False
    named = facts.architecture in _valid_at(BY_NAME, version)
    mixture = any(isinstance(layer.ffn, Experts) for layer in facts.layers)
    if version >= DENSE_MODELS:
        stateful = any(isinstance(layer.mixer, State) or layer.parallel for layer in facts.layers)
        return not stateful and (named or not mixture)
    if version >= QUANTIZED_TOO:
        return named
    return named and not mixture and not (facts.quantization or deployment.quantization)


def _valid_at(table: dict[tuple[int, int], set[str]], version: tuple[int, int]) -> set[str]:
    return table[max(since for since in table if since <= version)]
