"""The last resorts: overhead and headroom when neither a record nor the user says more."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, MIB
from vllm_autofit.memory.overhead import headroom, startup_overhead
from vllm_autofit.settings import POLICIES

Kind = Literal["cuda", "cpu"]
kinds: st.SearchStrategy[Kind] = st.sampled_from(["cuda", "cpu"])
totals = st.integers(0, 16 * 2**40)


def test_one_cuda_rank_takes_a_context() -> None:
    assert startup_overhead("cuda", ranks=1, processes=True) == 650 * MIB


@pytest.mark.parametrize("ranks", [2, 8])
def test_cuda_ranks_that_talk_take_buffers_too_and_each_has_its_own_device(ranks: int) -> None:
    assert startup_overhead("cuda", ranks, processes=True) == (650 + 512) * MIB


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_cpu_ranks_share_the_host_so_their_processes_add_up(ranks: int) -> None:
    assert startup_overhead("cpu", ranks, processes=True) == ranks * GIB


def test_an_engine_in_the_callers_process_takes_little() -> None:
    assert startup_overhead("cpu", ranks=1, processes=False) == 256 * MIB


@given(kinds, st.integers(1, 63), st.booleans())
def test_one_more_rank_never_takes_less(kind: Kind, ranks: int, processes: bool) -> None:
    assert 0 < startup_overhead(kind, ranks, processes) <= startup_overhead(kind, ranks + 1, processes)


@pytest.mark.parametrize(
    ("kind", "total", "expected"),
    [
        ("cuda", 8 * GIB, 512 * MIB + 8 * GIB // 100),
        ("cuda", 80 * GIB, 512 * MIB + 80 * GIB // 100),
        ("cpu", 8 * GIB, 1 * GIB),
        ("cpu", 20 * GIB, 1 * GIB),
        ("cpu", 200 * GIB, 10 * GIB),
    ],
)
def test_headroom_grows_with_the_device(kind: Kind, total: int, expected: int) -> None:
    assert headroom(kind, total, "balanced") == expected


def test_a_device_that_is_known_to_serve_at_097_keeps_less_than_that_leaves() -> None:
    total = int(94.97 * GIB)
    left_at_097 = total - 0.97 * total
    assert headroom("cuda", total, "balanced") + startup_overhead("cuda", 1, True) < left_at_097


@given(kinds, totals)
def test_only_the_safe_policy_keeps_more_and_keeps_double(kind: Kind, total: int) -> None:
    balanced = headroom(kind, total, "balanced")
    for policy in POLICIES:
        assert headroom(kind, total, policy) == balanced * (2 if policy == "safe" else 1)


@given(kinds, totals, totals, st.sampled_from(POLICIES))
def test_a_larger_device_never_gets_less_headroom(kind: Kind, total: int, more: int, policy: str) -> None:
    assert 0 < headroom(kind, total, policy) <= headroom(kind, total + more, policy)
