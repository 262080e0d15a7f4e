"""A model as plain data: what its layers keep and compute, as far as memory depends on it. No behaviour, no imports.

Read from a config by ``facts.config``; ``memory`` does the arithmetic. Sizes are numbers of elements, heads or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): one compressed vector a token is cached, the same on every rank."""

    kv_rank: int
    rope_head_size: int
    nope_head_size: int
    query_rank: int | None = None
    """None: queries are projected in one step."""
    index_heads: int = 0
    """Heads of the sparse indexer (DeepSeek V3.2, GLM 5); 0 without one."""
    index_head_size: int = 0
    """What the indexer caches a token beside the latent vector."""


@dataclass(frozen=True)
class Attention:
    """One attention layer."""

    heads: int
    kv_heads: int
    head_size: int
    """Of queries and keys."""
    value_head_size: int
    window: int | None = None
    """Sliding window in tokens, None for full attention."""
    chunk: int | None = None
    """Chunk of chunked-local attention in tokens (Llama 4)."""
    latent: LatentAttention | None = None
    role: Literal["decoder", "encoder", "cross"] = "decoder"
    """``encoder`` keeps no KV cache; ``cross`` keeps the encoder's keys and values."""
    shares_kv_with: int | None = None
    """Index of the layer whose KV cache it reads (Gemma 3n and 4); it has none of its own."""
    bias: bool = False
    """Of the query, key and value projections."""
    output_bias: bool = False
    query_key_norm: bool = False
    query_key_norm_wide: bool = False
    """That norm runs over all heads at once (OLMo 2, MiniMax M2), not over each head."""
    output_gate: bool = False
    """The query projection is twice as wide, half of it a gate (Qwen3-Next, Qwen3.5)."""
    value_is_key: bool = False
    """Keys serve as values too: one projection, though both are cached (Gemma 4's full layers)."""
    sinks: bool = False
    """One learned logit per head (gpt-oss)."""
    head_gate: bool = False
    """One gate per head, projected from the hidden state (Step 3.5)."""
    index_heads: int = 0
    """Heads of a sparse indexer beside ordinary keys and values (MiniMax M3); 0 without one."""
    index_head_size: int = 0
    """What that indexer caches a token: one vector, the same on every rank."""


@dataclass(frozen=True)
class State:
    """One layer with a state of fixed size per sequence instead of a cache that grows by the token."""

    kind: Literal["mamba1", "mamba2", "gated_delta_net", "kimi_delta", "short_conv", "lightning"]
    heads: int = 0
    """Value heads. 0 where the kind has none (mamba1, short_conv)."""
    head_size: int = 0
    """Of values."""
    key_heads: int = 0
    key_head_size: int = 0
    state_size: int = 0
    groups: int = 0
    inner_size: int = 0
    """Width of what goes through the convolution's main branch (``expand x hidden``, or as the config says)."""
    conv_kernel: int = 0
    time_step_rank: int = 0
    """mamba1 only."""
    bias: bool = False
    conv_bias: bool = False
    output_norm: bool = True
    """A norm before the output projection (mamba2; Falcon-H1 has none unless ``mamba_rms_norm``)."""
    time_step_norms: bool = False
    """Norms of the time step, B and C (mamba1 of Jamba)."""
    state_dtype: str | None = None
    """As the config asks for it (``mamba_ssm_cache_dtype`` or ``mamba_ssm_dtype``); None: the model's own."""


@dataclass(frozen=True)
class Dense:
    """A feed-forward block."""

    width: int
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts."""

    count: int
    per_token: int
    width: int
    """Of one expert's inner layer."""
    shared_width: int = 0
    """Of all shared experts together; 0 without."""
    shared_gate: bool = False
    """A sigmoid gate over the shared expert (Qwen)."""
    gated: bool = True
    bias: bool = False
    router_bias: bool = False
    latent_size: int | None = None
    """Width that the experts work in, where it isn't the hidden size (Nemotron 3 Super)."""


@dataclass(frozen=True)
class Layer:
    """One layer: what mixes tokens, what transforms each, and the vectors around them."""

    mixer: Attention | State | None = None
    ffn: Dense | Experts | None = None
    parallel: State | None = None
    """A second mixer beside the first (Falcon-H1: attention and Mamba in each layer)."""
    also: Attention | None = None
    """A second attention after the first (cross-attention of an encoder-decoder)."""
    extra_ffn: Dense | None = None
    """A dense block beside the experts (Gemma 4's mixtures)."""
    norms: int = 2
    """Vectors of the hidden size."""
    shares_weights_with: int | None = None
    """Index of the layer whose attention and feed-forward weights it uses too (Zamba2); its state is its own."""


