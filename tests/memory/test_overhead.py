"""The last resorts: overhead and headroom when neither a record nor the user says more."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, MIB
from vllm_autofit.architecture import Attention, Dense, Layer, ModelFacts, State
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.memory.overhead import (
    CPU_COUNTED_TWICE_BYTES,
    headroom,
    non_torch_bytes,
    startup_overhead,
    unprofiled_bytes,
)
from vllm_autofit.settings import POLICIES

Kind = Literal["cuda", "cpu", "unified"]
kinds: st.SearchStrategy[Kind] = st.sampled_from(["cuda", "cpu", "unified"])
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


def test_on_an_integrated_device_the_processes_count_too() -> None:
    assert startup_overhead("unified", ranks=1, processes=True) == 2.75 * GIB


def test_an_idle_gb10_is_asked_for_what_its_users_settle_on() -> None:
    total, available = 121.69 * GIB, 116.43 * GIB
    asked = available - startup_overhead("unified", 1, True) - headroom("unified", int(total), "balanced")
    assert 0.80 < asked / total < 0.87


@given(kinds, st.integers(1, 63), st.booleans())
def test_one_more_rank_never_takes_less(kind: Kind, ranks: int, processes: bool) -> None:
    assert 0 < startup_overhead(kind, ranks, processes) <= startup_overhead(kind, ranks + 1, processes)


@pytest.mark.parametrize(
    ("kind", "total", "expected"),
    [
        ("cuda", 8 * GIB, 512 * MIB + 8 * GIB // 100),
        ("cuda", 80 * GIB, 512 * MIB + 80 * GIB // 100),
        ("cpu", 8 * GIB, 256 * MIB),
        ("cpu", 25 * GIB, 256 * MIB),
        ("cpu", 200 * GIB, 2 * GIB),
        ("unified", 8 * GIB, 1 * GIB),
        ("unified", 120 * GIB, 12 * GIB),
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


HOPPER = "NVIDIA H100 80GB HBM3"
DENSE = ModelFacts("Qwen3ForCausalLM", "qwen3", 5120, 151936, (Layer(Attention(64, 8, 128, 128), Dense(25600)),))
HYBRID = ModelFacts("A", "a", 2048, 151936, (Layer(State("gated_delta_net"), Dense(4096)), *DENSE.layers))


def cuda(**changes: Any) -> Deployment:
    """A server on an H100."""
    settings = {"device_name": HOPPER, "compute_capability": (9, 0), "max_num_seqs": 1024, **changes}
    return Deployment(max_num_batched_tokens=8192, **settings)


@pytest.mark.parametrize(
    ("changes", "published_gib"),
    [
        ({"vllm": (0, 11)}, 0.13),
        ({"vllm": (0, 18)}, 0.25),
        ({"vllm": (0, 11), "tensor_parallel": 2}, 0.54),
        ({"vllm": (0, 17), "device_name": "NVIDIA GeForce RTX 3090", "compute_capability": (8, 6)}, 0.05),
    ],
)
def test_published_non_torch_memory(changes: dict[str, Any], published_gib: float) -> None:
    assert non_torch_bytes(DENSE, cuda(**changes)).bytes / GIB == pytest.approx(published_gib, abs=0.01)


def test_graphs_captured_on_trial_count_while_the_first_runner_does_it_inside_of_the_profile_run() -> None:
    def more(name: str, vllm: tuple[int, int]) -> int:
        facts = ModelFacts(name, "a", 5120, 151936, DENSE.layers)
        eager = non_torch_bytes(facts, cuda(vllm=vllm, enforce_eager=True)).bytes
        return non_torch_bytes(facts, cuda(vllm=vllm)).bytes - eager

    assert more("Qwen3ForCausalLM", (0, 17)) == 0
    assert more("Qwen3ForCausalLM", (0, 19)) > 0
    assert more("Qwen3ForCausalLM", (0, 26)) == 0  # the second runner
    assert more("Gemma3ForCausalLM", (0, 24)) > 0
    assert more("Gemma3ForCausalLM", (0, 33)) == 0


def test_delta_rules_reserve_more_since_their_kernels_are_warmed_up_except_on_hopper() -> None:
    blackwell = {"device_name": "NVIDIA GeForce RTX 5090", "compute_capability": (12, 0)}
    grown = [
        non_torch_bytes(HYBRID, cuda(vllm=vllm, **device)).bytes
        - non_torch_bytes(DENSE, cuda(vllm=vllm, **device)).bytes
        for vllm, device in [((0, 17), blackwell), ((0, 18), blackwell), ((0, 18), {})]
    ]
    assert grown[0] == grown[2] < grown[1]


def test_ranks_that_talk_over_pcie_take_less_than_over_nvlink() -> None:
    nvlink = non_torch_bytes(DENSE, cuda(tensor_parallel=4)).bytes
    assert non_torch_bytes(DENSE, cuda(tensor_parallel=4, device_name="NVIDIA L40S")).bytes < nvlink - GIB // 2


@pytest.mark.parametrize(
    ("vocabulary", "hidden", "measured_gib"),
    [(151936, 1024, 1.34), (16384, 256, 0.72), (32000, 4096, 1.18)],
)
def test_measured_workers_of_the_cpu_backend(vocabulary: int, hidden: int, measured_gib: float) -> None:
    """vLLM 0.32.0: resident memory less weights."""
    facts = ModelFacts("Qwen3ForCausalLM", "qwen3", hidden, vocabulary, DENSE.layers)
    term = non_torch_bytes(facts, Deployment(device="cpu"))
    assert abs(term.bytes / GIB - measured_gib) <= term.error_bytes / GIB


def test_what_the_second_runner_leaves_out_is_named() -> None:
    """Up to 0.26 its counters aren't counted; up to 0.32 its sampler isn't profiled, where it is the larger."""
    small = ModelFacts("Qwen3ForCausalLM", "qwen3", 1024, 151936, (Layer(Attention(16, 8, 128, 128), Dense(3072)),))
    left_out = [unprofiled_bytes(small, cuda(vllm=vllm)).bytes for vllm in ((0, 26), (0, 27), (0, 33))]
    assert left_out[0] > left_out[1] > left_out[2] == 0


def test_the_first_runner_profiles_its_sampler_but_not_the_logits_of_drafts() -> None:
    assert unprofiled_bytes(DENSE, cuda(vllm=(0, 16))).bytes == 0
    assert unprofiled_bytes(DENSE, cuda(vllm=(0, 19), speculation=Speculation("ngram", 7))).bytes > GIB


def test_on_the_cpu_backend_activations_come_after_the_kv_cache() -> None:
    """But for what stays free anyway, because vLLM takes it off twice."""
    many = unprofiled_bytes(DENSE, Deployment(device="cpu", max_num_seqs=512)).bytes
    assert many > 512 * 151936 * 20 - CPU_COUNTED_TWICE_BYTES
    assert unprofiled_bytes(DENSE, Deployment(device="cpu", max_num_seqs=1)).bytes == 0
