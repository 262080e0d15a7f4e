"""Bytes that one token, or one sequence, takes in the cache of one layer of one rank.

Read in vLLM 0.32.0: ``utils/torch_utils.py``, ``v1/kv_cache_interface.py``, ``customize_spec`` of the attention
backends, ``model_executor/layers/attention/mla_attention.py``, ``model_executor/layers/mamba/mamba_utils.py``.
"""

from __future__ import annotations

import math
from typing import Literal

from vllm_autofit.architecture import Attention, LatentAttention, ModelFacts, State
from vllm_autofit.deployment import Deployment

FLOAT_BYTES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
"""What ``kv_cache_dtype`` and torch's names for it mean; every other one is stored in single bytes."""

PER_TOKEN_HEAD_SCALES_BYTES = 8
"""int8, fp8 and int4 ``_per_token_head``: a float32 scale for the key and one for the value of each head."""

DS_MLA_TOKEN_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""DeepSeek's packed rows: latent vector, its scales, and the rotated part in 16 bits."""

TURBOQUANT_BITS = {
    "turboquant_k8v4": (8, 4),
    "turboquant_4bit_nc": (4, 4),
    "turboquant_k3v4_nc": (3, 4),
    "turboquant_3bit_nc": (3, 3),
}
"""Bits of a key's and of a value's element (``model_executor/layers/quantization/turboquant/config.py``)."""

ULTRAQUANT_GROUP = 32
"""Elements that share a one-byte scale (``v1/attention/ops/ultraquant/format.py``)."""

NVFP4_GROUP = 16
INDEXER_GROUP = 128
"""Elements of an indexer's fp8 key that share a float32 scale (``model_executor/models/deepseek_v2.py``)."""

OWN_SSM_DTYPE = {"nemotron_h": "float32"}
"""State dtype of a family whose config names none (``NemotronHForCausalLMConfig``); of others, that of its tokens."""


def cache_dtype(facts: ModelFacts, deployment: Deployment) -> str:
    """``kv_cache_dtype`` as it comes to the layers; "auto" is what the checkpoint asks for, else the model's dtype."""
    wanted = deployment.kv_cache_dtype
    if wanted == "auto":
        brought = facts.quantization.kv_cache_dtype if facts.quantization else None
        wanted = brought if brought and brought != "auto" else deployment.dtype
    return _sparse_dtype(wanted, deployment) if is_sparse(facts) else wanted


def is_sparse(facts: ModelFacts) -> bool:
    """Whether an indexer picks the tokens that a layer attends to (DeepSeek V3.2)."""
    return any(
        isinstance(layer.mixer, Attention) and layer.mixer.latent is not None and layer.mixer.latent.index_heads > 0
        for layer in facts.layers
    )


def _sparse_dtype(wanted: str, deployment: Deployment) -> str:
    """Which format the sparse kernels of DeepSeek V3.2 store: their own for fp8, but plain fp8 on Blackwell (10.x)."""
    major = (deployment.compute_capability or (9, 0))[0]
    is_fp8 = wanted in ("fp8", "fp8_e4m3", "fp8_e5m2")
    if deployment.device != "cuda" or major == 10:
        return wanted
    return "fp8_ds_mla" if is_fp8 or (major == 12 and deployment.kv_cache_dtype == "auto") else wanted


def attention_token_bytes(attention: Attention, dtype: str, tensor_parallel: int) -> int:
    """Bytes of one token in one layer on one rank: keys and values of its heads, or the latent vector."""
    if attention.latent is not None:
        return latent_token_bytes(attention.latent, dtype)
    return kv_heads_of_rank(attention, tensor_parallel) * _head_bytes(
        attention.head_size, attention.value_head_size, dtype
    )


