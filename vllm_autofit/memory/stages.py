"""Which pipeline stages hold a model's embeddings and its head."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_autofit.architecture import ModelFacts

ON_EVERY_STAGE = frozenset(
    """
    cohere cohere2 dbrx gemma gemma2 gemma3 gemma3n gemma4 gpt2 gpt_oss gptj granitemoe granitemoehybrid
    granitemoeshared hy_v3 jamba mamba mamba2 minicpm mixtral nemotron_h olmo_hybrid olmoe opt orion phimoe plamo3
    qwen2_moe qwen3_5 qwen3_5_moe qwen3_moe qwen3_next qwen3_vl_moe stablelm zamba2
    """.split()  # noqa: SIM905
)
"""Model types whose embeddings and head vLLM 0.32 makes on every pipeline stage: ``models/`` don't ask for the rank."""


def embedding_stages(facts: ModelFacts, stages: int) -> Sequence[int]:
    """Of ``stages``, those with embeddings; the last has them too where the head is tied to them."""
    if _on_every_stage(facts):
        return range(stages)
    return (0, stages - 1) if facts.tied_embeddings and stages > 1 else (0,)


def head_stages(facts: ModelFacts, stages: int) -> Sequence[int]:
    """Of ``stages``, those that compute logits, whether or not the head has weights of its own."""
    return range(stages) if _on_every_stage(facts) else (stages - 1,)


def _on_every_stage(facts: ModelFacts) -> bool:
    return facts.model_type.removesuffix("_text") in ON_EVERY_STAGE
