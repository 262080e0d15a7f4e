"""Real starts that fail for memory: what can be cured starts all the same, what can't ends with its cause."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

from dev.neighbour import GIB, available_and_total
from dev.provocations import ENGINE_STARTS, PROFILE, WEIGHTS, Provocation, Trouble, provoke
from tests.e2e.conftest import our_lines, records, run

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

MORE_THAN_THERE_IS = {"gpu_memory_utilization": 0.99}


@pytest.fixture
def taken_gib() -> float:
    """What a neighbour takes between plan and check, so that what was planned isn't there any more: half of it."""
    return available_and_total()[0] / GIB / 2


def test_memory_that_is_taken_between_plan_and_check_is_planned_around(
    taken_gib: float, tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    environ = {**serve_environ, "VLLM_AUTOFIT_HEADROOM": "1GiB", "VLLM_CPU_CI_ENV": "1"}
    late = Provocation("late", True, {"max_model_len": 2048}, Trouble(ENGINE_STARTS, takes_gib=taken_gib))
    outcome = provoke(late, "serve", tiny_model, tmp_path, environ)
    assert outcome.served, outcome.log[-3000:]
    assert outcome.attempts == 2
    first, second = records(environ)
    assert first["outcome"]["failure"]["phase"] == "startup_check"
    assert first["outcome"]["failure"]["is_capacity"]
    assert second["plan"]["after_failed"] == first["run_id"]
    assert second["outcome"]["ended"]["how"] == "clean"


@pytest.mark.parametrize("kind", ["serve", "LLM"])
def test_a_share_that_is_not_free_is_refused_before_anything_is_loaded(
    kind: str, tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    outcome = provoke(Provocation("share", False, MORE_THAN_THERE_IS), kind, tiny_model, tmp_path, serve_environ)
    assert not outcome.served
    assert "(EngineCore pid=" not in outcome.log
    assert outcome.last_words.endswith("VLLM_AUTOFIT_REFUSE=0 starts it all the same.")
    assert "gpu_memory_utilization=0.99 asks for" in outcome.log
    assert "would work" in outcome.log
    assert records(serve_environ) == []


@pytest.mark.full
@pytest.mark.parametrize("victim", ["VLLM::Worker", "VLLM::EngineCore"])
@pytest.mark.parametrize(("when", "phase"), [(WEIGHTS, "weight_load"), (PROFILE, "profile_run")])
def test_a_process_that_is_killed_is_named_as_the_cause(
    victim: str, when: str, phase: str, tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    killed = Provocation("killed", False, {"max_model_len": 2048}, Trouble(when, kill=victim))
    outcome = provoke(killed, "LLM", tiny_model, tmp_path, serve_environ)
    assert not outcome.served
    assert "killed from outside" in outcome.last_words
    (record,) = records(serve_environ)
    failure = record["outcome"]["failure"]
    assert (failure["is_capacity"], failure["resource"], failure["phase"]) == (True, "host", phase)
    assert not [line for line in our_lines(outcome.log) if "went on without" in line]


LEAKED_STARTS = 20


@pytest.mark.full
def test_nothing_is_left_of_attempts_that_failed(
    tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    """What plain starts leave, vLLM's sockets of a normal end, a retried one leaves too, and no more."""
    folder = tmp_path / "t"
    folder.mkdir()
    environ = {**serve_environ, "VLLM_AUTOFIT_HEADROOM": "1GiB", "TMPDIR": str(folder), "VLLM_CPU_CI_ENV": "1"}
    command = [sys.executable, "-m", "dev.leaks", str(tiny_model), "--starts", str(LEAKED_STARTS)]
    done = run(command, environ, seconds=LEAKED_STARTS * 120)
    assert done.returncode == 0, done.stdout[-3000:]
    plain, *retried = json.loads(done.stdout.splitlines()[-1])
    assert all(each["retried"] for each in retried)
    assert all(each["children"] == [] for each in retried)
    assert len({tuple(each["environment"]) for each in (plain, *retried)}) == 1
    for name in ("shm", "open_files", "threads"):
        assert retried[-1][name] <= retried[0][name], name
    # The first start's files include caches, which stay; each later one adds vLLM's own sockets of a normal end.
    added = [after["temporary"] - before["temporary"] for before, after in itertools.pairwise(retried)]
    assert max(added) <= plain["temporary"], added
