"""One remembered start as an account."""

from __future__ import annotations

from typing import Any

from tests.builders import GIB, MIB, record
from vllm_autofit.experience.grade import GRADES, Grade
from vllm_autofit.render.history import Start
from vllm_autofit.render.start import MEANINGS, start_account

RUN = "20261121T120000Z-1-aaaa"
EARLIER = "20261120T120000Z-1-bbbb"
SERVING = {
    "requests": 1234,
    "seconds": 90.0,
    "prompt_tokens": 56789,
    "generated_tokens": 4321,
    "preemptions": 2,
    "peak_kv_usage": 0.614,
    "devices": [{"device_index": 0, "least_free_bytes": GIB, "peak_reserved_bytes": None, "peak_allocated_bytes": 0}],
}
RANK = {
    "rank": 0,
    "weights_bytes": 1536 * MIB,
    "activation_peak_bytes": None,
    "non_torch_bytes": 128 * MIB,
    "cuda_graph_bytes": 0,
    "requested_bytes": 68 * GIB,
    "kv_cache_bytes": 2 * GIB,
    "before": {"free_bytes": 69 * GIB},
    "after": None,
}


def served(**sections: Any) -> Start:
    """A start that came up, with everything that can be measured."""
    ordinary: dict[str, Any] = {
        "identity": {
            "model": "/models/Qwen3-0.6B",
            "fingerprint": "sha256:abc",
            "vllm": "0.32.0",
            "launch": "api_server",
            "driver": "570.86",
            "devices": [{"index": 0, "name": "NVIDIA L4", "free_bytes": 70 * GIB}],
        },
        "settings": {
            "gpu_memory_utilization": {"value": 0.85, "chosen_by": "record"},
            "tensor_parallel_size": {"value": 1, "chosen_by": "vllm"},
            "hf_overrides": {"value": {"a": 1}, "chosen_by": "user"},
        },
        "plan": {
            "record": EARLIER,
            "decisions": [
                {"field": "gpu_memory_utilization", "value": 0.85, "source": "record", "why": "70 of 80 GiB free"},
                {"field": "max_model_len", "value": -1, "source": "estimate", "why": "vLLM fits it"},
            ],
        },
        "engines": [
            {
                "dp_rank": 0,
                "max_model_len": 40960,
                "kv_cache": {"blocks": 1000, "block_size": 16, "tokens": 16000, "pool_bytes": 2 * GIB},
                "ranks": [RANK],
                "serving": SERVING,
            }
        ],
    }
    return Start(record(RUN, **{**ordinary, **sections}), "proven", "own")


def account(start: Start, pinned: dict[str, Any] | None = None) -> str:
    return start_account(start, pinned, None)


def test_it_says_which_start_of_which_model_on_what() -> None:
    lines = account(served()).splitlines()
    assert f"start      {RUN}  (2026-11-21T12:00:00+00:00)" in lines
    assert "model      /models/Qwen3-0.6B  [sha256:abc]" in lines
    assert "device     NVIDIA L4, driver 570.86" in lines
    assert "vLLM       0.32.0, launched as api_server" in lines
    assert "key        0123456789abcdef" in lines
    assert "grade      proven: served under load, and ended well or still serves" in lines


def test_every_grade_is_explained() -> None:
    assert MEANINGS.keys() == set(GRADES)


def test_it_gives_every_decision_with_its_source_and_reason() -> None:
    lines = [line.split(maxsplit=3) for line in account(served()).splitlines()]
    assert ["gpu_memory_utilization", "0.85", "record", "70 of 80 GiB free"] in lines
    assert ["max_model_len", "auto", "estimate", "vLLM fits it"] in lines


def test_it_gives_the_users_own_settings_and_the_flags_that_would_repeat_it() -> None:
    lines = account(served()).splitlines()
    assert '  also set by you: hf_overrides={"a": 1}' in lines
    assert "  as flags: --gpu-memory-utilization 0.85" in lines
    assert f"  planned from the record of start {EARLIER}" in lines


