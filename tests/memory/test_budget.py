"""The sum for one device, over every size that a device may have."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st

from tests.builders import GIB, MIB
from vllm_autofit.memory.budget import UTILIZATION_STEP, asked_bytes, utilization

sizes = st.integers(0, 16 * 2**40)
round_totals = st.integers(30_000, 2**40 // 1000).map(lambda tens: tens * 10_000)
"""Of these every step of utilisation is a whole number of bytes, which floats miss now and then."""
totals = st.integers(256 * MIB, 16 * 2**40) | round_totals
steps = st.integers(1, 10_000)
ranks = st.integers(1, 64)


def vllm_requests(total_bytes: int, value: float) -> int:
    """What vLLM (0.10 to 0.33) asks of a device for a utilisation."""
    return math.ceil(total_bytes * value)


def test_what_is_asked_leaves_overhead_and_headroom_free() -> None:
    assert asked_bytes(free_bytes=70 * GIB, overhead_bytes=1 * GIB, headroom_bytes=2 * GIB, ranks=1) == 67 * GIB


def test_ranks_that_share_a_device_share_what_may_be_asked() -> None:
    assert asked_bytes(free_bytes=30 * GIB, overhead_bytes=2 * GIB, headroom_bytes=4 * GIB, ranks=3) == 8 * GIB


def test_nothing_is_asked_of_a_device_that_is_too_full() -> None:
    assert asked_bytes(free_bytes=GIB, overhead_bytes=GIB, headroom_bytes=GIB, ranks=1) == 0


@given(sizes, sizes, sizes, ranks)
def test_all_ranks_together_never_take_overhead_or_headroom(
    free: int, overhead: int, headroom: int, count: int
) -> None:
    asked = asked_bytes(free, overhead, headroom, count)
    assert 0 <= asked * count <= max(0, free - overhead - headroom)


@given(sizes, sizes, sizes, sizes, ranks)
def test_more_free_memory_never_means_asking_for_less(
    free: int, more: int, overhead: int, headroom: int, count: int
) -> None:
    assert asked_bytes(free + more, overhead, headroom, count) >= asked_bytes(free, overhead, headroom, count)


def test_a_utilisation_has_four_decimals_and_is_cut_downwards() -> None:
    assert utilization(asked=2 * GIB, total_bytes=3 * GIB) == 0.6666
    assert utilization(asked=72 * GIB, total_bytes=80 * GIB) == 0.9
    assert utilization(asked=0, total_bytes=80 * GIB) == 0.0


def test_a_utilisation_is_at_most_one() -> None:
    assert utilization(asked=90 * GIB, total_bytes=80 * GIB) == 1.0


@given(sizes, totals)
@example(asked=round(0.29 * 80 * GIB), total_bytes=80 * GIB)
def test_vllm_never_asks_for_more_than_was_meant(asked: int, total_bytes: int) -> None:
    assert vllm_requests(total_bytes, utilization(asked, total_bytes)) <= asked


@given(sizes, totals)
def test_the_next_step_up_would_be_too_much(asked: int, total_bytes: int) -> None:
    above = round(utilization(asked, total_bytes) + UTILIZATION_STEP, 4)
    assert above > 1.0 or vllm_requests(total_bytes, above) > asked


@given(totals, steps)
@example(total_bytes=3 * 10**8, step=2900)
def test_a_utilisation_that_vllm_was_asked_with_is_found_again(total_bytes: int, step: int) -> None:
    value = round(step * UTILIZATION_STEP, 4)
    assert utilization(vllm_requests(total_bytes, value), total_bytes) == value


@given(totals | st.integers(10**13, 10**14), steps)
@example(total_bytes=10**14, step=9200)
def test_one_byte_less_than_that_gives_the_step_below(total_bytes: int, step: int) -> None:
    value, below = round(step * UTILIZATION_STEP, 4), round((step - 1) * UTILIZATION_STEP, 4)
    assert utilization(vllm_requests(total_bytes, value) - 1, total_bytes) == below


@given(round_totals, steps)
def test_a_step_that_is_a_whole_number_of_bytes_is_not_overstepped(total_bytes: int, step: int) -> None:
    asked = total_bytes // 10_000 * step
    value = utilization(asked, total_bytes)
    assert vllm_requests(total_bytes, value) <= asked
    assert value >= round((step - 1) * UTILIZATION_STEP, 4)


@given(sizes, sizes, totals)
def test_asking_for_more_never_gives_a_smaller_utilisation(asked: int, more: int, total_bytes: int) -> None:
    assert utilization(asked, total_bytes) <= utilization(asked + more, total_bytes)


@given(sizes, totals)
def test_a_utilisation_is_a_fraction_with_at_most_four_decimals(asked: int, total_bytes: int) -> None:
    value = utilization(asked, total_bytes)
    assert 0.0 <= value <= 1.0
    assert value == round(value, 4)
    assert math.copysign(1, value) == 1
