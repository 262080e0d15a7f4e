"""The torture of ``python -m benchmarks.store``, at a size that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.store import TORTURES


@pytest.mark.parametrize("name", [name for name in TORTURES if name != "lookups"])
def test_nothing_is_lost(name: str) -> None:
    """In a process of its own: it forks."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store", "--small", name],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(name)
