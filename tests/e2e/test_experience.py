"""What one start learns from another, on real vLLM."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest

from dev.neighbour import neighbour
from tests.conftest import run_forked
from tests.e2e.conftest import records
from vllm_autofit import FIELDS
from vllm_autofit.api import plan

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

MIB = 2**20
REQUESTS = 8


@pytest.fixture
def _in_one_process(monkeypatch: pytest.MonkeyPatch, vllm_loaded: None) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def serve_once(model: Path, **fields: Any) -> dict[str, Any]:
    """One start in a process of its own that answers some requests; its record."""

    def child() -> None:
        from vllm import LLM, SamplingParams

        llm = LLM(str(model), enforce_eager=True, **fields)
        llm.generate(["Hello"] * REQUESTS, SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)

    run_forked(child)
    return records(os.environ)[-1]


def kv_tokens(record: dict[str, Any]) -> int:
    return int(record["engines"][0]["kv_cache"]["tokens"])


def skipped(record: dict[str, Any]) -> bool:
    return bool(record["engines"][0]["ranks"][0]["profiling_skipped"])


@pytest.mark.usefixtures("_in_one_process", "small_start")
def test_what_one_start_measured_the_next_does_not_measure_again(tiny_model: Path) -> None:
    first, second = serve_once(tiny_model), serve_once(tiny_model)
    assert (skipped(first), skipped(second)) == (False, True)
    assert second["plan"]["record"] == first["run_id"]
    # the command plans from it, too
    given = {name: second["settings"][name] for name in FIELDS}
    yours = {name: each["value"] for name, each in given.items() if each["chosen_by"] == "user"}
    planned = plan(str(tiny_model), usage="llm", **yours)
    assert planned.record_id in (first["run_id"], second["run_id"])
    # as much of what was asked for as the first got, to the block
    asked = [each["engines"][0]["ranks"][0]["requested_bytes"] for each in (first, second)]
    block = first["engines"][0]["kv_cache"]["bytes_per_block"]
    pools = [each["engines"][0]["kv_cache"]["pool_bytes"] for each in (first, second)]
    assert abs((asked[1] - pools[1]) - (asked[0] - pools[0])) <= block
    # other settings are another matter
    assert not skipped(serve_once(tiny_model, max_num_seqs=64))


@pytest.mark.full
@pytest.mark.usefixtures("_in_one_process")
def test_neighbours_that_come_and_go_fail_no_start_and_teach_no_lie(tiny_model: Path) -> None:
    """Memory is taken and given back between starts: 3 GiB, none, 6 GiB, none."""
    made = []
    for held_gib in (None, 3, None, 6, None):
        with contextlib.nullcontext() if held_gib is None else neighbour(gib=held_gib):
            made.append(serve_once(tiny_model))
    alone = [made[number] for number in (0, 2, 4)]
    beside = [made[number] for number in (1, 3)]
    assert all(each["outcome"]["ended"]["how"] == "clean" for each in made)
    # alone again, a start gets what it had before, and more for what it learned
    assert kv_tokens(alone[1]) >= 0.995 * kv_tokens(alone[0])
    assert kv_tokens(alone[2]) >= 0.995 * kv_tokens(alone[1])
    # beside a neighbour, it gets less by just what that holds
    pool = [each["engines"][0]["kv_cache"]["pool_bytes"] for each in (*beside, alone[2])]
    assert pool[2] - pool[0] == pytest.approx(3 * 1024 * MIB, abs=512 * MIB)
    assert pool[2] - pool[1] == pytest.approx(6 * 1024 * MIB, abs=512 * MIB)
    overheads = [each["plan"]["budget"]["startup_overhead_bytes"] for each in made[1:]]
    assert max(overheads) <= 512 * MIB
