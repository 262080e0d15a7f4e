"""Records as a table, and one record as an account."""

from __future__ import annotations

from tests.builders import GIB, MIB, record
from vllm_autofit.experience.record import Record
from vllm_autofit.render.history import record_account, record_table

RUN = "20261121T120000Z-1-aaaa"
EARLIER = "20261120T120000Z-1-bbbb"


def served() -> Record:
    """A start that came up, with everything that the CPU and CUDA backends together can measure."""
    return record(
        RUN,
        identity={
            "model": "/models/Qwen3-0.6B",
            "fingerprint": "sha256:abc",
            "vllm": "0.32.0",
            "launch": "api_server",
            "devices": [{"index": 0, "free_bytes": 70 * GIB}],
        },
        settings={"gpu_memory_utilization": {"value": 0.85, "chosen_by": "record"}},
        plan={
            "record": EARLIER,
            "decisions": [
                {"field": "gpu_memory_utilization", "value": 0.85, "source": "record", "why": "70 of 80 GiB free"},
                {"field": "max_model_len", "value": -1, "source": "estimate", "why": "vLLM fits it"},
                {"field": "max_num_seqs", "value": None, "source": "vllm", "why": "no need to change it"},
            ],
        },
        engines=[
            {
                "dp_rank": 0,
                "max_model_len": 40960,
                "kv_cache": {"blocks": 1000, "block_size": 16, "tokens": 16000, "pool_bytes": 2 * GIB},
                "ranks": [
                    {
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
                ],
            }
        ],
    )


def failed() -> Record:
    return record(
        EARLIER,
        state="failed",
        outcome={"state": "failed", "failure": {"phase": "no_kv_memory", "type": "ValueError", "message": "No room"}},
    )


# The table


def test_a_table_has_a_heading_and_a_row_per_start_in_the_order_given() -> None:
    heading, *rows = record_table([served(), failed()]).splitlines()
    assert heading.split() == ["start", "outcome", "utilisation", "context", "KV", "tokens", "model"]
    assert [row.split()[0] for row in rows] == [RUN, EARLIER]


def test_a_row_says_what_was_chosen_by_whom_and_what_came_of_it() -> None:
    row = record_table([served()]).splitlines()[1]
    assert row.split() == [RUN, "serving", "0.85", "(record)", "40960", "16,000", "Qwen3-0.6B"]


def test_a_row_of_a_failed_start_names_the_phase() -> None:
    row = record_table([failed()]).splitlines()[1]
    assert "failed (no_kv_memory)" in row
    assert row.split()[-3:] == ["-", "-", "model"]


def test_a_row_of_a_start_that_has_measured_nothing_yet() -> None:
    assert record_table([record(RUN, state="starting")]).splitlines()[1].split()[:2] == [RUN, "starting"]


def test_the_tokens_of_several_engines_are_added_up() -> None:
    start = served()
    start["engines"].append({"dp_rank": 1, "kv_cache": {"tokens": 500}})
    start["engines"].append({"dp_rank": 2, "kv_cache": None})
    assert "16,500" in record_table([start])


def test_columns_line_up_and_no_line_ends_in_blanks() -> None:
    lines = record_table([served(), failed(), record("short")]).splitlines()
    assert (
        len({line.index(word) for line, word in zip(lines, ("outcome", "serving", "failed", "serving"), strict=True)})
        == 1
    )
    assert all(line == line.rstrip() for line in lines)


# The account


def test_an_account_says_which_start_of_which_model() -> None:
    text = record_account(served())
    assert f"start      {RUN}  (2026-11-21T12:00:00+00:00)" in text
    assert "model      /models/Qwen3-0.6B  [sha256:abc]" in text
    assert "vLLM       0.32.0, launched as api_server" in text
    assert "key        0123456789abcdef" in text
    assert "outcome    serving" in text


def test_an_account_gives_every_decision_with_its_source_and_reason() -> None:
    lines = [line.split(maxsplit=3) for line in record_account(served()).splitlines()]
    assert ["gpu_memory_utilization", "0.85", "record", "70 of 80 GiB free"] in lines
    assert ["max_model_len", "auto", "estimate", "vLLM fits it"] in lines
    assert ["max_num_seqs", "None", "vllm", "no need to change it"] in lines


def test_an_account_names_the_record_that_the_plan_came_from() -> None:
    assert f"planned from the record of start {EARLIER}" in record_account(served())
    assert "planned from" not in record_account(failed())


def test_an_account_gives_figures_in_gib_and_leaves_out_those_not_measured() -> None:
    text = record_account(served())
    assert "KV cache   16,000 tokens in 1,000 blocks of 16 (2.00 GiB), context 40960" in text
    assert "weights 1.50 GiB, non-torch 0.12 GiB, CUDA graphs 0.00 GiB, asked 68.00 GiB, KV cache 2.00 GiB" in text
    assert "activations" not in text
    assert "free 69.00 GiB before, not measured after" in text


def test_an_account_of_a_failed_start_gives_phase_and_cause() -> None:
    text = record_account(failed())
    assert "phase    no_kv_memory" in text
    assert "cause    ValueError: No room" in text
    assert "engine" not in text


def test_an_account_names_every_engine_and_a_rank_that_could_not_be_measured() -> None:
    start = served()
    start["engines"].append({"dp_rank": 1, "kv_cache": {}, "ranks": [{"error": "RuntimeError: gone"}]})
    text = record_account(start)
    assert "engine 0" in text
    assert text.endswith("engine 1\n  a rank could not be measured: RuntimeError: gone")
