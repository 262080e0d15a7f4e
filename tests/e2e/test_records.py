"""What a start leaves behind, and what happens when the folder for it is in trouble."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dev.server import serving, vllm_command
from tests.conftest import printed, run_forked
from tests.e2e.conftest import our_lines, our_warnings, python, records, run

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]


@pytest.fixture(autouse=True)
def _in_one_quick_process(monkeypatch: pytest.MonkeyPatch, small_start: None, vllm_loaded: None) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")


def start(model: Path, **fields: Any) -> str:
    """Start an LLM in a process of its own, use it, and return what it printed."""

    def child() -> str:
        from vllm import LLM, SamplingParams

        llm = LLM(str(model), **fields)
        answer = llm.generate(["Hello"], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
        assert len(answer[0].outputs[0].token_ids) == 2
        return printed()

    return run_forked(child)


def test_a_record_holds_who_what_and_how_much(tiny_model: Path) -> None:
    start(tiny_model, max_model_len=2048)
    (record,) = records(os.environ)
    (engine,) = record["engines"]
    (rank,) = engine["ranks"]
    assert record["identity"]["fingerprint"].startswith("sha256:")
    assert record["identity"]["vllm"].startswith("0.")
    assert record["settings"]["max_model_len"] == {"value": 2048, "chosen_by": "user"}
    assert record["settings"]["tensor_parallel_size"] == {"value": 1, "chosen_by": "vllm"}
    assert engine["dtype"] == "bfloat16"
    assert engine["max_model_len"] == 2048
    cache = engine["kv_cache"]
    assert cache["pool_bytes"] == cache["blocks"] * cache["bytes_per_block"] == rank["kv_cache_bytes"]
    # 4 layers x 2 (key and value) x 2 heads x 64 x 2 bytes, for each of a block's tokens
    assert cache["bytes_per_block"] == 4 * 2 * 2 * 64 * 2 * cache["block_size"]
    assert cache["tokens"] == cache["blocks"] * cache["block_size"]
    # the file's tensors, and the table of the rotary embedding: 2048 positions x 64 x 2 bytes or more
    weights = (tiny_model / "model.safetensors").stat().st_size
    assert 0.99 * weights < rank["weights_bytes"] < weights + 40960 * 64 * 2
    assert rank["requested_bytes"] == pytest.approx(
        record["settings"]["gpu_memory_utilization"]["value"] * rank["before"]["total_bytes"], rel=0.01
    )
    assert rank["weights_bytes"] + rank["non_torch_bytes"] + rank["kv_cache_bytes"] == rank["requested_bytes"]
    assert rank["after"]["free_bytes"] < rank["before"]["free_bytes"]
    assert 0 < engine["seconds"]["kv_cache_and_warm_up"] <= engine["seconds"]["since_plan"]


def test_deleting_the_folder_between_starts_only_forgets(tiny_model: Path) -> None:
    import shutil

    folder = Path(os.environ["VLLM_AUTOFIT_CACHE_DIR"])
    start(tiny_model)
    shutil.rmtree(folder)
    text = start(tiny_model)
    assert not our_warnings(text)
    assert "from the record" not in our_lines(text)[0]
    assert len(records(os.environ)) == 1


def _unwritable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", "/proc/vllm-autofit")


def _file_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "starts").write_text("a file where a folder should be")


def _garbage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = random.Random(0)
    for path in (folder / "starts").glob("*/*.json"):
        path.write_bytes(noise.randbytes(5000))
    (folder / "starts" / "noise").write_bytes(noise.randbytes(5000))


@pytest.mark.parametrize("trouble", [_unwritable, _file_in_the_way, _garbage])
def test_a_folder_in_trouble_costs_one_warning_and_vllm_starts(
    trouble: Callable[[Path, pytest.MonkeyPatch], None], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble is _garbage:
        start(tiny_model)
    trouble(Path(os.environ["VLLM_AUTOFIT_CACHE_DIR"]), monkeypatch)
    text = start(tiny_model)
    assert len(our_warnings(text)) == 1, our_warnings(text)
    assert "set gpu_memory_utilization=" in text


def test_a_context_that_does_not_fit_is_lowered_by_vllm_and_said(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 MiB hold 8192 tokens of this model: 2 KiB each, in blocks of 128, one block kept back by vLLM.
    monkeypatch.setenv("VLLM_AUTOFIT_MIN_CONTEXT", "16K")
    text = start(tiny_model, kv_cache_memory_bytes=16 * 2**20)
    assert records(os.environ)[0]["engines"][0]["max_model_len"] < 8192
    foreseen, *_help, seen = our_warnings(text)
    assert "does not fit by the estimate: 0.02 GiB short for a context of 16,384" in foreseen
    assert "under VLLM_AUTOFIT_MIN_CONTEXT=16384" in seen


def test_a_start_that_fails_later_leaves_its_phase(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_REFUSE", "0")

    def child() -> str:
        from vllm import LLM

        try:
            LLM(str(tiny_model), max_model_len=32768, kv_cache_memory_bytes=16 * 2**20)
        except ValueError as error:
            return str(error)
        return ""

    message = run_forked(child)
    assert "To serve at least one request" in message
    (record,) = records(os.environ)
    assert record["outcome"]["failure"]["phase"] == "max_len_too_long"
    assert record["outcome"]["failure"]["message"] == message


def test_observe_changes_nothing_and_still_records(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT", "observe")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # so that vLLM's own default starts

    def child() -> tuple[float, Any, str]:
        from vllm import LLM

        config = LLM(str(tiny_model)).llm_engine.vllm_config
        return config.cache_config.gpu_memory_utilization, config.model_config.original_max_model_len, printed()

    utilization, asked_context, text = run_forked(child)
    assert utilization == 0.92
    assert asked_context is None
    assert "would set (VLLM_AUTOFIT=observe) gpu_memory_utilization=0." in text
    (record,) = records(os.environ)
    assert record["settings"]["gpu_memory_utilization"] == {"value": 0.92, "chosen_by": "vllm"}
    assert record["outcome"]["state"] == "ended"


def test_a_model_without_a_kv_cache_starts(tiny_embedder: Path) -> None:
    def child() -> tuple[int, str]:
        from vllm import LLM

        answer = LLM(str(tiny_embedder), runner="pooling").embed(["Hello"], use_tqdm=False)
        return len(answer[0].outputs.embedding), printed()

    width, text = run_forked(child)
    assert width == 128
    assert not our_warnings(text)
    (record,) = records(os.environ)
    assert record["outcome"]["state"] == "ended"
    assert record["engines"][0]["kv_cache"] == {}


TWO_RANKS = """
from vllm import LLM
if __name__ == "__main__":
    LLM(model={model!r}, tensor_parallel_size=2, enforce_eager=True)
    print("UP")
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="tensor parallel 2 on CPU needs two cores")
def test_two_ranks_share_a_node_and_both_report(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS.format(model=str(tiny_model)))
    done = run(python(script), os.environ)
    assert "UP" in done.stdout, done.stdout[-3000:]
    (record,) = records(os.environ)
    budget = record["plan"]["budget"]
    assert budget["ranks"] == 2
    ranks = record["engines"][0]["ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert all(rank["kv_cache_bytes"] > 0 for rank in ranks)
    assert sum(rank["requested_bytes"] for rank in ranks) < budget["free_bytes"]


def test_several_api_servers_follow_their_launcher(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    command = vllm_command("serve", str(tiny_model), "--api-server-count", "2", "--enforce-eager")
    with serving(command, tmp_path / "log", os.environ) as server:
        assert server.wait(), server.text()[-3000:]
        assert server.complete("Hello")["text"]
        text = server.text()
    assert len(our_lines(text)) == 1, our_lines(text)
    assert len(records(os.environ)) == 1
