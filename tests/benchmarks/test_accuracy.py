"""The accuracy report, over a few rows made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accuracy import report
from benchmarks.cases import Case, Skipped, read_cases
from benchmarks.fitting import fitted
from benchmarks.measured import Row, loaded_as, speculation
from benchmarks.scores import Score, scores_of
from benchmarks.started import verdicts

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
WORKED = {
    "id": "w1",
    "source": "a report",
    "vllm_version": "0.11.0",
    "model": MODEL,
    "gpu": "NVIDIA H100 80GB",
    "gpu_total_gib": 79.18,
    "tensor_parallel_size": 1,
    "max_model_len": 16000,
    "gpu_memory_utilization": 0.9,
    "weights_gib": 14.99,
    "activation_peak_gib": 4.76,
    "non_torch_gib": 0.13,
    "kv_cache_gib": 51.38,
    "outcome": "ok",
}
"""As published."""


def row(**changes: Any) -> dict[str, Any]:
    """A published row, changed; None takes a figure out."""
    return {name: value for name, value in {**WORKED, **changes}.items() if value is not None}


def read(folder: Path, *rows: dict[str, Any], models: Any = None) -> tuple[list[Case], list[Skipped]]:
    """What the benchmark reads of these rows."""
    if models is None:
        models = [{"model": MODEL, "config": LLAMA, "source": "a config"}]
    (folder / "measurements.jsonl").write_text("\n".join(json.dumps(each) for each in rows) + "\n")
    (folder / "models.jsonl").write_text("\n".join(json.dumps(each) for each in models) + "\n")
    return read_cases(folder)


def score(folder: Path, quantity: str, **changes: Any) -> Score:
    """One figure of one row."""
    cases, _ = read(folder, row(**changes))
    return next(each for each in scores_of(cases[0]) if each.quantity == quantity)


@pytest.mark.parametrize(
    "quantity", ["weights", "activation", "non-torch", "KV pool, the other terms measured", "KV pool, all estimated"]
)
def test_a_published_start_is_within_its_goal(tmp_path: Path, quantity: str) -> None:
    found = score(tmp_path, quantity)
    assert not found.missed
    assert not found.guessed


def test_a_wrong_figure_misses_and_says_by_how_much_and_in_which_direction(tmp_path: Path) -> None:
    found = score(tmp_path, "activation", activation_peak_gib=2.38)
    assert found.missed
    assert found.error == pytest.approx(1.0, abs=0.01)
    assert score(tmp_path, "activation", activation_peak_gib=9.52).error == pytest.approx(-0.5, abs=0.01)


def test_what_rounding_can_hide_is_no_error(tmp_path: Path) -> None:
    found = score(tmp_path, "non-torch", non_torch_gib=round(score(tmp_path, "non-torch").predicted, 2))
    assert found.error == 0


def test_an_unknown_version_is_a_guess_and_so_are_utilisation_and_size_for_the_pool(tmp_path: Path) -> None:
    assert score(tmp_path, "activation", vllm_version=None).guessed
    assert score(tmp_path, "KV pool, all estimated", gpu_memory_utilization=None).guessed
    assert score(tmp_path, "KV pool, all estimated", gpu_total_gib=None).guesses == ("the device's exact size",)


def test_a_start_that_is_known_to_have_compiled_is_predicted_to_leave_less(tmp_path: Path) -> None:
    changes = {"vllm_version": "0.29.0", "max_num_seqs": 8}
    warm = score(tmp_path, "KV pool, all estimated", flags="warm torch.compile cache", **changes).predicted
    assert score(tmp_path, "KV pool, all estimated", flags="cold torch.compile cache", **changes).predicted < warm - 0.5


def test_a_pool_of_one_of_two_unlike_devices_is_a_guess(tmp_path: Path) -> None:
    pool = {"kv_cache_tokens": 420000}
    assert not score(tmp_path, "tokens, of the measured pool", **pool).guessed
    unlike = score(tmp_path, "tokens, of the measured pool", gpu="RTX 5080 16GB + RTX 5070 Ti 16GB", **pool)
    assert unlike.guesses == ("which device's pool it is",)


def test_version_and_context_decide_how_a_pool_is_cut_only_for_layers_of_several_kinds(tmp_path: Path) -> None:
    windows = {**LLAMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 256}
    windows |= {"sliding_window": 4096, "query_pre_attn_scalar": 256}
    published = row(kv_cache_tokens=420000, vllm_version=None, max_model_len=None)
    for config, guesses in ((LLAMA, ()), (windows, ("vLLM version", "context"))):
        cases, _ = read(tmp_path, published, models=[{"model": MODEL, "config": config, "source": "a config"}])
        found = next(each for each in scores_of(cases[0]) if each.quantity == "tokens, of the measured pool")
        assert found.guesses == guesses


def test_rows_without_a_usable_config_are_named_with_the_reason(tmp_path: Path) -> None:
    models = [
        {"model": "a/memory", "config": LLAMA, "source": "memory"},
        {"model": "a/summary", "config": {"hidden_size": 8}, "source": "a list"},
        {"model": "a/constructed", "config": {**LLAMA, "architectures": None}, "source": "a list"},
    ]
    names = ["a/memory", "a/summary", "a/unknown", ""]
    cases, skipped = read(tmp_path, *(row(id=name, model=name) for name in names), models=models[:2])
    assert not cases
    assert [each.row.id for each in skipped] == names
    assert len({each.reason for each in skipped}) == len(names)


def test_a_config_written_as_a_program_is_read(tmp_path: Path) -> None:
    config = {name: value for name, value in LLAMA.items() if name not in ("architectures", "model_type")}
    config["_config_class"] = "transformers.LlamaConfig"
    cases, _ = read(tmp_path, row(), models=[{"model": MODEL, "config": config, "source": "a program"}])
    assert cases[0].facts.architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("text", "expected"), [("0.8.1 (V0)", True), ("0.8.3 (V1)", False), ("0.7.3", True), ("0.11.0", False), ("", False)]
)
def test_the_old_engine_is_told_by_mark_or_version(text: str, expected: bool) -> None:
    assert Row(row(vllm_version=text)).old_engine is expected


def test_words_become_settings() -> None:
    assert loaded_as("fp8 (online)") == "fp8"
    assert loaded_as("bitsandbytes (4bit on load)") == "bitsandbytes"
    assert loaded_as("awq_marlin") is None
    assert speculation("mtp, 4 tokens") == {"method": "mtp", "num_speculative_tokens": 4}
    assert speculation("enabled (method not in the excerpt)") is None


def test_flags_of_a_row_reach_the_launch(tmp_path: Path) -> None:
    cases, _ = read(tmp_path, row(flags="--cpu-offload-gb 8; limit_mm_per_prompt image=2"))
    assert cases[0].deployment.cpu_offload_bytes == 8 * 2**30
    assert cases[0].deployment.items_per_prompt == {"image": 2}


def failed(**changes: Any) -> dict[str, Any]:
    """A start that failed."""
    return row(**{"outcome": "fail", "activation_peak_gib": None, "kv_cache_gib": None, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu_total_gib": 14.7}, "before any KV cache"),
        ({"gpu_total_gib": 24, "max_model_len": 131072}, "for one request of the whole context"),
        ({"free_at_start_gib": 20}, "more than is free"),
        ({"vllm_version": "0.26.0", "gpu_memory_utilization": 0.99}, "after the KV cache is taken"),
    ],
)
def test_a_failure_is_foreseen_where_the_settings_leave_no_room(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    found = verdicts(read(tmp_path, failed(**changes))[0])
    assert [verdict.foreseen for verdict in found] == [True]
    assert words in found[0].predicted


def test_a_failure_for_another_reason_is_not_claimed(tmp_path: Path) -> None:
    found = verdicts(read(tmp_path, failed())[0])
    assert [verdict.foreseen for verdict in found] == [False]
    assert found[0].predicted.startswith("fits")


def test_starts_that_worked_are_no_failures(tmp_path: Path) -> None:
    assert verdicts(read(tmp_path, row())[0]) == []


def test_the_fit_gives_the_median_of_the_rows_that_are_fitted_on(tmp_path: Path) -> None:
    cases, _ = read(tmp_path, *(row(id=str(gib), non_torch_gib=gib) for gib in (0.1, 0.2, 0.4)))
    kernels = fitted(cases)[0]
    expected = ("no rows", "") if cases[0].held_out else ("204.80 MiB", "0.1, 0.2, 0.4")
    assert (kernels.now, kernels.rows) == expected


def test_the_report_has_every_row_and_is_the_same_each_time(tmp_path: Path) -> None:
    rows = [row(), row(id="w2", activation_peak_gib=1), failed(id="f1", gpu_total_gib=14.7), row(id="s1", model="?")]
    old = row(id="o1", vllm_version="0.7.3 (V0)")
    text = report(*read(tmp_path, *rows, old))
    assert text == report(*read(tmp_path, *rows, old))
    assert "3 published starts" not in text
    assert "| w2 |" in text.partition("## What misses its goal")[2]
    assert "| f1 |" in text.partition("## Would it have started?")[2]
    assert "s1" in text.partition("## Rows that could not be scored")[2]
    assert text.count("\n## ") == 11
