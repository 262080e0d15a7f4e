"""What is known of a failure. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Resource: TypeAlias = Literal["device", "host", "shm", "shared_mem_per_block", "none"]
"""What ran out: memory of the accelerator, of the machine, of ``/dev/shm``, on-chip memory of one block of a kernel."""

Phase: TypeAlias = Literal[
    "startup_check",
    "weight_load",
    "profile_run",
    "multimodal_profile",
    "no_kv_memory",
    "max_len_too_long",
    "sampler_warmup",
    "cudagraph_capture",
    "kv_alloc",
    "runtime",
    "lora_load",
    "nccl_init",
    "wake_up",
    "other",
]
"""Where in a start, or after it. ``startup_check`` is everything up to the check of free memory, the reading of the
configuration included."""

Confidence: TypeAlias = Literal["high", "medium", "low"]
"""high: a message that means one thing. medium: the message is plain, its place or its meaning is inferred. low: a
guess, or nothing that was recognised."""

Numbers: TypeAlias = Mapping[str, float]
"""Figures of the message. Names that end in ``_bytes`` hold bytes, the others tokens, sequences, blocks or shares."""


@dataclass(frozen=True)
class Remedy:
    """One thing to change.

    Attributes:
        change: what to do, in a few words.
        flag: the option or variable with its value, as one would type it; empty where no setting does it.
        why: what that buys.
    """

    change: str
    flag: str
    why: str


@dataclass(frozen=True)
class Failure:
    """Why something failed.

    Attributes:
        is_capacity: whether memory was too small for what was asked: other settings or a larger machine cure it.
        resource: what ran out. For a failure that isn't one of capacity, what its message is about.
        phase: where.
        numbers: figures of its message.
        cause: one sentence.
        remedies: what to change, the first first.
        confidence: how sure this is.
    """

    is_capacity: bool
    resource: Resource
    phase: Phase
    cause: str
    numbers: Numbers = field(default_factory=dict)
    remedies: tuple[Remedy, ...] = ()
    confidence: Confidence = "low"