@dataclass(frozen=True)
class Tower:
    """An encoder for images, video or sound beside the language model."""

    modality: Literal["image", "audio", "video"]
    layers: int
    hidden_size: int
    width: int
    """Of the feed-forward block."""
    heads: int
    output_size: int
    """Width of what the projector hands to the language model."""
    patch_size: int = 0
    merge: int = 1
    """Patches side by side that become one token: ``merge x merge``."""
    tokens_per_item: int | None = None
    """Tokens that one image, or one clip, becomes at most; None when the config doesn't say."""
    gated: bool = False
    parameters: int | None = None
    """All weights of tower and projector, counted from its config; None when that can't be done."""
    unread_layers: int = 0
    """Its last ones, which vLLM doesn't make: the output of an earlier one is taken (LLaVA)."""
    unread_parameters: int = 0
    """Theirs, among ``parameters``."""


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint stores its linear layers."""

    method: str
    """As vLLM names it: awq, gptq, fp8, compressed-tensors, modelopt, modelopt_fp4, mxfp4, bitsandbytes, gguf ..."""
    weight_bits: float = 16
    group_size: int | None = None
    """Weights that share a scale; None or -1: one per output channel or per tensor."""
    scale_bits: int = 16
    zero_points: bool = False
    block: tuple[int, int] | None = None
    """Block of fp8 weights that shares one float32 scale (DeepSeek: 128 x 128)."""
    ignored: tuple[str, ...] = ()
    """Modules that stay as they are: names, name parts or ``re:`` patterns, as the config lists them."""
    experts_only: bool = False
    overrides: tuple[tuple[tuple[str, ...], Quantization], ...] = ()
    """Modules stored in another way (mixed precision): patterns as in ``ignored``, and how. The first match counts."""
    kv_cache_dtype: str | None = None
    """fp8 where the checkpoint brings scales for an fp8 KV cache and asks for it."""


@dataclass(frozen=True)
class Drafter:
    """Prediction layers that a checkpoint carries for speculative decoding; loaded only when asked for."""

    layers: int
    layer: Layer | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What memory depends on, of one model."""

    architecture: str
    """First of the config's ``architectures``."""
    model_type: str
    hidden_size: int
    vocabulary: int
    layers: tuple[Layer, ...]
    """The decoder's; an encoder-only model's are here too, with role ``encoder``."""
    encoder_layers: tuple[Layer, ...] = ()
    """Of an encoder-decoder."""
    context_tokens: int = 0
    """The longest that vLLM derives from the config (rope scaling counted), 0 when it says nothing."""
    tied_embeddings: bool = False
    learned_positions: int = 0
    """Rows of a learned position table."""
    rotary_size: int = 0
    """Elements of a head that are rotated; 0 without rotary positions."""
    dtype: str = "bfloat16"
    """Of the checkpoint's unquantised tensors, as torch names it."""
    quantization: Quantization | None = None
    towers: tuple[Tower, ...] = ()
    drafter: Drafter | None = None
    runner: Literal["generate", "pooling"] = "generate"
    labels: int = 0
    """Outputs of a classification head (reranking models)."""
    encoder_tokens: int = 0
    """What an encoder-decoder's encoder reads at most."""
    notes: tuple[str, ...] = ()
    """What was assumed where the config is silent: shown to the user."""
    final_norms: int = 1
    """Vectors of the norm after the last layer: 2 where it has a bias, 0 without one (BERT, OLMo 1)."""
    extra_parameters: int = 0
    """Weights outside of layers, embeddings, head and towers, counted from the config (per-layer embeddings ...)."""
    raw: dict[str, object] = field(default_factory=dict, compare=False, repr=False)
    """The config it was read from (the text part first where the two differ), for what few families need."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, or ``count`` of the same shape."""

    name: str
    """As in the checkpoint; where ``count`` > 1, that of one of them."""
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it: F32, BF16, F16, F8_E4M3, I32, U8, F4 ..."""
    bytes: int
    """Of one."""
    count: int = 1
