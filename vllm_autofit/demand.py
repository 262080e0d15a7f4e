"""What a model takes from a device, term by term. Plain data; ``memory`` fills it in, ``planning`` weighs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Term:
    """One term of the sum, for one rank."""

    bytes: int
    error: float = 0.0
    """Relative half-width: 95 of 100 measured starts were within it. 0 where the figure is exact."""
    why: str = ""
    """One phrase: what it is made of."""

    @property
    def error_bytes(self) -> int:
        """Half-width in bytes."""
        return round(self.bytes * self.error)


KvKind = Literal["full", "sliding", "chunked", "mla", "cross", "state"]


@dataclass(frozen=True)
class KvGroup:
    """Layers that share block tables: one block of the group serves all of them."""

    kind: KvKind
    layers: int
    block_size: int
    """Tokens."""
    page_bytes: int
    """Of one block of one layer, padding counted; of the largest where they differ."""
    window: int | None = None
    """Tokens of a sliding window or a chunk."""
    in_flight: int = 0
    """Tokens that are kept beside a window's own: those being computed."""
    fixed_blocks: int | None = None
    """Blocks of one sequence, however long it is (states, cross-attention); None where its tokens count."""


@dataclass(frozen=True)
class KvLayout:
    """How one rank's KV cache is cut up. All groups draw from one pool of blocks."""

    groups: tuple[KvGroup, ...]
    bytes_per_block: int
    """Of one block of the pool: ``available // bytes_per_block`` blocks fit."""
    block_size: int
    """Tokens of a block, as vLLM's scheduler counts it."""
    shards: int = 1
    """Ranks that a request's tokens are spread over (context parallelism)."""


@dataclass(frozen=True)
class Demand:
    """What the fullest rank takes, all its settings being final."""

    weights: Term
    activations: Term
    cuda_graphs: Term
    non_torch: Term
    """Inside of what vLLM asks for: kernels and communication buffers that appear after its check at start."""
    kv: KvLayout | None
    """None: the model has no KV cache."""
