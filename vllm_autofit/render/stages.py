"""How the devices were shared out between stages: one sentence for each device, and one for each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vllm_autofit.planning.stage_shares import Claim, DeviceSum, Sharing
from vllm_autofit.stages.claims import Need
from vllm_autofit.stages.stage import SHARE, Stage
from vllm_autofit.units import GIB


def sharing_lines(
    sharing: Sharing,
    stages: Sequence[Stage],
    claims: Sequence[Claim],
    needs: Mapping[int, Need],
    reasons: Mapping[int, str],
) -> Iterator[str]:
    """What is shared out on each device, then the share of each stage and why.

    Args:
        sharing: one that fits.
        stages: of the file.
        claims: what they claim.
        needs: of those whose part of the model is known.
        reasons: why a share stays, by the number of the stage.
    """
    by_number = {claim.stage: claim for claim in claims}
    for device in sharing.devices:
        yield _device_line(device, sum(claim.devices.count(device.device) for claim in claims))
    for stage in stages:
        claim = by_number.get(stage.id)
        if claim is None:
            yield f"{stage.label}: lives on the host, so its share is left as it is"
        else:
            yield _stage_line(stage, claim, sharing, needs.get(stage.id), reasons.get(stage.id))


def shortage_lines(sharing: Sharing, stages: Sequence[Stage], claims: Sequence[Claim]) -> Iterator[str]:
    """What doesn't fit where, and what would help."""
    by_number = {stage.id: stage for stage in stages}
    for device in sharing.devices:
        if not device.missing_bytes:
            continue
        here = [claim for claim in claims if device.device in claim.devices]
        parts = ", ".join(_at_least(by_number[claim.stage], claim, device) for claim in here)
        fixed = any(claim.fixed is not None for claim in here)
        kept = any(by_number[claim.stage].kv_cache_bytes for claim in here)
        remedies = [
            "lower the shares that stay, or give them up with --refill" if fixed else "",
            "lower kv_cache_memory_bytes" if kept else "",
            "move a stage to another device" if len(here) > 1 else "",
            "take a larger device, or free this one",
        ]
        yield (
            f"device {device.device} doesn't hold its stages: {_gib(device.missing_bytes)} GiB short. {parts}; "
            f"{_gib(device.to_share_bytes)} GiB are there to share ({_account(device)}). "
            f"Would help: {'; '.join(filter(None, remedies))}"
        )


def _device_line(device: DeviceSum, processes: int) -> str:
    return (
        f"device {device.device}: {_gib(device.to_share_bytes)} of {_gib(device.room.total_bytes)} GiB to share "
        f"between {processes} process{'es' if processes > 1 else ''} ({_account(device)}); they ask for "
        f"{_gib(device.asked_bytes)}"
    )


def _account(device: DeviceSum) -> str:
    return (
        f"{_gib(device.room.free_bytes)} free, less {_gib(device.room.headroom_bytes)} headroom and "
        f"{_gib(device.beside_bytes)} beside the shares: CUDA contexts and graphs"
    )


def _stage_line(stage: Stage, claim: Claim, sharing: Sharing, need: Need | None, reason: str | None) -> str:
    share = sharing.shares[stage.id]
    total = min(each.room.total_bytes for each in sharing.devices if each.device in claim.devices)
    where = ", ".join(map(str, sorted(set(claim.devices))))
    line = f"{stage.label} on {where}: {SHARE} {share} ({_gib(share * total)} GiB)"
    if reason is not None:
        return f"{line} stays: {reason}"
    said = "the file gives none" if stage.share is None else f"the file says {stage.share}"
    if need is None:
        return f"{line}; {said}. What it needs isn't known, so it has its part in the file's proportion"
    return f"{line}; {said}. It needs at least {_gib(need.bytes)} GiB ({need.why})"


def _at_least(stage: Stage, claim: Claim, device: DeviceSum) -> str:
    if claim.fixed is not None:
        return f"{stage.label} asks for {claim.fixed} ({_gib(claim.fixed * device.room.total_bytes)} GiB), which stays"
    return f"{stage.label} needs {_gib(claim.least_bytes)} GiB"


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"
