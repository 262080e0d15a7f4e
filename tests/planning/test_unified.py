"""Plans for devices whose memory is the host's: what the operating system needs is never given away."""

from __future__ import annotations

import pytest

from tests.builders import GIB, cuda, request
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.values import Budget, Lessons, Measured, Rules

WENT_WELL = Lessons(headroom=Measured(GIB, "run"), proven_asked=Measured(112 * GIB, "run"))


def budget(lessons: Lessons, rules: Rules | None = None, *, shares_host: bool = True) -> Budget:
    device = cuda(120, free_gib=116, shares_host=shares_host)
    found = make_plan(request(), [device], lessons, rules or Rules()).budget
    assert found is not None
    return found


def test_a_start_that_went_well_leaves_the_host_no_less() -> None:
    assert budget(WENT_WELL).headroom_bytes == budget(Lessons()).headroom_bytes == 12 * GIB
    assert budget(WENT_WELL).asked_bytes == budget(Lessons()).asked_bytes
    own_memory = budget(WENT_WELL, shares_host=False)
    assert own_memory.asked_bytes > budget(Lessons(), shares_host=False).asked_bytes


def test_one_that_ran_out_leaves_it_more() -> None:
    assert budget(Lessons(least_headroom=Measured(20 * GIB, "run"))).headroom_bytes == 20 * GIB


def test_a_measured_start_up_takes_the_estimates_place() -> None:
    learned = budget(Lessons(startup_overhead=Measured(4 * GIB, "run")))
    assert (learned.startup_overhead_bytes, learned.startup_overhead_source) == (4 * GIB, "record")


@pytest.mark.parametrize("headroom", [GIB, 30 * GIB])
def test_the_users_headroom_counts_as_it_is(headroom: int) -> None:
    assert budget(WENT_WELL, Rules(headroom_bytes=headroom)).headroom_bytes == headroom
