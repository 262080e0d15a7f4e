"""Is the plugin loaded, do the seams hold: what is made of a report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_autofit.doctor.asking import Answer
from vllm_autofit.doctor.plugin import plugin_verdicts
from vllm_autofit.doctor.verdict import Verdict, worst


def seam(state: str, detail: str = "") -> dict[str, str]:
    return {"seam": "x", "function": "vllm.x:X.y", "state": state, "detail": detail, "without": "counting requests"}


def verdicts(environ: dict[str, str] | None = None, **changes: Any) -> list[Verdict]:
    report = {
        "installed": True, "plugins": ["vllm_autofit"], "vllm": "0.32.0", "loaded": True, "backend": "cpu",
        "missing_fields": [], "unknown_fields": [], "unknown_variables": [], "seams": [seam("holds")],
    }  # fmt: skip
    return plugin_verdicts(Answer({**report, **changes}), environ or {})


def test_all_is_well() -> None:
    assert [each.level for each in verdicts()] == ["ok", "ok"]


@pytest.mark.parametrize(
    ("environ", "changes", "level", "word"),
    [
        ({}, {"plugins": ["other"]}, "problem", "among its plugins"),
        ({"VLLM_AUTOFIT": "0"}, {}, "note", "VLLM_AUTOFIT turns"),
        ({"VLLM_PLUGINS": "other"}, {}, "problem", "VLLM_PLUGINS leaves it out"),
        ({"VLLM_PLUGINS": ""}, {}, "problem", "VLLM_PLUGINS leaves it out"),
        ({"VLLM_PLUGINS": "other, vllm_autofit"}, {}, "problem", "VLLM_PLUGINS leaves it out"),
        ({"VLLM_PLUGINS": "other,vllm_autofit"}, {}, "problem", "didn't load it"),
    ],
)
def test_why_it_is_not_loaded(environ: dict[str, str], changes: dict[str, Any], level: str, word: str) -> None:
    first, *others = verdicts(environ, loaded=False, **changes)
    assert first.level == level
    assert word in first.says
    assert worst(others) == "ok"


@pytest.mark.parametrize(("state", "level"), [("holds", "ok"), ("absent", "ok"), ("missing", "problem")])
def test_seams(state: str, level: str) -> None:
    assert verdicts(seams=[seam("holds"), seam(state)])[1].level == level


def test_a_seam_that_changed_says_what_is_lost() -> None:
    _, verdict = verdicts(seams=[seam("changed", "a function of (a, b)")])
    assert verdict.says == "vllm.x:X.y is changed (a function of (a, b)): counting requests doesn't work"


def test_what_a_newer_vllm_has() -> None:
    _, _, fields, variables = verdicts(unknown_fields=["a"], unknown_variables=list("bcdefgh"))
    assert (fields.level, variables.level) == ("note", "note")
    assert "1 options that this vllm-autofit doesn't know: a" in fields.says
    assert variables.says.endswith("b, c, d, e, f, ...")
    assert verdicts(missing_fields=["kv_cache_dtype"])[2].level == "problem"


def test_no_vllm_and_one_that_is_broken() -> None:
    assert [each.level for each in plugin_verdicts(Answer({"installed": False, "plugins": []}), {})] == ["note"]
    for answer in (Answer({"installed": True, "error": "ImportError: libx"}), Answer(trouble="no answer within 60 s")):
        (verdict,) = plugin_verdicts(answer, {})
        assert verdict.level == "problem"
        assert (answer.trouble or "ImportError: libx") in verdict.says


@pytest.mark.parametrize(
    ("first_line", "level"),
    [
        ("#!/opt/other/bin/python3.11", "problem"),
        (f"#!{sys.executable}", "note"),
        (f"#!{Path(sys.executable).parent}/python", "note"),
        ("#!/bin/sh", "note"),
        ("\x7fELF", "note"),
    ],
)
def test_a_command_vllm_of_another_environment(tmp_path: Path, first_line: str, level: str) -> None:
    command = tmp_path / "vllm"
    command.write_text(first_line + "\n")
    command.chmod(0o755)
    (verdict,) = plugin_verdicts(Answer({"installed": False, "plugins": []}), {"PATH": str(tmp_path)})
    assert verdict.level == level
