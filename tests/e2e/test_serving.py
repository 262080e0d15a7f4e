"""What a record holds of an engine that served, however it ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.server import serving, vllm_command
from tests.conftest import run_forked
from tests.e2e.conftest import our_warnings, records
from vllm_autofit.experience.ending import ending
from vllm_autofit.hooks import serving as watching

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

MIB = 2**20
SMALL: dict[str, Any] = {"kv_cache_memory_bytes": 64 * MIB, "max_model_len": 2048, "enforce_eager": True}


@pytest.fixture
def _in_one_quick_process(monkeypatch: pytest.MonkeyPatch, small_start: None, vllm_loaded: None) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")


def start(model: Path, **fields: Any) -> Any:
    from vllm import LLM

    return LLM(str(model), **{**SMALL, **fields})


def generate(llm: Any, prompts: list[str], tokens: int) -> None:
    from vllm import SamplingParams

    llm.generate(prompts, SamplingParams(max_tokens=tokens, ignore_eos=True), use_tqdm=False)


def run_killed(function: Callable[[], Any]) -> None:
    """Run a function in a fork of this process that is to end by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            function()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def kill_me(*_arguments: Any, **_keywords: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.usefixtures("_in_one_quick_process")
def test_an_engine_that_its_user_lets_go_ended_cleanly_and_every_token_is_counted(tiny_model: Path) -> None:
    def child() -> None:
        import gc

        llm = start(tiny_model)
        generate(llm, ["Hello", "World!"], 4)
        del llm
        gc.collect()

    run_forked(child)
    (record,) = records(os.environ)
    assert ending(record) == "clean"
    assert record["outcome"]["state"] == "ended"
    (engine,) = record["engines"]
    assert engine["enforce_eager"] is True
    served = engine["serving"]
    assert (served["requests"], served["prompt_tokens"], served["generated_tokens"]) == (2, 5 + 6, 2 * 4)
    assert served["preemptions"] == 0
    # 64 MiB are 256 blocks, of which vLLM keeps one back; each request held one
    assert served["peak_kv_usage"] == pytest.approx(2 / 255, abs=1e-4)
    (device,) = served["devices"]
    assert 0 < device["least_free_bytes"] < record["identity"]["devices"][0]["total_bytes"]
    (rank,) = engine["ranks"]
    assert 100 * MIB < rank["before"]["own_bytes"] < rank["before"]["total_bytes"] - rank["before"]["free_bytes"]


@pytest.mark.usefixtures("_in_one_quick_process")
def test_preemptions_and_a_full_cache_are_seen(tiny_model: Path) -> None:
    def child() -> None:
        llm = start(tiny_model, kv_cache_memory_bytes=2 * MIB, max_model_len=512)
        generate(llm, ["x" * 120] * 4, 20)
        llm.llm_engine.engine_core.shutdown()

    run_forked(child)
    (record,) = records(os.environ)
    served = record["engines"][0]["serving"]
    assert served["preemptions"] > 0, "4 x 140 tokens don't fit into 7 blocks of 128"
    assert served["peak_kv_usage"] > 0.8
    assert (served["requests"], served["prompt_tokens"], served["generated_tokens"]) == (4, 480, 80)
    assert ending(record) == "clean"


@pytest.mark.usefixtures("_in_one_quick_process")
@pytest.mark.parametrize(
    ("kind", "how"), [("torch.OutOfMemoryError", "out_of_memory"), ("RuntimeError", "engine_died")]
)
def test_an_engine_that_dies_in_a_step_leaves_the_reason(kind: str, how: str, tiny_model: Path) -> None:
    def child() -> None:
        import torch
        from vllm.v1.worker.cpu_worker import CPUWorker

        error = torch.OutOfMemoryError if kind == "torch.OutOfMemoryError" else RuntimeError
        llm = start(tiny_model)
        generate(llm, ["Hello"], 4)

        def execute_model(*_arguments: Any, **_keywords: Any) -> None:
            raise error("a step went wrong")

        CPUWorker.execute_model = execute_model
        with pytest.raises(error):
            generate(llm, ["Hello"], 4)

    run_forked(child)
    (record,) = records(os.environ)
    assert ending(record) == how
    assert record["outcome"]["ended"]["failure"]["message"] == "a step went wrong"
    assert record["outcome"]["ended"]["failure"]["phase"] == "runtime"
    assert record["engines"][0]["serving"]["requests"] == 1


@pytest.mark.usefixtures("_in_one_quick_process")
@pytest.mark.parametrize(
    ("phase", "function"),
    [
        ("weight_load", "load_model"),
        ("profile_run", "determine_available_memory"),
        ("kv_alloc", "initialize_from_config"),
    ],
)
def test_a_start_killed_in_a_phase_says_which_and_the_next_one_is_right(
    phase: str, function: str, tiny_model: Path
) -> None:
    def killed() -> None:
        from vllm.v1.worker.cpu_worker import CPUWorker

        setattr(CPUWorker, function, kill_me)
        start(tiny_model)

    run_killed(killed)
    (record,) = records(os.environ)
    assert ending(record) == "killed"
    assert record["outcome"]["phase"] == phase
    assert record["engines"] == []

    run_forked(lambda: generate(start(tiny_model), ["Hello"], 2))
    assert records(os.environ)[1]["engines"][0]["kv_cache"]["pool_bytes"] == 64 * MIB


@pytest.mark.usefixtures("_in_one_quick_process")
def test_an_engine_killed_while_it_serves_leaves_its_last_sample(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SAMPLE_SECONDS", 0.2)

    def killed() -> None:
        llm = start(tiny_model)
        generate(llm, ["Hello"], 4)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            served = records(os.environ)[0]["engines"][0].get("serving")
            if served and served["requests"]:
                kill_me()
            time.sleep(0.05)

    run_killed(killed)
    (record,) = records(os.environ)
    assert record["outcome"]["state"] == "serving"
    assert ending(record) == "killed"
    served = record["engines"][0]["serving"]
    assert (served["requests"], served["generated_tokens"]) == (1, 4)
    assert served["devices"][0]["least_free_bytes"] > 0


@pytest.mark.parametrize("ends", ["SIGTERM", pytest.param("engine core killed", marks=pytest.mark.full)])
def test_a_server_that_is_stopped_ended_cleanly_and_one_whose_engine_core_is_killed_did_not(
    ends: str, tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    options = ["--enforce-eager", "--kv-cache-memory-bytes", str(64 * MIB), "--max-model-len", "2048"]
    with serving(vllm_command("serve", str(tiny_model), *options), tmp_path / "log", serve_environ) as server:
        assert server.wait(), server.text()[-3000:]
        for _ in range(3):
            server.complete("Hello", tokens=4)
        deadline = time.monotonic() + 3 * watching.SAMPLE_SECONDS
        while not records(serve_environ)[0]["engines"][0].get("serving") and time.monotonic() < deadline:
            time.sleep(0.1)
        if ends == "SIGTERM":
            server.process.send_signal(signal.SIGTERM)
        else:
            os.kill(records(serve_environ)[0]["outcome"]["pid"], signal.SIGKILL)
        server.process.wait(60)
    (record,) = records(serve_environ)
    if ends == "SIGTERM":
        assert not our_warnings(server.text())
        assert ending(record) == "clean"
    else:
        assert all("The engine died while it served, after 3 requests." in each for each in our_warnings(server.text()))
        assert "vllm-autofit: The engine died" in server.text().rpartition("Finished server process")[2]
        assert ending(record) == "out_of_memory"
    served = record["engines"][0]["serving"]
    assert (served["requests"], served["prompt_tokens"], served["generated_tokens"]) == (3, 15, 12)
