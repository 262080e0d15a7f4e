"""Real vLLM on this machine's CPU, started the way users start it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dev.neighbour import neighbour

PLAIN_ASKS_FOR = 0.92
"""vLLM 0.32's default utilisation."""
NEIGHBOUR_LEAVES = 0.80


@pytest.fixture(scope="module")
def shared_machine() -> Iterator[None]:
    """Another process holds so much that vLLM's default asks for more than there is."""
    with neighbour(share=NEIGHBOUR_LEAVES):
        yield


def run(command: Sequence[str], environ: Mapping[str, str], seconds: float = 280) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its standard output and error come back together."""
    return subprocess.run(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds,
        check=False,
    )


def python(script: Path, *arguments: str) -> list[str]:
    """A script with this environment's Python."""
    return [sys.executable, str(script), *arguments]


def our_lines(text: str) -> list[str]:
    """What we said."""
    return [line for line in text.splitlines() if "vllm-autofit" in line]


def our_warnings(text: str) -> list[str]:
    """What we warned of."""
    return [line for line in our_lines(text) if " INFO " not in line]


def records(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    """All records, oldest first."""
    folder = Path(environ["VLLM_AUTOFIT_CACHE_DIR"]) / "starts"
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/*.json"), key=lambda path: path.name)]
