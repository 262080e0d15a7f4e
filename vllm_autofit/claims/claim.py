"""One engine's claim on the memory of its devices, and what follows from it for the next engine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

State = Literal["planning", "planned", "starting", "failed", "serving"]
"""``planned``: an engine may follow; ``starting``: it comes up; ``failed``: the same start may be made again."""

START_SECONDS = 600.0
"""Longest that a start is waited for: by then vLLM's own front end has given its engine up
(``VLLM_ENGINE_READY_TIMEOUT_S``, 600 by default in vLLM 0.32)."""
PLANNED_SECONDS = 60.0
"""The same for a plan, and for a config that no engine follows. Planning may fetch a config, and takes seconds; between
config and engine vLLM loads a tokenizer."""

Taken = Callable[["Claim", str], int]
"""Bytes that a claim's engine holds of a device already; 0 where that can't be seen."""


@dataclass(frozen=True)
class Part:
    """What is claimed of one device, in bytes.

    Attributes:
        bytes: what the engine will take, its start-up included.
        growth: what it may take beyond that while it serves.
        asleep: what it gave back when it was put to sleep, and takes again when it wakes.
    """

    bytes: int = 0
    growth: int = 0
    asleep: int = 0


@dataclass(frozen=True)
class Claim:
    """What one start claims.

    Attributes:
        id: tells it from others.
        process: the one that planned it (``ending.this_process``); the claim is as dead as this.
        user: its owner.
        model: what it serves.
        since: when it was made, as people read it.
        state: how far the start has come.
        changed: when it came so far, on the machine's monotonic clock.
        engines: engines that are still to come up (data parallel).
        devices: what is claimed of each, by the device's identity.
    """

    id: str
    process: Mapping[str, Any]
    user: str
    model: str
    since: str
    state: State
    changed: float
    engines: int
    devices: Mapping[str, Part]

    @property
    def pid(self) -> int:
        """Of the process that planned it."""
        return int(self.process["pid"])

    def counts_like(self, process: Mapping[str, Any]) -> bool:
        """Whether its process's number means the same to another process, and not one of another container."""
        return all(self.process.get(name) == process.get(name) for name in ("boot", "pid_space"))

    def is_coming_up(self, clock: float) -> bool:
        """Whether its engine may be measuring the device's memory, so that others had better wait."""
        if self.state == "serving":
            return False
        longest = PLANNED_SECONDS if self.state in ("planning", "planned") else START_SECONDS
        return clock - self.changed < longest


def to_come(claims: Iterable[Claim], device: str, clock: float, taken: Taken) -> int:
    """Bytes of a device that are free now, and that engines with a claim on it are going to take."""
    return sum(_to_come(claim, device, clock, taken) for claim in claims if device in claim.devices)


def _to_come(claim: Claim, device: str, clock: float, taken: Taken) -> int:
    part = claim.devices[device]
    if claim.state == "serving":
        return part.asleep + part.growth
    if claim.state != "starting" and not claim.is_coming_up(clock):
        return 0
    return max(0, part.bytes - taken(claim, device)) + part.growth


def as_document(claim: Claim) -> dict[str, Any]:
    """For JSON."""
    return asdict(claim)


def from_document(document: Any) -> Claim:
    """What ``as_document`` made.

    Raises:
        ValueError: it is something else.
    """
    try:
        devices = {
            str(device): Part(**{name: int(value) for name, value in part.items()})
            for device, part in document["devices"].items()
        }
        exact = {"devices": devices, "changed": float(document["changed"]), "engines": int(document["engines"])}
        claim = Claim(**{**document, **exact})
        known = claim.state in get_args(State) and claim.pid > 0
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(f"no claim: {error}") from error
    if not known:
        raise ValueError(f"no claim: {document!r}")
    return claim
