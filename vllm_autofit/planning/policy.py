"""What is given up first when memory is short, and what is never given up: one policy per kind of user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Step = Literal["context", "sequences", "fp8", "eager"]


@dataclass(frozen=True)
class Policy:
    """The order of concessions, and two floors."""

    order: tuple[Step, ...]
    """Each only as far as needed, before the next one is touched."""
    requests: int
    """Concurrency floor: requests of the shortest acceptable context that must fit at once."""
    sequences: int
    """``max_num_seqs`` is never lowered under this to make a model fit."""
    full_requests: int = 1
    """Requests of the chosen context that must fit at once."""


POLICIES: Mapping[str, Policy] = {
    "balanced": Policy(("context", "sequences", "fp8", "eager"), requests=2, sequences=8),
    "throughput": Policy(("context", "fp8", "sequences", "eager"), requests=8, sequences=64, full_requests=4),
    "context": Policy(("sequences", "fp8", "eager", "context"), requests=1, sequences=1),
    "safe": Policy(("context", "sequences", "eager"), requests=2, sequences=8),
}
"""``balanced`` follows the order in which users notice least. ``throughput`` keeps many requests in flight and would
rather halve the cache's precision; ``context`` the opposite. ``safe`` never changes the model's numbers."""
