"""Several engines on one device: how much of it each may ask for, when none shall take what another needs.

What vLLM-Omni calls a stage is an engine of its own, with its own ``gpu_memory_utilization``. Each asks for that part
of the whole device, whoever else lives there, so the shares must sum to no more than

    free - headroom (once per device) - what every process takes beside its share

and a stage on several devices has one share for all of them, so its tightest device decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllm_autofit.memory.budget import UTILIZATION_STEP, utilization


@dataclass(frozen=True)
class Claim:
    """One stage, and what it wants of the devices that it lives on."""

    stage: int
    devices: tuple[int, ...]
    """One entry per process, so that a device with two replicas stands here twice."""
    weight: float
    """What is left beside needs and fixed shares is divided in proportion to these."""
    fixed: float | None = None
    """A share that stays as it is."""
    least_bytes: int = 0
    """What one process needs inside of its share, whatever is left for others."""
    beside_bytes: int = 0
    """What one process takes outside of its share: CUDA context, CUDA graphs that vLLM doesn't count."""


@dataclass(frozen=True)
class Room:
    """One device before any of the stages takes of it."""

    total_bytes: int
    free_bytes: int
    headroom_bytes: int


@dataclass(frozen=True)
class DeviceSum:
    """One device with all that the stages take of it."""

    device: int
    room: Room
    beside_bytes: int
    asked_bytes: int
    """Of all stages together: what vLLM makes of their shares. Where it doesn't fit, what the stages need at least."""

    @property
    def to_share_bytes(self) -> int:
        """What the shares may sum to; negative where not even the processes have room."""
        return self.room.free_bytes - self.room.headroom_bytes - self.beside_bytes

    @property
    def missing_bytes(self) -> int:
        """0 where it fits."""
        return max(0, self.asked_bytes - self.to_share_bytes)


@dataclass(frozen=True)
class Sharing:
    """The share of each stage, and the sum on each device. Without shares where something is missing."""

    shares: Mapping[int, float]
    devices: tuple[DeviceSum, ...]

    @property
    def fits(self) -> bool:
        """Whether every device holds its stages."""
        return not any(each.missing_bytes for each in self.devices)


def share_out(claims: Sequence[Claim], rooms: Mapping[int, Room]) -> Sharing:
    """The shares: in proportion to the weights, none below its need, none above what its tightest device allows.

    Args:
        claims: one per stage; every device of theirs is in ``rooms``.
        rooms: by the number of the device.
    """
    least = {claim.stage: _least(claim, rooms) for claim in claims}
    used = sorted({device for claim in claims for device in claim.devices})
    needed = tuple(_sum(device, claims, least, rooms) for device in used)
    if any(each.missing_bytes for each in needed):
        return Sharing({}, needed)
    shares = {claim.stage: claim.fixed for claim in claims if claim.fixed is not None}
    while len(shares) < len(claims):
        levels = {
            device: _level(device, claims, shares, least, rooms)
            for device in used
            if any(device in claim.devices and claim.stage not in shares for claim in claims)
        }
        tightest = min(levels, key=lambda device: levels[device])
        for claim in claims:
            if tightest in claim.devices and claim.stage not in shares:
                wanted = max(least[claim.stage], levels[tightest] * claim.weight)
                shares[claim.stage] = _cut(wanted, claim, rooms)
    return Sharing(shares, tuple(_sum(device, claims, shares, rooms) for device in used))


def _least(claim: Claim, rooms: Mapping[int, Room]) -> float:
    """The share below which the stage can't start: the one that stays, or its need rounded up to a step."""
    if claim.fixed is not None:
        return claim.fixed
    part = max(claim.least_bytes / rooms[device].total_bytes for device in claim.devices)
    return math.ceil(part / UTILIZATION_STEP - 1e-9) * UTILIZATION_STEP


def _level(
    device: int,
    claims: Sequence[Claim],
    shares: Mapping[int, float],
    least: Mapping[int, float],
    rooms: Mapping[int, Room],
) -> float:
    """What each unit of weight may get on one device, once the stages that need more than that have what they need."""
    here = [claim for claim in claims if device in claim.devices]
    open_ = [claim for claim in here if claim.stage not in shares]
    left = _sum(device, claims, shares, rooms).to_share_bytes / rooms[device].total_bytes
    left -= sum(claim.devices.count(device) * shares[claim.stage] for claim in here if claim.stage in shares)
    while open_:
        level = left / sum(claim.devices.count(device) * claim.weight for claim in open_)
        needy = [claim for claim in open_ if level * claim.weight < least[claim.stage]]
        if not needy:
            return level
        left -= sum(claim.devices.count(device) * least[claim.stage] for claim in needy)
        open_ = [claim for claim in open_ if claim not in needy]
    return 0.0


def _cut(share: float, claim: Claim, rooms: Mapping[int, Room]) -> float:
    """Rounded down, so that what vLLM makes of it is no more than was meant on any device."""
    totals = {rooms[device].total_bytes for device in claim.devices}
    return min(utilization(math.floor(share * total + 1e-6), total) for total in totals)


def _sum(device: int, claims: Sequence[Claim], shares: Mapping[int, float], rooms: Mapping[int, Room]) -> DeviceSum:
    """What vLLM makes of the shares on one device; a stage without one counts with what it takes beside it."""
    room, here = rooms[device], [claim for claim in claims if device in claim.devices]
    return DeviceSum(
        device=device,
        room=room,
        beside_bytes=sum(claim.devices.count(device) * claim.beside_bytes for claim in here),
        asked_bytes=sum(
            claim.devices.count(device) * math.ceil(room.total_bytes * shares.get(claim.stage, 0)) for claim in here
        ),
    )
