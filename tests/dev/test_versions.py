"""The version matrix: what its page says of results, and what is left to run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dev.versions import __main__ as command
from dev.versions.check import CHECKS, NOT_RUN, _last
from dev.versions.environments import RELEASED
from dev.versions.page import page


def result(**bad: str) -> dict[str, Any]:
    packages = {"torch": "2.9.1", "transformers": "4.57.3", "python": "3.11"}
    return {"date": "2026-11-22", "packages": packages, "found": {name: bad.get(name, "") for name in CHECKS}}


def test_the_page_has_a_row_per_version_and_says_why_a_check_failed() -> None:
    failed = result(second="it said: nothing", retry=NOT_RUN, record="it said: nothing")
    text = page({"0.12.0": result(), "0.9.0": failed})
    rows = [line for line in text.splitlines() if line.startswith("| 0.")]
    assert rows[0].startswith("| 0.9.0 | ✓ | ✓ | ✓ | ✓ | no [1] | no [1] | ✓ | not run | 2.9.1 |")
    assert rows[1] == f"| 0.12.0 {'| ✓ ' * len(CHECKS)}| 2.9.1 | 4.57.3 | 3.11 | 2026-11-22 |"
    assert "[1] it said: nothing" in text
    assert "[2]" not in text


def test_an_environment_that_could_not_be_made_has_a_row_too() -> None:
    text = page({"0.12.0": {"date": "2026-11-22", "packages": {}, "found": dict.fromkeys(CHECKS, "no torch")}})
    assert f"| 0.12.0 {'| no [1] ' * len(CHECKS)}| – | – | – | 2026-11-22 |" in text


@pytest.mark.parametrize(("bad", "status"), [({}, 0), ({"retry": "1 attempt(s)"}, 1)])
def test_a_version_with_a_result_is_not_run_again(
    bad: dict[str, str], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "0.12.0.json").write_text(json.dumps(result(**bad)))
    out = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["versions", "0.12.0", "--folder", str(tmp_path), "--out", str(out)])
    assert command.main() == status
    assert "| 0.12.0 | ✓ " in out.read_text()


def test_an_interrupted_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "0.12.0.json").write_text(json.dumps(result(retry=NOT_RUN)))
    monkeypatch.setattr(command, "_result", lambda version, folder: result(retry=NOT_RUN))
    monkeypatch.setattr(sys, "argv", ["versions", "0.12.0", "--folder", str(tmp_path)])
    environment = tmp_path / "0.12.0"
    environment.mkdir()
    assert command.main() == 1
    assert environment.exists(), "it is needed once more"
    monkeypatch.setattr(command, "_result", lambda version, folder: result())
    assert command.main() == 0
    assert not environment.exists()


def test_a_step_that_fails_is_the_reason_in_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(version: str, folder: Path) -> Path:
        folder.mkdir()
        raise subprocess.CalledProcessError(1, "pip", stderr="trying\nERROR: No matching distribution\n")

    monkeypatch.setattr(command, "make", fails)
    monkeypatch.setattr(sys, "argv", ["versions", "0.12.0", "--folder", str(tmp_path)])
    assert command.main() == 1
    found = json.loads((tmp_path / "results" / "0.12.0.json").read_text())["found"]
    assert set(found.values()) == {"the environment could not be made: ERROR: No matching distribution"}
    assert not (tmp_path / "0.12.0").exists()


def test_a_version_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["versions", "0.99.0"])
    with pytest.raises(SystemExit):
        command.main()
    assert set(command.WANTED) <= set(RELEASED)


def test_why_a_start_failed_is_the_cause_and_not_its_report() -> None:
    log = "x\nValueError: To serve at least one request\n\nRuntimeError: Engine core initialization failed. See above\n"
    assert _last(log) == "ValueError: To serve at least one request"
    assert _last("killed\n") == "killed"
    assert _last("") == "nothing was said"
