"""The estimator against real vLLM: what vLLM 0.32 said of each architecture, recorded and live."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.against_vllm import cases, cpu_features, read_record, truth_of
from benchmarks.comparison import compare
from dev import vllm_truth
from tests.conftest import CACHE, Forked
from vllm_autofit.facts.weights import read_tensors

RECORD = read_record(Path(__file__).parent.parent / "data" / "vllm_0_32.json")
LOADED = [name for name, truth in RECORD["cases"].items() if "refused" not in truth]
QUICK = ("llama", "gemma2", "deepseek_v2", "granite_hybrid", "mamba", "llama_awq", "llama eagle")
"""One of each kind of KV cache and of weights, and one with a draft."""
ROOMY_BYTES = 32_000_123
"""Given to live starts: the recorded ones had less, which doesn't do where a page is larger (AMX)."""
FROM_CONFIG = 0.001
"""How far weights told from the config alone may be off, relative."""


def needs_torchvision(name: str) -> bool:
    """vLLM's vision models import it, and so does its Qwen 3.5 without a tower; the pinned environment has none."""
    config = RECORD["cases"][name].get("config", {})
    return "vision_config" in config or str(config.get("model_type")).startswith("qwen3_5")


@pytest.mark.parametrize("name", LOADED)
def test_agrees_with_what_vllm_said(name: str) -> None:
    row = compare(name, RECORD["cases"][name], RECORD["cpu_features"])
    assert row.agrees, row
    assert row.config_error is not None
    assert abs(row.config_error) <= FROM_CONFIG, row


def test_the_record_covers_every_case() -> None:
    assert set(RECORD["cases"]) == set(cases())
    assert len({RECORD["cases"][name]["config"]["model_type"] for name in LOADED}) >= 20


@pytest.mark.parametrize(
    ("what", "change"),
    [
        (
            "weights",
            lambda truth: truth["ranks"][0]["loaded"].update(bytes=truth["ranks"][0]["loaded"]["bytes"] + 9000),
        ),
        ("blocks", lambda truth: truth["kv"].update(blocks=truth["kv"]["blocks"] + 1)),
        ("tokens", lambda truth: truth["kv"].update(tokens=truth["kv"]["tokens"] - 1)),
        ("context", lambda truth: truth["kv"]["longest_context"].update({"3000015": 17})),
        ("context", lambda truth: truth["settings"].update(max_model_len=4999)),
        ("groups", lambda truth: truth["kv"]["groups"][0].update(page_bytes=1)),
        ("KV cache", lambda truth: truth.update(kv=None)),
    ],
)
def test_a_difference_is_told(what: str, change: Any) -> None:
    truth = copy.deepcopy(RECORD["cases"]["llama"])
    change(truth)
    row = compare("llama", truth, RECORD["cpu_features"])
    assert not row.agrees
    assert what == "weights" or any(what in difference for difference in row.differences)


@pytest.mark.vllm
@pytest.mark.e2e
@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in LOADED if name not in QUICK)]
)
def test_agrees_with_vllm_as_it_runs(name: str, forked: Forked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_truth, "KV_CACHE_BYTES", ROOMY_BYTES)
    if needs_torchvision(name) and find_spec("torchvision") is None:
        pytest.skip("vLLM's vision models need torchvision")
    truth = forked(lambda: truth_of(name, CACHE / "architectures"))
    row = compare(name, truth, cpu_features())
    assert row.agrees, row
    base, _ = cases()[name]
    headers = read_tensors(str(CACHE / "architectures" / base)).tensors if truth["tensors"] else ()
    assert sorted([each.name, each.dtype, [*each.shape], each.bytes] for each in headers) == sorted(truth["tensors"])
