"""The point of it all: where plain vLLM fails for memory, the same command starts; and the second start knows more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from dev.server import serving, vllm_command
from tests.e2e.conftest import our_lines, our_warnings, python, records, run

pytestmark = [pytest.mark.vllm, pytest.mark.e2e, pytest.mark.usefixtures("shared_machine")]

OFFLINE = """
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(model={model!r})
    out = llm.generate(["Hello"], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    print("TOKENS", len(out[0].outputs[0].token_ids))
"""

ASYNC = """
import asyncio
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

async def main():
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model={model!r}))
    try:
        async for out in engine.generate("Hello", SamplingParams(max_tokens=4, ignore_eos=True), "1"):
            pass
        print("TOKENS", len(out.outputs[0].token_ids))
    finally:
        engine.shutdown()

if __name__ == "__main__":
    asyncio.run(main())
"""

BENCH = ("--input-len=8", "--output-len=4", "--batch-size=1", "--num-iters-warmup=1", "--num-iters=1")


def script(text: str, model: Path, tmp_path: Path) -> list[str]:
    file = tmp_path / "script.py"
    file.write_text(text.format(model=str(model)))
    return python(file)


def server_command(kind: str, model: Path) -> list[str]:
    if kind == "serve":
        return vllm_command("serve", str(model))
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]


def job_command(kind: str, model: Path, tmp_path: Path) -> list[str]:
    if kind == "bench":
        return vllm_command("bench", "latency", "--model", str(model), *BENCH)
    return script(OFFLINE if kind == "LLM" else ASYNC, model, tmp_path)


OWN, ONE = "1", "0"
"""``VLLM_ENABLE_V1_MULTIPROCESSING``: engine and workers as processes of their own, or not."""


def cases(*quick: tuple[str, str], kinds: tuple[str, ...]) -> list[Any]:
    """All kinds of launch, with processes of their own and without; the full suite runs those that are not quick."""
    return [
        pytest.param(
            kind,
            processes,
            id=f"{kind}, {'own processes' if processes == OWN else 'multiprocessing off'}",
            marks=() if (kind, processes) in quick else pytest.mark.full,
        )
        for kind in kinds
        for processes in (OWN, ONE)
    ]


@pytest.mark.parametrize(
    ("kind", "multiprocessing"), cases(("serve", OWN), ("api_server", OWN), kinds=("serve", "api_server"))
)
def test_a_server_starts_where_plain_vllm_fails_and_its_second_start_uses_the_record(
    kind: str, multiprocessing: str, tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    command = server_command(kind, tiny_model)
    environ = {**serve_environ, "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing}

    with serving(command, tmp_path / "plain.log", {**environ, "VLLM_AUTOFIT": "0"}) as server:
        assert not server.wait()
        assert server.lines("less than desired")
        assert not our_lines(server.text())
    assert records(environ) == []

    for number in (1, 2) if kind == "serve" else (1,):
        with serving(command, tmp_path / f"{number}.log", environ) as server:
            assert server.wait(), server.text()[-3000:]
            assert len(server.complete("Hello")["text"]) > 0
            line, *skipped = our_lines(server.text())
            assert len(skipped) == number - 1  # the second says, too, that it doesn't measure again
            assert server.models()[0]["max_model_len"] == 32768
        record = records(environ)[-1]
        assert record["run_id"] in line
        assert record["outcome"]["ended"]["how"] == "clean"
        if number == 2:
            first = records(environ)[0]["run_id"]
            assert f"from the record of start {first}" in line
            assert record["plan"]["record"] == first
            assert record["settings"]["gpu_memory_utilization"]["chosen_by"] == "record"


@pytest.mark.parametrize(
    ("kind", "multiprocessing"),
    cases(
        ("LLM", OWN), ("LLM", ONE), ("AsyncEngineArgs", ONE), ("bench", ONE), kinds=("LLM", "AsyncEngineArgs", "bench")
    ),
)
def test_a_job_runs_where_plain_vllm_fails(
    kind: str,
    multiprocessing: str,
    tiny_model: Path,
    serve_environ: dict[str, str],
    tmp_path: Path,
) -> None:
    command = job_command(kind, tiny_model, tmp_path)
    environ = {**serve_environ, "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing}

    plain = run(command, {**environ, "VLLM_AUTOFIT": "0"})
    assert plain.returncode != 0
    assert "less than desired" in plain.stdout
    assert not our_lines(plain.stdout)

    ours = run(command, environ)
    assert ours.returncode == 0, ours.stdout[-3000:]
    assert ("TOKENS 4" in ours.stdout) or ("Avg latency" in ours.stdout)
    assert len(our_lines(ours.stdout)) == 1
    assert not our_warnings(ours.stdout)
    (record,) = records(environ)
    assert record["outcome"]["ended"]["how"] == "clean"
    assert record["engines"][0]["kv_cache"]["tokens"] > 0


def test_a_value_that_the_user_typed_still_fails_as_vllm_does_and_leaves_a_record(
    tiny_model: Path, serve_environ: dict[str, str], tmp_path: Path
) -> None:
    command = [*vllm_command("serve", str(tiny_model)), "--gpu-memory-utilization", "0.92"]
    environ = {**serve_environ, "VLLM_AUTOFIT_REFUSE": "0"}
    with serving(command, tmp_path / "log", environ) as server:
        assert not server.wait()
        assert server.lines("less than desired CPU memory utilization (0.92")
        warning, help_, line, *_at_the_end = our_lines(server.text())
    assert "more than will be free when vLLM checks" in warning
    assert "leave gpu_memory_utilization unset" in help_
    assert "gpu_memory_utilization=0.92 is yours, vllm-autofit would have chosen 0." in line

    (record,) = records(serve_environ)
    assert record["settings"]["gpu_memory_utilization"] == {"value": 0.92, "chosen_by": "user"}
    failure = record["outcome"]["failure"]
    assert record["outcome"]["state"] == "failed"
    assert failure["phase"] == "startup_check"
    assert failure["type"] == "ValueError"
    assert "less than desired" in failure["message"], "the root cause, from the worker, not its report"
    assert 0 < failure["numbers"]["free_bytes"] < failure["numbers"]["total_bytes"]
