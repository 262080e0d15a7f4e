"""Shares of several engines on one device: never more than there is, never less than is needed, nothing left over."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB
from vllm_autofit.memory.budget import UTILIZATION_STEP
from vllm_autofit.planning.stage_shares import Claim, Room, share_out


def room(total: float = 80, free: float | None = None, headroom: float = 0) -> Room:
    """A device, idle unless told otherwise; in GiB."""
    return Room(int(total * GIB), int((total if free is None else free) * GIB), int(headroom * GIB))


def claim(stage: int, devices: tuple[int, ...] = (0,), weight: float = 0.5, **more: float) -> Claim:
    """A claim; ``least`` and ``beside`` in GiB."""
    least, beside = int(more.pop("least", 0) * GIB), int(more.pop("beside", 0) * GIB)
    return Claim(stage, devices, weight, more.get("fixed"), least, beside)


def test_what_is_free_is_divided_as_the_weights_say() -> None:
    sharing = share_out([claim(0, weight=0.6), claim(1, weight=0.2)], {0: room()})
    assert sharing.shares == {0: 0.75, 1: 0.25}
    assert sharing.fits


def test_headroom_counts_once_and_what_is_beside_for_every_process() -> None:
    claims = [claim(0, beside=2), claim(1, beside=2, devices=(0, 0))]
    sharing = share_out(claims, {0: room(100, headroom=4)})
    assert sharing.shares == pytest.approx({0: 0.30, 1: 0.30})
    (device,) = sharing.devices
    assert (device.beside_bytes, device.to_share_bytes) == (6 * GIB, 90 * GIB)


def test_what_others_hold_is_not_shared_out() -> None:
    assert share_out([claim(0)], {0: room(80, free=20)}).shares == {0: 0.25}


def test_a_need_comes_before_the_weights() -> None:
    claims = [claim(0, weight=0.9, least=20), claim(1, weight=0.1, least=16)]
    assert share_out(claims, {0: room()}).shares == {0: 0.8, 1: 0.2}


def test_a_share_that_stays_is_taken_off_first() -> None:
    assert share_out([claim(0, fixed=0.4), claim(1), claim(2)], {0: room()}).shares == {0: 0.4, 1: 0.3, 2: 0.3}


def test_the_tightest_device_decides_for_a_stage_on_several_and_the_rest_goes_to_others() -> None:
    claims = [claim(0, (0, 1, 2), weight=0.6), claim(1, (2,), weight=0.2), claim(2, (1,), weight=0.1)]
    sharing = share_out(claims, {number: room() for number in range(3)})
    assert sharing.shares == {0: 0.75, 1: 0.25, 2: 0.25}
    assert [each.asked_bytes for each in sharing.devices] == [60 * GIB, 80 * GIB, 80 * GIB]


def test_devices_may_differ() -> None:
    sharing = share_out([claim(0, (0, 1)), claim(1, (1,))], {0: room(80), 1: room(40, free=30)})
    assert sharing.shares == {0: 0.375, 1: 0.375}


@pytest.mark.parametrize(
    ("claims", "missing"),
    [
        ([claim(0, least=50), claim(1, least=40)], 10),
        ([claim(0, fixed=0.9), claim(1, fixed=0.2)], 8),
        ([claim(0, fixed=1.0), claim(1, least=1)], 1),
        ([claim(0, beside=50), claim(1, beside=40)], 10),
    ],
)
def test_what_does_not_fit_gets_no_share(claims: list[Claim], missing: float) -> None:
    sharing = share_out(claims, {0: room()})
    assert not sharing.fits
    assert sharing.shares == {}
    assert sharing.devices[0].missing_bytes == pytest.approx(missing * GIB, abs=80 * GIB * UTILIZATION_STEP)


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[Claim], dict[int, Room]]:
    """Stages on up to three devices."""
    size = st.integers(4 * GIB, 300 * GIB)
    rooms = {}
    for number in range(3):
        total = draw(size)
        rooms[number] = Room(total, draw(st.integers(0, total)), draw(st.integers(0, GIB)))
    share = st.floats(0.01, 1)
    claims = [
        Claim(
            stage,
            tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))),
            weight=draw(share),
            fixed=draw(st.one_of(st.none(), st.floats(0.01, 0.4))),
            least_bytes=draw(st.integers(0, 20 * GIB)),
            beside_bytes=draw(st.integers(0, GIB)),
        )
        for stage in range(draw(st.integers(1, 4)))
    ]
    return claims, rooms


@given(problems())
def test_shares_never_exceed_a_device_and_waste_nothing(problem: tuple[list[Claim], dict[int, Room]]) -> None:
    claims, rooms = problem
    sharing = share_out(claims, rooms)
    if not sharing.fits:
        assert sharing.shares == {}
        return
    left = {}
    for number, each in rooms.items():
        here = [(claim.devices.count(number), claim) for claim in claims if number in claim.devices]
        asked = sum(count * math.ceil(each.total_bytes * sharing.shares[claim.stage]) for count, claim in here)
        beside = sum(count * claim.beside_bytes for count, claim in here)
        left[number] = each.free_bytes - each.headroom_bytes - beside - asked
        assert left[number] >= 0 or not here
    for claim in claims:
        share = sharing.shares[claim.stage]
        if claim.fixed is not None:
            assert share == claim.fixed
            continue
        assert 0 <= share <= 1
        steps = [UTILIZATION_STEP * rooms[number].total_bytes for number in claim.devices]
        assert all(share * rooms[number].total_bytes >= claim.least_bytes - 1 for number in claim.devices)
        # It could have more only where a device of its own is full, but for the rounding of the stages on it.
        rounding = sum(each.devices.count(number) for each in claims for number in set(claim.devices))
        assert share > 1 - 2 * UTILIZATION_STEP or any(
            left[number] <= (1 + rounding) * max(steps) for number in claim.devices
        )
