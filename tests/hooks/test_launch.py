"""What a plan is made from where records can't be read: the attempts of this process still count."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.builders import GIB
from vllm_autofit.experience.store import Store
from vllm_autofit.hooks import guard, runs
from vllm_autofit.hooks.launch import _lessons
from vllm_autofit.hooks.runs import new_run, record_failed_here, record_failure
from vllm_autofit.settings import read_settings

KEY = "fedcba9876543210"
RELATED = {"device": "d" * 16, "model": "m" * 16}
SECTIONS = {
    "identity": {"devices": [{"index": 0, "kind": "cuda", "free_bytes": 70 * GIB, "total_bytes": 80 * GIB}]},
    "settings": {"gpu_memory_utilization": {"value": 0.8}},
    "plan": {
        "budget": {"free_bytes": 70 * GIB, "startup_overhead_bytes": GIB, "total_bytes": 80 * GIB, "ranks": 1},
    },
}
FAILURE = {
    "phase": "cudagraph_capture",
    "is_capacity": True,
    "resource": "device",
    "type": "OutOfMemoryError",
    "message": "CUDA out of memory",
    "numbers": {"tried_bytes": 3 * GIB, "free_bytes": GIB},
}


@pytest.fixture(autouse=True)
def _no_other_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_failed_here", {})
    monkeypatch.setattr(guard.logger, "propagate", True)


def kept_free(cache_dir: Path) -> int | None:
    settings = read_settings({"VLLM_AUTOFIT_CACHE_DIR": str(cache_dir)})
    lessons, _readable = _lessons(settings, KEY, RELATED)
    return None if lessons.least_headroom is None else lessons.least_headroom.bytes


def test_a_failed_attempt_of_this_process_counts_as_its_record_would(tmp_path: Path) -> None:
    run = new_run(KEY, tmp_path / "written", SECTIONS)
    record_failure(run, FAILURE)
    from_record = kept_free(tmp_path / "written")
    assert from_record is not None
    assert from_record > 70 * GIB - GIB - 64 * GIB + 2 * GIB
    record_failed_here(run, FAILURE)
    assert kept_free(tmp_path / "written") == from_record
    assert kept_free(tmp_path / "empty") == from_record


def test_it_counts_where_the_folder_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "starts").write_text("not a folder")
    with pytest.raises(Exception, match="cannot use"):
        list(Store(folder).records(KEY))
    assert kept_free(folder) is None
    assert "planning without past starts" in caplog.text
    caplog.clear()
    record_failed_here(new_run(KEY, folder, SECTIONS), FAILURE)
    assert kept_free(folder) is not None
    assert caplog.text == ""


def test_attempts_at_other_starts_do_not(tmp_path: Path) -> None:
    record_failed_here(new_run("0" * 16, tmp_path, SECTIONS), FAILURE)
    assert kept_free(tmp_path) is None
