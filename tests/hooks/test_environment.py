"""The environment as the user gave it."""

from __future__ import annotations

import os

import pytest

from vllm_autofit.hooks import environment
from vllm_autofit.hooks.environment import note_changes, users_environment


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_changed", {})


def test_what_vllm_sets_changes_and_removes_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CHANGED", "users")
    monkeypatch.setenv("VLLM_GONE", "users")
    for became in ("vllms", "vllms again"):
        before = dict(os.environ)
        monkeypatch.setenv("VLLM_NEW", became)
        monkeypatch.setenv("VLLM_CHANGED", became)
        monkeypatch.delenv("VLLM_GONE", raising=False)
        note_changes(before)
    found = users_environment()
    assert "VLLM_NEW" not in found
    assert (found["VLLM_CHANGED"], found["VLLM_GONE"]) == ("users", "users")
    assert os.environ["VLLM_NEW"] == "vllms again"


def test_what_somebody_changed_later_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    monkeypatch.setenv("VLLM_NEW", "vllms")
    note_changes(before)
    monkeypatch.setenv("VLLM_NEW", "users")
    assert users_environment()["VLLM_NEW"] == "users"
