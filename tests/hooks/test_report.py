"""What is reported of a vLLM: the installed one, and ones that are absent, broken, or not as we know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_autofit.doctor.asking import Answer, Question, ask
from vllm_autofit.hooks import report
from vllm_autofit.hooks.seams import Seam

REPORT = "vllm_autofit.hooks.report"


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with ``Thing.method(self, x, y)``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "probed_module.py").write_text("class Thing:\n    def method(self, x, y):\n        return x\n")
    (tmp_path / "broken_module.py").write_text("import nothing_of_the_kind\n")
    return "probed_module"


@pytest.mark.parametrize(
    ("module", "name", "parameters", "optional", "state", "detail"),
    [
        ("probed_module", "Thing.method", ("x",), False, "holds", ""),
        ("probed_module", "Thing.method", ("z",), False, "changed", "a function of (x, y)"),
        ("probed_module", "Thing.method", ("z",), True, "changed", "a function of (x, y)"),
        ("probed_module", "Thing.gone", (), False, "missing", ""),
        ("probed_module", "Thing.gone", (), True, "absent", ""),
        ("broken_module", "f", (), False, "missing", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("gone_module", "f", (), True, "absent", "ModuleNotFoundError: No module named 'gone_module'"),
    ],
)
def test_the_state_of_a_seam(
    target: str, module: str, name: str, parameters: tuple[str, ...], optional: bool, state: str, detail: str
) -> None:
    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        raise AssertionError

    assert report._probed(Seam(module, name, parameters, wrapper, "testing", optional)) == (state, module, detail)


def reported_with(vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> Answer:
    """Of a package ``vllm`` of one line."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(vllm)
    return ask([Question(REPORT, seconds)])[0]


def test_a_vllm_that_can_not_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = reported_with("raise ImportError('libcudart.so.13: not found')", tmp_path, monkeypatch, 60)
    assert answer.found["installed"] is True
    assert answer.found["error"] == "ImportError: libcudart.so.13: not found"


def test_a_vllm_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = reported_with("import time; time.sleep(600)", tmp_path, monkeypatch, 2)
    assert answer.trouble == "no answer within 2 s"


def test_what_vllm_prints_does_not_spoil_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = reported_with("import os; print('hello'); os.write(1, b'from below'); 1 / 0", tmp_path, monkeypatch, 60)
    assert answer.found["error"] == "ZeroDivisionError: division by zero"


@pytest.mark.vllm
def test_the_installed_vllm() -> None:
    (answer,) = ask([Question(REPORT, 240)])
    assert answer.trouble == ""
    found = answer.found
    assert "error" not in found
    assert found["loaded"] is True
    assert "vllm_autofit" in found["plugins"]
    assert "VLLM_PLUGINS" in found["variables"]
    assert {seam["state"] for seam in found["seams"]} <= {"holds", "absent"}
    assert {"engine_args", "engine_core", "executor", "worker", "parser"} <= {seam["seam"] for seam in found["seams"]}
    if found["backend"] == "cpu":
        assert found["host"][0]["total_bytes"] > found["host"][0]["free_bytes"] > 0


@pytest.mark.vllm
@pytest.mark.full
def test_switched_off_it_is_not_loaded_and_the_seams_are_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT", "0")
    (answer,) = ask([Question(REPORT, 240)])
    assert answer.found["loaded"] is False
    assert answer.found["seams"]