def kv_heads_of_rank(attention: Attention, tensor_parallel: int) -> int:
    """KV heads on one rank; where there are fewer than ranks, each has a copy of one. A latent vector isn't split."""
    return 1 if attention.latent is not None else max(1, attention.kv_heads // tensor_parallel)


def latent_token_bytes(latent: LatentAttention, dtype: str) -> int:
    """Bytes of one token's latent vector; keys and values in one."""
    size = latent.kv_rank + latent.rope_head_size
    if dtype in DS_MLA_TOKEN_BYTES:
        return DS_MLA_TOKEN_BYTES[dtype]
    return _head_bytes(size, 0, dtype)


def indexer_token_bytes(latent: LatentAttention) -> int:
    """Bytes of one token in the sparse indexer's own cache: fp8 keys and float32 scales."""
    return latent.index_head_size + latent.index_head_size // INDEXER_GROUP * 4


def _head_bytes(key: int, value: int, dtype: str) -> int:
    if dtype in TURBOQUANT_BITS:
        return _turboquant_bytes(key, *TURBOQUANT_BITS[dtype])
    if dtype == "ultraquant_4bit":
        return 2 * (key // 2 + key // ULTRAQUANT_GROUP)
    if dtype.startswith("nvfp4"):
        return sum(size // 2 + size // NVFP4_GROUP for size in (key, value))
    if dtype == "int4_per_token_head":
        return key // 2 + value // 2 + PER_TOKEN_HEAD_SCALES_BYTES
    if dtype.endswith("_per_token_head"):
        return key + value + PER_TOKEN_HEAD_SCALES_BYTES
    return (key + value) * FLOAT_BYTES.get(dtype, 1)


def _turboquant_bytes(size: int, key_bits: int, value_bits: int) -> int:
    """Packed codes; a float16 norm with keys of few bits, a float16 scale and zero with values; an even number."""
    key_bytes = size if key_bits == 8 else math.ceil(size * key_bits / 8) + 2
    slot = key_bytes + math.ceil(size * value_bits / 8) + 4
    return slot + slot % 2


def state_bytes(state: State, facts: ModelFacts, deployment: Deployment) -> int:
    """Bytes of one sequence's state in one layer on one rank, before it is padded to a page."""
    ranks = deployment.tensor_parallel
    drafted = deployment.speculation.tokens if deployment.speculation else 0
    rows = state.conv_kernel - 1 + (0 if state.kind == "mamba1" else drafted)
    conv = FLOAT_BYTES[_conv_dtype(deployment)]
    ssm = FLOAT_BYTES[ssm_dtype(state, facts, deployment)]
    if state.kind == "lightning":
        return state.heads // ranks * state.head_size**2 * conv
    if state.kind == "short_conv":
        return rows * (state.inner_size // ranks) * conv
    if state.kind == "mamba1":
        width = state.inner_size // ranks
        return rows * width * conv + width * state.state_size * ssm
    if state.kind == "mamba2":
        groups = state.groups if state.groups % ranks == 0 else ranks
        width = (state.inner_size + 2 * groups * state.state_size) // ranks
        return rows * width * conv + state.heads // ranks * state.head_size * state.state_size * ssm
    width = (2 * state.key_heads * state.key_head_size + state.heads * state.head_size) // ranks
    return rows * width * conv + state.heads // ranks * state.head_size * state.key_head_size * ssm


def _conv_dtype(deployment: Deployment) -> str:
    return deployment.dtype if deployment.mamba_cache_dtype == "auto" else deployment.mamba_cache_dtype


def ssm_dtype(state: State, facts: ModelFacts, deployment: Deployment) -> str:
    """Dtype of the recurrent part of a state.

    The CPU backend makes it float32 where it has AVX-512 BF16, unless 16 bits are asked for and the layer is a gated
    delta net (``platforms/cpu.py``).
    """
    asked = deployment.mamba_ssm_cache_dtype
    wanted = state.state_dtype or OWN_SSM_DTYPE.get(facts.model_type) if asked == "auto" else asked
    if deployment.device == "cpu" and "avx512_bf16" in deployment.cpu_features:
        kept: tuple[Literal["float16", "bfloat16"], ...] = ("float16", "bfloat16")
        if state.kind != "gated_delta_net" or wanted not in kept:
            return "float32"
    if wanted is not None:
        return wanted
    return "float32" if state.kind == "kimi_delta" else _conv_dtype(deployment)
