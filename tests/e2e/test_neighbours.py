"""Other processes hold memory, and take more between two starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dev.neighbour import neighbour
from dev.server import serving, vllm_command
from tests.conftest import small_headroom
from tests.e2e.conftest import our_warnings, records

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]


@pytest.mark.parametrize("held_gib", [3, 6])
def test_the_plain_command_starts_beside_a_process_that_holds_memory(
    held_gib: int, tiny_model: Path, tmp_path: Path
) -> None:
    with neighbour(gib=held_gib):
        environ = {**os.environ, "VLLM_AUTOFIT_HEADROOM": small_headroom()}
        with serving(vllm_command("serve", str(tiny_model)), tmp_path / "log", environ) as server:
            assert server.wait(), server.text()[-3000:]
            assert server.complete("Hello")["text"]
            assert not our_warnings(server.text())
    assert records(environ)[0]["outcome"]["ended"]["how"] == "clean"
