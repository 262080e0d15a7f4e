"""Which values of vLLM's options mean something: what vLLM refuses, and what no machine could hold.

Without an upper end, a slip of the finger is arithmetic on numbers that fit into nothing. Ours are far above what
exists; the lower ends are vLLM's (``config/*.py``, read in 0.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllm_autofit.units import GIB, MOST_BYTES, MOST_RANKS, MOST_SEQUENCES, MOST_TOKENS
from vllm_autofit.values import AUTO_CONTEXT


@dataclass(frozen=True)
class Range:
    """Both ends included."""

    least: int
    most: int
    unit: str = ""

    @property
    def text(self) -> str:
        """As a message has it."""
        return f"{self.least} to {self.most}" + (f" {self.unit}" if self.unit else "")

    def holds(self, value: float) -> bool:
        """Whether it is within; what is not a number never is."""
        return self.least <= value <= self.most


RANKS = Range(1, MOST_RANKS)
SEQUENCES = Range(1, MOST_SEQUENCES)
TOKENS = Range(1, MOST_TOKENS, "tokens")
SIZE_GIB = Range(0, MOST_BYTES // GIB, "GiB")
ANY = Range(-(2**63), 2**63 - 1)

RANGES: Mapping[str, Range] = {
    "tensor_parallel_size": RANKS,
    "pipeline_parallel_size": RANKS,
    "data_parallel_size": RANKS,
    "data_parallel_size_local": Range(0, MOST_RANKS),
    "prefill_context_parallel_size": RANKS,
    "decode_context_parallel_size": RANKS,
    "nnodes": RANKS,
    "max_num_seqs": SEQUENCES,
    "max_loras": SEQUENCES,
    "max_lora_rank": SEQUENCES,
    "spec_tokens": SEQUENCES,
    "cudagraph_capture_sizes": SEQUENCES,
    "max_cudagraph_capture_size": Range(0, MOST_SEQUENCES),
    "block_size": TOKENS,
    "mamba_block_size": TOKENS,
    "max_num_batched_tokens": TOKENS,
    "num_gpu_blocks_override": Range(1, MOST_TOKENS),
    "kv_cache_memory_bytes": Range(0, MOST_BYTES, "bytes"),
    "cpu_offload_gb": SIZE_GIB,
    "kv_offloading_size": SIZE_GIB,
    "mm_processor_cache_gb": SIZE_GIB,
    "mm_ipc_gpu_memory_gb": SIZE_GIB,
}
"""By option. Others must only be numbers that a machine can count."""


def what_is_wrong(name: str, kind: str, value: object) -> str:
    """What is wrong with a value that has the type of its option already; empty where nothing is."""
    if name == "hf_overrides":
        return "" if isinstance(value, Mapping) or callable(value) else f"{value!r} is not a JSON object"
    if name in _PARTS:
        return _PARTS[name](value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _wrong_number(name, kind, value)
    return ""


def _wrong_number(name: str, kind: str, value: float) -> str:
    if name == "gpu_memory_utilization":
        return "" if 0 < value <= 1 else f"{value} is not a share of the device's memory, above 0 and at most 1"
    if kind == "context":
        auto = value == AUTO_CONTEXT
        return "" if auto or TOKENS.holds(value) else f"{value} is not within {TOKENS.text}, or auto"
    allowed = RANGES.get(name, ANY)
    return "" if allowed.holds(value) else f"{value} is not within {allowed.text}"


# What is inside JSON


def _speculation(value: object) -> str:
    if not isinstance(value, Mapping):
        return f"{value!r} is not a JSON object"
    model = value.get("model")
    if not isinstance(model, str | None):
        return f"model: {model!r} is not text"
    return _wrong_part(value, "num_speculative_tokens", SEQUENCES)


def _compilation(value: object) -> str:
    """A number is the level, and an object of vLLM's has been checked by it."""
    if isinstance(value, str | float | bool | list):
        return f"{value!r} is not a JSON object"
    if not isinstance(value, Mapping):
        return ""
    sizes = value.get("cudagraph_capture_sizes")
    if not isinstance(sizes, list | tuple | None):
        return f"cudagraph_capture_sizes: {sizes!r} is not a list"
    wrong = next((size for size in sizes or () if not _is_within(size, SEQUENCES)), None)
    if wrong is not None:
        return f"cudagraph_capture_sizes: {wrong!r} is not a whole number within {SEQUENCES.text}"
    return _wrong_part(value, "max_cudagraph_capture_size", RANGES["max_cudagraph_capture_size"])


def _items(value: object) -> str:
    """A number by modality, or an object with ``count``."""
    if not isinstance(value, Mapping):
        return f"{value!r} is not a JSON object"
    counts = {
        modality: limit.get("count", 0) if isinstance(limit, Mapping) else limit for modality, limit in value.items()
    }
    return next(filter(None, (_wrong_part(counts, modality, Range(0, MOST_SEQUENCES)) for modality in counts)), "")


_PARTS = {"speculative_config": _speculation, "compilation_config": _compilation, "limit_mm_per_prompt": _items}


def _wrong_part(content: Mapping[str, object], name: str, allowed: Range) -> str:
    value = content.get(name)
    if value is None or _is_within(value, allowed):
        return ""
    return f"{name}: {value!r} is not a whole number within {allowed.text}"


def _is_within(value: object, allowed: Range) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and allowed.holds(value)
