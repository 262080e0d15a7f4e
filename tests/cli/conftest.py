"""Stores that commands read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.history import NEW, OLD, OTHER, OTHER_KEY, put, start
from vllm_autofit.experience.store import Store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the command reads, empty."""
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path / "cache"))
    return Store(tmp_path / "cache")


@pytest.fixture
def starts(store: Store) -> Store:
    """Two starts with one key, and one of another model."""
    put(store, start(OLD), start(NEW), start(OTHER, OTHER_KEY, "org/two"))
    return store