def test_it_gives_figures_in_gib_and_leaves_out_those_not_measured() -> None:
    text = account(served())
    assert "  KV cache 16,000 tokens in 1,000 blocks of 16 (2.00 GiB), context 40960" in text
    assert "weights 1.50 GiB, non-torch 0.12 GiB, CUDA graphs 0.00 GiB, asked 68.00 GiB, KV cache 2.00 GiB" in text
    assert "activations" not in text
    assert "free 69.00 GiB before, not measured after" in text


def test_it_says_what_was_served() -> None:
    lines = account(served()).splitlines()
    assert (
        "  served   1,234 requests in 1.5 minutes, 56,789 prompt and 4,321 generated tokens, 2 preemptions, "
        "at most 61% of the KV cache in use"
    ) in lines
    assert "  device   0: least free 1.00 GiB, at most reserved not measured, allocated 0.00 GiB" in lines


def test_it_says_where_a_record_comes_from_and_what_is_pinned() -> None:
    start = served()
    assert "from" not in [line.split(" ")[0] for line in account(start).splitlines()]
    pin = {"settings": {"max_num_seqs": 64}, "note": "by hand"}
    lines = account(Start(start.record, "works", "layer"), pin).splitlines()
    assert "from       in a read-only layer (VLLM_AUTOFIT_PROFILES)" in lines
    assert "pinned     64 seqs (by hand)" in lines


def failure_lines(outcome: dict[str, Any], grade: Grade) -> list[str]:
    return account(Start(record(outcome=outcome), grade, "own")).splitlines()


def test_it_gives_phase_and_cause_of_a_failure() -> None:
    failure = {"phase": "no_kv_memory", "type": "ValueError", "message": "No room"}
    lines = failure_lines({"state": "failed", "failure": failure}, "won't fit")
    assert "  phase    no_kv_memory" in lines
    assert "  cause    ValueError: No room" in lines
    assert not any(line.startswith("engine") for line in lines)


def test_it_gives_how_a_start_that_served_ended() -> None:
    failure = {"phase": "runtime", "type": "OutOfMemoryError", "message": "CUDA out of memory"}
    ended = {"how": "out_of_memory", "at": "2026-11-21T13:00:00+00:00", "failure": failure}
    lines = failure_lines({"state": "ended", "ended": ended}, "ran out")
    assert "  ended    out_of_memory, 2026-11-21T13:00:00+00:00" in lines
    assert "  cause    OutOfMemoryError: CUDA out of memory" in lines


def test_it_says_which_ranks_were_on_another_node() -> None:
    engines = [{"dp_rank": 0, "ranks": [RANK, {**RANK, "rank": 1, "node": "0123456789abcdef"}]}]
    said = [line for line in account(served(engines=engines)).splitlines() if " before, " in line]
    assert ["another node" in line for line in said] == [False, True]


def test_it_names_every_engine_and_a_rank_that_could_not_be_measured() -> None:
    engines = [{"dp_rank": 0}, {"dp_rank": 1, "ranks": [{"rank": 3, "error": "RuntimeError: gone"}]}]
    lines = account(served(engines=engines)).splitlines()
    assert "engine 0" in lines
    assert lines[-2:] == ["engine 1", "  rank 3   could not be measured: RuntimeError: gone"]


def test_long_lines_go_on_below_themselves() -> None:
    lines = start_account(served(), None, 60).splitlines()
    assert max(map(len, lines)) <= 60
    place = next(number for number, line in enumerate(lines) if line.startswith("  served   "))
    assert lines[place + 1].startswith(" " * 11 + "4,321 generated tokens")


def test_what_a_terminal_would_obey_is_replaced() -> None:
    failure = {"type": "ValueError", "message": "\x1b]0;owned\x07\nsecond line"}
    text = account(Start(record(outcome={"state": "failed", "failure": failure}), "failed", "own"))
    assert "\x1b" not in text
    assert "second line" in text
