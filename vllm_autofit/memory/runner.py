"""Which of vLLM's two model runners a launch gets: they hold different things while they profile.

The second is v1/worker/gpu/model_runner.py. ``VllmConfig.use_v2_model_runner`` chooses; read in the wheels of 0.20, and
0.22 to 0.33. Before 0.22 only ``VLLM_USE_V2_MODEL_RUNNER`` does (v1/worker/gpu_worker.py of 0.12, 0.16 and 0.19).
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
    (0, 22): {"ngram", "ngram_gpu", "suffix", "medusa", "draft_model", "mlp_speculator", "custom_class"},
    (0, 32): {"suffix", "medusa", "mlp_speculator", "custom_class"},
    (0, 33): {"suffix", "custom_class"},
}
"""Ways of speculating that the second runner lacks, from the version on (config/vllm.py:
_get_v2_model_runner_unsupported_features, read in 0.24, 0.28, 0.30, 0.32 and 0.33)."""


def uses_second_runner(facts: ModelFacts, deployment: Deployment) -> bool:
    """Whether vLLM runs this model with the second runner: as its user says, else as this version chooses."""
    version = deployment.vllm
    if deployment.device == "cpu":  # it needs Triton
        return False
    if deployment.second_runner is not None:
        return deployment.second_runner
    if version < SOME_PLAIN_MODELS:
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
