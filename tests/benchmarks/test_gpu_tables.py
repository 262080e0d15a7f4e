"""The tables of the proof on a GPU, and what they are made from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import table
from benchmarks.gpu.cells import fixed_cells
from benchmarks.gpu.ledger import Ledger
from benchmarks.gpu.log import failure, figures
from tests.benchmarks.gpu_machine import MACHINE
from vllm_autofit.units import GIB

LOG = """\
INFO [gpu_model_runner.py:1] Model loading took 14.99 GiB memory and 3.2 seconds
INFO [gpu_worker.py:1] Available KV cache memory: 50.50 GiB
INFO [kv_cache_utils.py:1] GPU KV cache size: 413,696 tokens
INFO [kv_cache_utils.py:2] Maximum concurrency for 131,072 tokens per request: 3.16x
INFO [gpu_model_runner.py:1] Graph capturing finished in 5 secs, took 0.50 GiB
"""


# What vLLM printed


def test_figures_of_a_log_are_those_of_its_last_start() -> None:
    found = figures("Available KV cache memory: 60.00 GiB\nGPU KV cache size: 500,000 tokens\n" + LOG)
    assert found == {
        "weights_bytes": round(14.99 * GIB),
        "kv_cache_bytes": round(50.5 * GIB),
        "graphs_bytes": GIB // 2,
        "kv_tokens": 413_696,
        "context": 131_072,
        "concurrency": 3.16,
    }
    assert figures("nothing of that") == {}
    # one line, from 0.28 on
    line = "CPU KV cache size: 1,024 tokens, Maximum concurrency for 512 tokens per request: 2.00x"
    assert figures(line) == {"kv_tokens": 1024, "context": 512, "concurrency": 2.0}


def test_a_failure_is_diagnosed_and_its_log_kept() -> None:
    text = (
        "ValueError: Free memory on device cuda:0 (60.0/80.0 GiB) on startup is less than desired GPU memory "
        "utilization (0.92, 73.6 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    found = failure(text)
    assert found["is_capacity_failure"]
    assert found["phase"] == "startup_check"
    assert found["tail"] == [text]


# Tables


def _document(name: str, **more: Any) -> dict[str, Any]:
    model, _, rest = name.partition("/")
    scenario, who, number = rest.rsplit("-", 2)
    header = {"cell": name, "model": model, "scenario": scenario, "who": who, "number": int(number), "share": None}
    return {
        **header,
        "began": "2026-01-01T00:00:00+00:00",
        "seconds": 60.0,
        "survived": True,
        "outcome": "served",
    } | more


def test_the_tables_have_the_plan_the_oracle_and_what_failed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.bind(MACHINE)
    terms = dict.fromkeys(("asked", "activations", "CUDA graphs", "non-torch", "KV cache"))
    record = {
        "state": "ended", "profiling_skipped": False, "settings": {"gpu_memory_utilization": 0.97},
        "planned": {**terms, "weights": 15 * GIB, "KV tokens": 990},
        "measured": {**terms, "weights": 16 * GIB, "KV tokens": 1000},
    }  # fmt: skip
    past = {"requests": 9, "completed": 8, "cut": True, "preemptions": 3, "peak_kv_usage": 1.0, "least_free_bytes": GIB}
    for document in (
        _document("m/start-plain-1", variables={"VLLM_A": "1"}, printed={"kv_tokens": 900}, past=past),
        _document("m/start-ours-1", code="a", printed={"kv_tokens": 1000}, record=record),
        {**_document("m/oracle-plain-1", printed={"kv_tokens": 1010}), "share": 0.95, "cell": "m/oracle-0.9500"},
        _document("m/tenant-before-plain-1", outcome="did not start", free_bytes=70 * GIB, failure=failure("Killed")),
        _document("m/two-ours-1", code="b", served=2, engines=[{"outcome": "served", "attempts": 1}] * 2),
    ):
        ledger.keep(document["cell"], document)
    page = "\n".join(table.page(table.collected(ledger, ["m/start-ours-2"])))
    assert "| m | plain | 1 | served |  | default | 900 |" in page
    assert "| 8/9 (cut) | 3 | 100.0% | 1.00 |" in page
    assert "| m | ours | 1 | served |  | 0.9700 | 1,000 | 111.1 % |" in page
    assert "| m | 1 |  | 15.00 / 16.00 (-6.2%) |" in page
    assert "990 / 1,000 (-1.0%)" in page
    assert "| m | 0.9500 | 1 | 1,010 | 900 (-10.89%) | 1,000 (-0.99%) |" in page
    assert "| m/tenant-before-plain-1 | did not start |" in page
    assert "2 of 2 served" in page
    assert "Variables that were set: `VLLM_A=1`." in page
    assert "Made with 2 states of the package: a, b." in page
    assert "Somebody else held memory of the device before: m/tenant-before-plain-1." in page
    assert "1 cells are left" in page
    assert all(
        line.count("|") == page.splitlines()[0].count("|") or "|" in line
        for line in page.splitlines()
        if line.startswith("|")
    )


def test_every_row_of_a_table_has_its_columns(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.bind(MACHINE)
    for cell in fixed_cells(["m"]):
        ledger.keep(cell.name, _document(cell.name, outcome="did not start", failure=failure("a | b")))
    width = None
    for line in table.page(table.collected(ledger, [])):
        if not line.startswith("|"):
            width = None
            continue
        columns = line.replace("\\|", "").count("|")
        assert width in (None, columns), line
        width = columns


def test_figures_of_a_cpu_are_not_published(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.bind({**MACHINE, "kind": "cpu"})
    with pytest.raises(ValueError, match="on a GPU"):
        table.publish(table.collected(ledger, []))


def test_the_page_has_a_place_for_them() -> None:
    from benchmarks.page import PAGE

    text = PAGE.read_text()
    assert text.index(f"<!-- {table.BLOCK}: begin -->") < text.index(f"<!-- {table.BLOCK}: end -->")


def test_without_a_device_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == command.IMPOSSIBLE, done.stderr
    assert done.stderr.startswith("benchmarks.gpu: ")
    assert done.stderr.count("\n") == 1
