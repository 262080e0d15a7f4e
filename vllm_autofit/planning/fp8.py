"""Whether a KV cache can be kept in fp8: a matter of the device, the model and vLLM's attention backends."""

from __future__ import annotations

from vllm_autofit.architecture import Attention, ModelFacts
from vllm_autofit.deployment import Deployment

FIRST_CAPABILITY = (8, 9)
"""Ada. FlashInfer and FlashAttention 3 read fp8 keys there and on Hopper and Blackwell; on Ampere and before, vLLM 0.11
to 0.33 has no default backend that does (``v1/attention/backends``: ``supports_kv_cache_dtype``)."""

FIRST_VERSION = (0, 11)
"""Before, an fp8 cache sent vLLM back to its old engine on many devices."""


def fp8_kv_cache(facts: ModelFacts, deployment: Deployment) -> str | None:
    """The dtype to ask for, or None where it isn't sure to work or the cache isn't in 16 bits.

    Conservative: latent attention, recurrent states, attention sinks and cross-attention each need a special backend.
    """
    if deployment.device != "cuda" or deployment.kv_cache_dtype not in ("auto", "bfloat16", "float16"):
        return None
    if deployment.compute_capability is None or deployment.compute_capability < FIRST_CAPABILITY:
        return None
    if deployment.vllm < FIRST_VERSION or deployment.speculation is not None or facts.encoder_layers:
        return None
    if facts.quantization is not None and facts.quantization.kv_cache_dtype is not None:
        return None  # it is in fp8 already
    mixers = [layer.mixer for layer in facts.layers]
    plain = all(
        isinstance(mixer, Attention) and mixer.latent is None and not mixer.sinks and mixer.role == "decoder"
        for mixer in mixers
    )
    return "fp8" if plain and mixers else None
