"""Questions in processes of their own: what comes back of those that answer, fail, crash and hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_autofit.doctor.asking import Answer, Question, ask

ANSWERS = "import json, sys; print(json.dumps({'argument': sys.argv[1:]}))"
HANGS = "import time; time.sleep(600)"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be run; ``write`` says what it does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return "asked_module"


def answer(module: str, tmp_path: Path, source: str, seconds: float = 60) -> Answer:
    (tmp_path / f"{module}.py").write_text(source)
    return ask([Question(module, seconds, "word")])[0]


def test_an_answer(module: str, tmp_path: Path) -> None:
    assert answer(module, tmp_path, ANSWERS) == Answer({"argument": ["word"]})


def test_one_that_hangs_is_given_up(module: str, tmp_path: Path) -> None:
    assert answer(module, tmp_path, HANGS, 0.5) == Answer(trouble="no answer within 0.5 s")


@pytest.mark.parametrize(
    ("source", "trouble"),
    [
        ("raise OSError('no such thing')", "it ended with status 1 (OSError: no such thing)"),
        ("import os; os.abort()", "it was killed by SIGABRT"),
        ("", "it ended with status 0"),
        ("import sys; print('{'); sys.exit(3)", "it ended with status 3"),
    ],
)
def test_one_that_fails_says_how(module: str, tmp_path: Path, source: str, trouble: str) -> None:
    assert answer(module, tmp_path, source).trouble.splitlines()[0].startswith(trouble)


def test_all_are_asked_at_once_and_one_that_hangs_spoils_no_other(module: str, tmp_path: Path) -> None:
    (tmp_path / "other_module.py").write_text(HANGS)
    (tmp_path / f"{module}.py").write_text(ANSWERS)
    first, second = ask([Question("other_module", 0.5), Question(module, 60)])
    assert first.trouble
    assert second == Answer({"argument": []})


def test_a_folder_that_one_happens_to_stand_in_is_not_searched(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import importlib.util, json; print(json.dumps({'found': bool(importlib.util.find_spec('lurking'))}))"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lurking.py").touch()
    monkeypatch.chdir(elsewhere)
    assert answer(module, tmp_path, source) == Answer({"found": False})
