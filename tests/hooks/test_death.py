"""What is said last of an engine that died, from what its record holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_autofit.experience.store import Store
from vllm_autofit.hooks import runs
from vllm_autofit.hooks.channel import close_channel, open_channel
from vllm_autofit.hooks.death import last_words
from vllm_autofit.hooks.runs import (
    new_run,
    record_end,
    record_failed_here,
    record_failure,
    record_start,
    record_success,
)

KEY = "0123456789abcdef"
GIB = 2**30
OUT_OF_MEMORY: dict[str, Any] = {
    "phase": "runtime",
    "is_capacity": True,
    "resource": "device",
    "type": "OutOfMemoryError",
    "message": "CUDA out of memory",
    "cause": "The device ran out of memory.",
    "numbers": {"tried_bytes": 2 * GIB, "free_bytes": GIB},
    "remedies": [{"change": "serve fewer sequences at once", "flag": "--max-num-seqs", "why": ""}],
}
SERVED: dict[str, Any] = {"requests": 7, "devices": [{"device_index": 0, "least_free_bytes": GIB}]}


@pytest.fixture(autouse=True)
def _no_other_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_failed_here", {})


def start(folder: Path, *, share_by: str = "estimate", headroom_by: str = "estimate") -> dict[str, Any]:
    run = new_run(
        KEY,
        folder,
        {
            "identity": {"devices": [{"index": 0, "kind": "cuda"}]},
            "settings": {"gpu_memory_utilization": {"value": 0.9, "chosen_by": share_by}},
            "plan": {"budget": {"headroom_source": headroom_by}},
        },
    )
    record_start(run)
    return run


def died(run: dict[str, Any], **differs: Any) -> str | None:
    record_success(run, {"dp_rank": 0, "ranks": []})
    record_end(run, 0, SERVED, {**OUT_OF_MEMORY, **differs})
    return last_words(run)


def test_cause_figures_what_helps_and_the_next_start(tmp_path: Path) -> None:
    assert died(start(tmp_path)) == (
        "The engine died while it served, after 7 requests. "
        "The device ran out of memory (2.00 GiB tried, 1.00 GiB free). The least that was seen free: 1.00 GiB. "
        "What helps: serve fewer sequences at once (--max-num-seqs). "
        "The next start knows, and leaves more of it free."
    )


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"share_by": "user"}, "--gpu-memory-utilization is yours and stays: set less of it."),
        ({"headroom_by": "user"}, "VLLM_AUTOFIT_HEADROOM is yours and stays: set more of it."),
    ],
)
def test_what_the_user_set_is_theirs_to_change(theirs: dict[str, str], said: str, tmp_path: Path) -> None:
    assert str(died(start(tmp_path, **theirs))).endswith(said)


def test_the_next_start_learns_nothing_of_the_hosts_memory_on_a_device_of_its_own(tmp_path: Path) -> None:
    assert "next start" not in str(died(start(tmp_path), resource="host"))


def test_another_error_has_no_figures_and_promises_nothing(tmp_path: Path) -> None:
    words = died(start(tmp_path), is_capacity=False, type="ValueError", message="no", cause="", remedies=[])
    assert words == "The engine died while it served, after 7 requests. ValueError: no."


def test_nothing_is_said_of_an_engine_that_ended_well_or_still_serves(tmp_path: Path) -> None:
    run = start(tmp_path)
    assert last_words(run) is None
    record_success(run, {"dp_rank": 0, "ranks": []})
    assert last_words(run) is None
    record_end(run, 0, SERVED, None)
    assert last_words(run) is None


def test_nothing_is_said_where_there_is_no_record(tmp_path: Path) -> None:
    run = start(tmp_path)
    Store(tmp_path).forget([run["run_id"]])
    assert last_words(run) is None
    assert last_words({**run, "unrecorded": True}) is None


def test_a_start_that_failed_for_memory_where_nobody_makes_it_again_says_so(tmp_path: Path) -> None:
    run = start(tmp_path)
    record_failure(run, OUT_OF_MEMORY)
    assert last_words(run) == (
        "The device ran out of memory (2.00 GiB tried, 1.00 GiB free). "
        "It isn't tried again by itself: other processes wait for the engine. "
        "What helps: serve fewer sequences at once (--max-num-seqs). The next start knows, and plans for it."
    )


def test_attempts_speak_for_themselves(tmp_path: Path) -> None:
    run = start(tmp_path)
    open_channel(run)
    record_failure(run, OUT_OF_MEMORY)
    assert last_words(run) is None
    close_channel(run)
    record_failed_here(run, OUT_OF_MEMORY)
    assert last_words(run) is None


def test_a_start_that_failed_for_another_reason_is_vllms_to_explain(tmp_path: Path) -> None:
    run = start(tmp_path)
    record_failure(run, {**OUT_OF_MEMORY, "is_capacity": False})
    assert last_words(run) is None
