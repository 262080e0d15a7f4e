"""Real starts that fail for memory: what can be cured starts all the same, what can't ends with its cause."""

from __future__ import annotations

import itertools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from dev.neighbour import GIB, available_and_total
from dev.provocations import ENGINE_STARTS, PROFILE, WARMS_UP, WEIGHTS, Provocation, Trouble, provoke
from tests.conftest import printed, run_forked
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
    curable = phase != "weight_load"
    killed = Provocation("killed", curable, {"max_model_len": 2048}, Trouble(when, kill=victim), environ=WARMS_UP)
    outcome = provoke(killed, "LLM", tiny_model, tmp_path, serve_environ)
    assert (outcome.served, outcome.attempts) == ((True, 2) if curable else (False, 1))
    first = min(records(serve_environ), key=lambda record: record["run_id"])
    failure = first["outcome"]["failure"]
    assert (failure["is_capacity"], failure["resource"], failure["phase"]) == (True, "host", phase)
    assert "killed from outside" in (outcome.log if curable else outcome.last_words)
    assert not [line for line in our_lines(outcome.log) if "went on without" in line]


WORKER = """
import itertools, os
from vllm.v1.worker.cpu_worker import CPUWorker

steps = itertools.count()

class Worker(CPUWorker):
    def execute_model(self, *arguments, **keywords):
        if next(steps) >= int(os.environ.get("TEST_ANSWERED_STEPS", 10**9)):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes.")
        return super().execute_model(*arguments, **keywords)
"""
"""One that runs out of memory after some steps: its warm-up, the first answer, and some of the second."""


@pytest.mark.parametrize(
    ("headroom", "processes"), [("", "0"), ("4GiB", "0"), pytest.param("", "1", marks=pytest.mark.full)]
)
def test_an_engine_that_runs_out_while_it_serves_says_so_and_the_next_start_keeps_more_free(
    headroom: str,
    processes: str,
    tiny_model: Path,
    tmp_path: Path,
    vllm_loaded: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", processes)
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    if headroom:
        monkeypatch.setenv("VLLM_AUTOFIT_HEADROOM", headroom)

    (tmp_path / "running_out.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))

    def runs_out() -> str:
        os.environ["TEST_ANSWERED_STEPS"] = "10"
        llm = _small(tiny_model)
        _generate(llm, tokens=2)
        try:
            _generate(llm, tokens=100)
        except Exception as error:
            return "".join(traceback.format_exception(error))
        return "it answered"

    said = run_forked(runs_out)
    _, ours, words = said.rpartition("vllm-autofit: ")
    assert ours, said
    assert words.startswith("The engine died while it served, after 1 requests. ")
    assert "3.00 GiB tried" in words
    theirs = "VLLM_AUTOFIT_HEADROOM is yours and stays: set more of it."
    assert words.strip().endswith(theirs if headroom else "The next start knows, and leaves more of it free.")

    def starts_again() -> str:
        _generate(_small(tiny_model), tokens=2)
        return printed()

    log = run_forked(starts_again)
    first, second = (record["plan"]["budget"] for record in records(os.environ))
    if headroom:
        assert second["headroom_bytes"] == first["headroom_bytes"] == 4 * GIB
        assert "VLLM_AUTOFIT_HEADROOM keeps 4.00 GiB, and yours counts" in log
    else:
        assert second["headroom_source"] == "record"
        assert second["headroom_bytes"] > first["headroom_bytes"]


def _small(model: Path) -> Any:
    from vllm import LLM

    return LLM(str(model), max_model_len=1024, enforce_eager=True, worker_cls="running_out.Worker")


def _generate(llm: Any, tokens: int) -> None:
    from vllm import SamplingParams

    llm.generate(["Hello"], SamplingParams(max_tokens=tokens, ignore_eos=True), use_tqdm=False)


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
