"""One start's record, added to by the processes of that start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.errors import StoreError
from vllm_autofit.experience.store import Store
from vllm_autofit.hooks.runs import (
    KEPT_LATER,
    attach,
    new_run,
    record_failure,
    record_start,
    record_success,
    run_of,
)

KEY = "0123456789abcdef"
SECTIONS: dict[str, Any] = {"identity": {"devices": []}, "settings": {}, "plan": {}}


def engine(rank: int) -> dict[str, Any]:
    return {"dp_rank": rank, "ranks": []}


def failure(phase: str) -> dict[str, Any]:
    return {"phase": phase, "type": "ValueError", "message": phase, "numbers": {}}


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    return new_run(KEY, tmp_path, SECTIONS)


def record(run: dict[str, Any]) -> dict[str, Any]:
    (only,) = Store(Path(run["cache_dir"])).records(KEY)
    return only


def test_a_start_travels_on_the_config_and_a_config_without_one_has_none(run: dict[str, Any]) -> None:
    config = SimpleNamespace()
    assert run_of(config) is None
    attach(config, run)
    assert run_of(config) == run


def test_nothing_is_written_before_an_engine_starts(run: dict[str, Any], tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    record_start(run)
    assert record(run)["outcome"]["state"] == "starting"


def test_every_engine_of_a_start_is_in_one_record_in_order(run: dict[str, Any]) -> None:
    for rank in (1, 0, 1):
        record_start(run)
        record_success(run, engine(rank))
    assert [each["dp_rank"] for each in record(run)["engines"]] == [0, 1]
    assert record(run)["outcome"]["state"] == "serving"


def test_the_first_cause_stays_and_a_failed_start_is_not_called_serving(run: dict[str, Any]) -> None:
    record_start(run)
    record_failure(run, failure("startup_check"))
    record_failure(run, failure("other"))
    record_success(run, engine(1))
    assert record(run)["outcome"]["state"] == "failed"
    assert record(run)["outcome"]["failure"]["phase"] == "startup_check"


def test_an_exception_while_serving_is_noted_and_does_not_undo_the_start(run: dict[str, Any]) -> None:
    record_success(run, engine(0))
    for number in range(KEPT_LATER + 2):
        record_failure(run, failure(f"runtime {number}"))
    outcome = record(run)["outcome"]
    assert outcome["state"] == "serving"
    assert [each["phase"] for each in outcome["later"]] == [f"runtime {n}" for n in range(2, KEPT_LATER + 2)]


@pytest.mark.parametrize("known", [True, False])
def test_trouble_with_the_folder_is_kept_quiet_only_where_the_user_knows_of_it(tmp_path: Path, known: bool) -> None:
    (tmp_path / "file").write_text("no folder")
    run = new_run(KEY, tmp_path / "file" / "below", SECTIONS, trouble_is_known=known)
    if known:
        record_start(run)
    else:
        with pytest.raises(StoreError):
            record_start(run)
