"""Engines started in the same second on one device, as users start them."""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from dev.server import Server, serving, vllm_command
from tests.e2e.conftest import our_lines, our_warnings, records
from vllm_autofit.claims.claim import Claim
from vllm_autofit.claims.ledger import Ledger

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.full]

FLAGS = ("--enforce-eager", "--max-model-len", "2048")


def claims(environ: dict[str, str]) -> list[Claim]:
    return Ledger(Path(environ["VLLM_AUTOFIT_CACHE_DIR"])).claims()


def two_servers(
    stack: contextlib.ExitStack, model: Path, folder: Path, environ: dict[str, str]
) -> tuple[Server, Server]:
    command = vllm_command("serve", str(model), *FLAGS)
    first, second = (stack.enter_context(serving(command, folder / f"log{each}", environ)) for each in range(2))
    return first, second


def test_two_engines_started_at_once_come_up_one_after_the_other_and_both_serve(
    tiny_model: Path, tmp_path: Path
) -> None:
    environ = {**os.environ, "VLLM_AUTOFIT_SHARE": "4GiB"}
    with contextlib.ExitStack() as stack:
        servers = two_servers(stack, tiny_model, tmp_path, environ)
        for server in servers:
            assert server.wait(), server.text()[-3000:]
            assert server.complete("Hello")["text"]
            assert not our_warnings(server.text())
        assert [claim.state for claim in claims(environ)] == ["serving"] * 2
        assert sum("waiting until" in line for server in servers for line in our_lines(server.text())) == 1
    assert claims(environ) == []
    spans = sorted(
        (datetime.fromisoformat(start["started_at"]).timestamp(), start["engines"][0]["seconds"]["since_plan"])
        for start in records(environ)
    )
    assert len(spans) == 2
    for (began, seconds), (later, _) in pairwise(spans):
        assert later >= began + seconds - 2  # the times are of whole seconds, and the last figures come after the turn


def test_an_engine_that_is_killed_while_it_starts_keeps_nobody_waiting(tiny_model: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "VLLM_AUTOFIT_SHARE": "4GiB"}
    with contextlib.ExitStack() as stack:
        servers = two_servers(stack, tiny_model, tmp_path, environ)
        while not (first := claims(environ)):
            assert all(server.process.poll() is None for server in servers), servers[0].text()[-3000:]
        killed, other = servers if servers[0].process.pid == first[0].pid else reversed(servers)
        killed.process.kill()
        assert other.wait(), other.text()[-3000:]
        assert other.complete("Hello")["text"]
        assert [claim.pid for claim in claims(environ)] == [other.process.pid]
