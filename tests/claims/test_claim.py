"""What follows from the claims on a device for the next engine."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB
from vllm_autofit.claims.claim import (
    PLANNED_SECONDS,
    START_SECONDS,
    Claim,
    Part,
    as_document,
    from_document,
    to_come,
)

CLOCK = 1000.0


def claim(state: Any = "starting", *, age: float = 1.0, pid: int = 7, **parts: Part) -> Claim:
    devices = parts or {"gpu": Part(bytes=10 * GIB, growth=GIB)}
    return Claim("a", {"pid": pid}, "me", "some/model", "2026-11-21T12:00:00+00:00", state, CLOCK - age, 1, devices)


def nothing(one: Claim, device: str) -> int:
    return 0


@pytest.mark.parametrize("state", ["planning", "planned", "starting", "failed"])
def test_an_engine_that_comes_up_is_waited_for(state: str) -> None:
    assert claim(state).is_coming_up(CLOCK)


def test_an_engine_that_serves_is_not_waited_for() -> None:
    assert not claim("serving").is_coming_up(CLOCK)


@pytest.mark.parametrize("state", ["planning", "planned"])
def test_a_plan_that_no_engine_follows_is_waited_for_a_short_time_only(state: str) -> None:
    assert claim(state, age=PLANNED_SECONDS / 2).is_coming_up(CLOCK)
    assert not claim(state, age=PLANNED_SECONDS).is_coming_up(CLOCK)


@pytest.mark.parametrize("state", ["starting", "failed"])
def test_no_start_is_waited_for_for_ever(state: str) -> None:
    assert not claim(state, age=START_SECONDS).is_coming_up(CLOCK)


def test_what_a_starting_engine_has_not_taken_yet_is_still_to_come() -> None:
    assert to_come([claim()], "gpu", CLOCK, nothing) == 11 * GIB
    assert to_come([claim()], "gpu", CLOCK, lambda one, device: 4 * GIB) == 7 * GIB


def test_what_it_took_beyond_its_claim_gives_nothing_back() -> None:
    assert to_come([claim()], "gpu", CLOCK, lambda one, device: 40 * GIB) == GIB


def test_a_start_that_takes_longer_than_it_is_waited_for_keeps_its_claim() -> None:
    assert to_come([claim(age=2 * START_SECONDS)], "gpu", CLOCK, nothing) == 11 * GIB


@pytest.mark.parametrize("state", ["planning", "planned", "failed"])
def test_a_plan_that_was_given_up_claims_nothing(state: str) -> None:
    assert to_come([claim(state, age=2 * START_SECONDS)], "gpu", CLOCK, nothing) == 0


def test_of_an_engine_that_serves_only_its_growth_is_to_come() -> None:
    assert to_come([claim("serving")], "gpu", CLOCK, nothing) == GIB


def test_a_sleeping_engine_keeps_the_room_that_it_wakes_into() -> None:
    asleep = claim("serving", gpu=Part(bytes=10 * GIB, growth=GIB, asleep=9 * GIB))
    assert to_come([asleep], "gpu", CLOCK, nothing) == 10 * GIB


def test_claims_on_other_devices_do_not_count() -> None:
    assert to_come([claim()], "another", CLOCK, nothing) == 0


def test_claims_of_several_engines_add_up() -> None:
    assert to_come([claim(), claim("serving"), claim("planned")], "gpu", CLOCK, nothing) == 23 * GIB


sizes = st.integers(0, 2**50)
parts = st.builds(Part, sizes, sizes, sizes)
claims = st.builds(
    Claim,
    st.text(),
    st.fixed_dictionaries({"pid": st.integers(1, 2**22), "boot": st.text()}),
    st.text(),
    st.text(),
    st.text(),
    st.sampled_from(["planning", "planned", "starting", "failed", "serving"]),
    st.floats(0, 1e9),
    st.integers(0, 64),
    st.dictionaries(st.text(), parts, max_size=3),
)


@given(claims)
def test_a_claim_survives_json(one: Claim) -> None:
    assert from_document(json.loads(json.dumps(as_document(one)))) == one


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=5))
def test_what_is_no_claim_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="no claim"):
        from_document(document)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "dancing"},
        {"process": {}},
        {"process": {"pid": -1}},
        {"process": {"pid": "x"}},
        {"devices": {"gpu": {"bytes": None}}},
        {"devices": {"gpu": {"unknown": 1}}},
        {"devices": []},
        {"changed": None},
        {"surprise": 1},
    ],
)
def test_a_damaged_claim_is_refused(change: dict[str, Any]) -> None:
    document = as_document(claim(pid=os.getpid()))
    with pytest.raises(ValueError, match="no claim"):
        from_document({**document, **change})


@given(claims, st.floats(0, 1e9), sizes)
def test_what_is_to_come_is_never_negative_and_never_more_than_claimed(one: Claim, clock: float, taken: int) -> None:
    for device, part in one.devices.items():
        coming = to_come([one], device, clock, lambda claim, place: taken)
        assert 0 <= coming <= part.growth + max(part.bytes, part.asleep)
        alone = dataclasses.replace(one, devices={device: part})
        assert to_come([alone], device, clock, lambda claim, place: taken) == coming
