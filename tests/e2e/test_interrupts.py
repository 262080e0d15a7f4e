"""Ctrl-C and SIGTERM end a start at any moment, with all that it began."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dev.neighbour import GIB, available_and_total
from dev.provocations import ENGINE_STARTS, Provocation, Trouble, interrupt

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.full]

SHORT = {"max_model_len": 2048}
PLANNED = "vllm-autofit: set"
FAILED = "EngineCore failed to start"
"""What vLLM 0.32's engine core says when an attempt failed; the front end then waits for what it held."""
AGAIN = "Trying again with"
MOMENTS = {"first attempt": ENGINE_STARTS, "between two attempts": FAILED, "second attempt": AGAIN}
MOST_SECONDS = 30.0
"""Until a start has ended: far more than it takes, far less than an attempt that goes on."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", ["serve", "LLM"])
def test_a_signal_ends_all_of_it(
    kind: str, moment: str, number: signal.Signals, tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    environ = {**serve_environ, "VLLM_AUTOFIT_HEADROOM": "1GiB", "VLLM_CPU_CI_ENV": "1"}
    half = available_and_total()[0] / GIB / 2
    trouble = None if moment == "first attempt" else Trouble(PLANNED, takes_gib=half)
    start = Provocation("interrupted", False, SHORT, trouble)
    done = interrupt(start, kind, tiny_model, tmp_path, environ, MOMENTS[moment], number)
    assert MOMENTS[moment] in done.log
    assert done.status is not None, done.log[-3000:]
    assert done.seconds < MOST_SECONDS
    assert done.left == ()
    assert done.port_is_free
    assert "vLLM goes on without it" not in done.log
    if moment != "second attempt":
        assert AGAIN not in done.log
