"""How a model is run, as far as memory depends on it. Plain data; every field has its final value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

GraphMode = Literal["none", "piecewise", "full", "full_decode_only", "full_and_piecewise"]


@dataclass(frozen=True)
class Speculation:
    """Speculative decoding."""

    method: str
    """ngram, suffix, eagle, eagle3, mtp, draft_model, medusa ..."""
    tokens: int
    """Drafted in one step."""
    model: str | None = None
    """The draft's own checkpoint, if it has one."""


@dataclass(frozen=True)
class Deployment:
    """One launch. Sizes in tokens, sequences and ranks."""

    vllm: tuple[int, int] = (0, 32)
    """Major and minor version."""
    device: Literal["cuda", "rocm", "xpu", "cpu"] = "cuda"
    device_name: str = ""
    compute_capability: tuple[int, int] | None = None
    cpu_features: frozenset[str] = frozenset()
    """Of the host, as its flags in ``/proc/cpuinfo`` name them, where vLLM's CPU backend runs on it: ``avx512_bf16``
    and ``amx_tile`` change its cache."""
    max_model_len: int = 4096
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    dtype: str = "bfloat16"
    """Of activations and of weights that aren't quantised."""
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    """Asked for at load time; None: what the checkpoint says."""
    load_format: str = "auto"
    block_size: int | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    prefill_context_parallel: int = 1
    decode_context_parallel: int = 1
    expert_parallel: bool = False
    enforce_eager: bool = False
    graph_mode: GraphMode | None = None
    """None: what this vLLM chooses."""
    graph_sizes: tuple[int, ...] | None = None
    """Batch sizes that are captured; None: what this vLLM chooses."""
    interactive: bool = False
    """``performance_mode`` is ``interactivity``: each small batch has a graph of its own size."""
    prefix_caching: bool = True
    chunked_prefill: bool = True
    hybrid_kv_cache_manager: bool = True
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    mamba_block_size: int | None = None
    mamba_cache_mode: str | None = None
    kv_cache_memory_bytes: int | None = None
    blocks_override: int | None = None
    cpu_offload_bytes: int = 0
    """Weights kept in host memory."""
    kv_offload_bytes: int = 0
    """KV cache kept in host memory; takes none of the device."""
    lora_adapters: int = 0
    """``max_loras`` where LoRA is on, else 0."""
    lora_rank: int = 16
    speculation: Speculation | None = None
    text_only: bool = False
    """No multimodal inputs: towers are neither profiled nor, with ``language_model_only``, loaded."""
    items_per_prompt: dict[str, int] | None = field(default=None, hash=False)
    """``limit_mm_per_prompt`` by modality; None: vLLM's own."""
    frontend_reserve_bytes: int = 0
    """``mm_ipc_gpu_memory_gb``: taken off the KV cache for what API servers decode on the device."""
    separate_processes: bool = True
    """Whether engine core and workers are processes of their own."""
    estimate_graphs: bool | None = None
    """VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS where set; None: what this vLLM does."""
    second_runner: bool | None = None
    """VLLM_USE_V2_MODEL_RUNNER where set; None: what this vLLM chooses."""

    @property
    def element_bytes(self) -> int:
        """Of one activation, and of one weight that isn't quantised."""
        return 4 if self.dtype in ("float32", "float") else 2

    @property
    def world(self) -> int:
        """Ranks of one engine."""
        return self.tensor_parallel * self.pipeline_parallel * self.prefill_context_parallel
