"""What a file says about one stage. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SHARE = "gpu_memory_utilization"


@dataclass(frozen=True)
class Place:
    """Where in a file the share of a stage stands, or where it belongs."""

    section: tuple[str, ...]
    """The keys that lead to the list of stages: ``stages``, ``stage_args``, or ``platforms``, ``cuda``, ``stages``."""
    inner: str | None = None
    """The mapping inside of the stage's entry that holds its options, if they aren't in the entry itself."""


@dataclass(frozen=True)
class Stage:
    """One stage, with what its file, the files that it is based on and the platform's section say together."""

    id: int
    name: str
    """What part of the model it runs; empty where the file doesn't say."""
    devices: tuple[int, ...]
    """One entry per process that takes memory, so that a device with two replicas stands here twice."""
    place: Place
    share: float | None = None
    """As it stands; None where nothing is said."""
    share_from: Path | None = None
    """The file that says it."""
    eager: bool = False
    max_num_seqs: int | None = None
    kv_cache_bytes: int = 0
    """Of a KV cache whose size is given; 0 where vLLM sizes it."""
    config_name: str | None = None
    """The part of the model's config that describes it."""
    diffusion: bool = False
    """It runs no engine of vLLM's but one of vLLM-Omni's, which captures no CUDA graphs."""
    ranks: int = 1
    """Processes of one replica."""
    options: tuple[tuple[str, object], ...] = ()
    """vLLM's options of the stage, by name."""

    @property
    def label(self) -> str:
        """As messages name it."""
        return f"stage {self.id}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class StageFile:
    """A file of stages: its text, and what it means."""

    path: Path
    text: str
    stages: tuple[Stage, ...]
    base: str | None = None
    """The file that it is based on, as it names it."""
    pipeline: str | None = None
    """vLLM-Omni's name for how the stages work together, where a file says it."""
    names: tuple[str, ...] = ()
    """Of the file, and of all that it is based on."""
