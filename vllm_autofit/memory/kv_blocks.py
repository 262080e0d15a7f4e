"""How many tokens a block of the KV cache has: the backend's size, raised until a state fits into an attention page.

vLLM 0.32.0: ``Platform.update_block_size_for_backend`` and ``_align_hybrid_block_size`` (``platforms/interface.py``),
``platforms/cpu.py``, and ``get_supported_kernel_block_sizes`` of the attention backends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_autofit.architecture import Attention, ModelFacts, State
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.kv_dtypes import (
    TURBOQUANT_BITS,
    attention_token_bytes,
    cache_dtype,
    is_sparse,
    state_bytes,
)

CUDA_BLOCK_TOKENS = 16
"""``CacheConfig.DEFAULT_BLOCK_SIZE``; FlashAttention, FlashInfer and Triton all take it."""

XPU_BLOCK_TOKENS = 64
CPU_BLOCK_TOKENS = 128
CPU_KERNEL_TOKENS = 32
"""The CPU kernels take multiples of it."""

CPU_LATENT_BLOCK_TOKENS = 16
"""The only size of the CPU's kernel for latent attention, unless the CPU has AMX tiles."""

SPARSE_BLOCK_TOKENS = 64
"""The sparse indexer's (DeepSeek V3.2)."""

INDEXED_BLOCK_TOKENS = 128
"""MiniMax M3's, whose indexer stands beside ordinary keys and values."""

HOPPER_LATENT_BLOCK_TOKENS = 64
"""FlashMLA's: for every dtype before vLLM 0.13, for fp8 since; FlashAttention's own takes multiples of 16."""

BLACKWELL_LATENT_BLOCK_TOKENS = 32
"""FlashInfer's smallest, on compute capability 10.x."""

BLACKWELL_OLD_LATENT_BLOCK_TOKENS = 128
"""CUTLASS MLA's, the first choice there before vLLM 0.13."""

LATENT_STATE_BLOCK_TOKENS = 128
"""A block of a hybrid with latent attention is a multiple of it."""


@dataclass(frozen=True)
class BlockSizes:
    """Tokens of a block by kind of layer."""

    attention: int
    window: int
    """Of layers with a sliding window, which choose their own."""
    state: int
    """Tokens between two kept states; says nothing about a state's size."""
    state_page_bytes: int | None = None
    """What a state is padded to so that it fills an attention page; None: as it is."""


def block_sizes(facts: ModelFacts, deployment: Deployment) -> BlockSizes:
    """The block sizes of one deployment, settled in vLLM's order: user or backend, hybrids, mixed dtypes."""
    size, kernel = _backend_block_tokens(facts, deployment)
    attention, state = _first_attention(facts), _first_state(facts)
    state_page: int | None = None
    if attention is not None and state is not None:
        token_bytes = attention_token_bytes(attention, cache_dtype(facts, deployment), deployment.tensor_parallel)
        size = _aligned(
            token_bytes, state_bytes(state, facts, deployment), size, kernel, latent=attention.latent is not None
        )
        state_page = size * token_bytes
    elif attention is not None and skips_boundary_layers(facts, deployment):
        size = _aligned_with_skipped(attention, size, kernel, deployment)
    return BlockSizes(
        attention=size,
        window=max(kernel, size // kernel * kernel),
        state=_state_block_tokens(None if attention is None else size, deployment),
        state_page_bytes=state_page,
    )


def skips_boundary_layers(facts: ModelFacts, deployment: Deployment) -> bool:
    """TurboQuant leaves the first two and the last two layers as they are, in models without states."""
    return cache_dtype(facts, deployment) in TURBOQUANT_BITS and _first_state(facts) is None


def keeps_states(deployment: Deployment) -> str:
    """``mamba_cache_mode`` as it comes out: with prefix caching, states at block boundaries are kept."""
    return deployment.mamba_cache_mode or ("align" if deployment.prefix_caching else "none")


def _first_attention(facts: ModelFacts) -> Attention | None:
    parts = (part for layer in facts.layers for part in (layer.mixer, layer.parallel))
    return next((part for part in parts if isinstance(part, Attention)), None)


def _first_state(facts: ModelFacts) -> State | None:
    parts = (part for layer in facts.layers for part in (layer.mixer, layer.parallel))
    return next((part for part in parts if isinstance(part, State)), None)


def _backend_block_tokens(facts: ModelFacts, deployment: Deployment) -> tuple[int, int]:
    """The block that the backend gets, and the smallest that its kernels take."""
    attention = _first_attention(facts)
    latent = attention is not None and attention.latent is not None
    asked = deployment.block_size
    if deployment.device == "cpu":
        if latent and "amx_tile" not in deployment.cpu_features:
            return CPU_LATENT_BLOCK_TOKENS, CPU_LATENT_BLOCK_TOKENS
        return asked or CPU_BLOCK_TOKENS, CPU_KERNEL_TOKENS
    if deployment.device == "xpu":
        return asked or XPU_BLOCK_TOKENS, XPU_BLOCK_TOKENS
    if latent:
        kernel = _latent_block_tokens(facts, deployment)
    else:
        kernel = INDEXED_BLOCK_TOKENS if _has_indexer(facts) else CUDA_BLOCK_TOKENS
    return asked or kernel, kernel


def _has_indexer(facts: ModelFacts) -> bool:
    mixers = (layer.mixer for layer in facts.layers)
    return any(isinstance(mixer, Attention) and mixer.index_heads > 0 for mixer in mixers)


def _latent_block_tokens(facts: ModelFacts, deployment: Deployment) -> int:
    """What vLLM's first choice for latent attention on this device takes."""
    major = (deployment.compute_capability or (0, 0))[0]
    if is_sparse(facts):
        return SPARSE_BLOCK_TOKENS
    if major == 10:
        old = deployment.vllm < (0, 13)
        return BLACKWELL_OLD_LATENT_BLOCK_TOKENS if old else BLACKWELL_LATENT_BLOCK_TOKENS
    if major == 9 and (deployment.vllm < (0, 13) or cache_dtype(facts, deployment).startswith("fp8")):
        return HOPPER_LATENT_BLOCK_TOKENS
    return CUDA_BLOCK_TOKENS


def _aligned(token_bytes: int, state: int, size: int, kernel: int, *, latent: bool) -> int:
    """Tokens of the smallest block that is no smaller than ``size`` and holds as many bytes as one state."""
    unit = max(kernel, size, LATENT_STATE_BLOCK_TOKENS if latent else 0)
    needed = unit * math.ceil(state / (unit * token_bytes))
    return max(size, kernel * math.ceil(needed / kernel))


def _aligned_with_skipped(attention: Attention, size: int, kernel: int, deployment: Deployment) -> int:
    """Tokens of a block of packed layers that covers the smallest block of layers that are left as they are.

    vLLM counts a packed element as one byte here, whatever its bits.
    """
    if deployment.device == "cpu":
        return size
    packed = attention_token_bytes(attention, "fp8", deployment.tensor_parallel)
    plain = attention_token_bytes(attention, deployment.dtype, deployment.tensor_parallel)
    unit = max(kernel, size)
    return max(size, unit * math.ceil(plain * kernel / (unit * packed)))


def _state_block_tokens(attention_block: int | None, deployment: Deployment) -> int:
    if keeps_states(deployment) == "none":
        return deployment.mamba_block_size or deployment.max_model_len
    return attention_block or deployment.mamba_block_size or deployment.block_size or CUDA_BLOCK_TOKENS
