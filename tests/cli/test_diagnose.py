"""``vllm-autofit diagnose``: files, stdin, formats, exit status."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_autofit.cli.main import EXIT_BAD_INPUT, EXIT_OK, main
from vllm_autofit.failures.classify import classify_log

LOG = "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.\n"

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log on disk."""
    file = tmp_path / "vllm.log"
    file.write_text(LOG)
    return file


def phase_in(captured: Captured) -> str:
    """The phase of a JSON answer."""
    return str(json.loads(captured.readouterr().out)["phase"])


def test_a_file_as_json(log: Path, capsys: Captured) -> None:
    assert main(["diagnose", str(log), "--format", "json"]) == EXIT_OK
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {
        "is_capacity_failure", "resource", "phase", "numbers", "cause", "remedies", "confidence",
    }  # fmt: skip
    assert document["is_capacity_failure"] is True
    assert set(document["remedies"][0]) == {"change", "flag", "why"}


def test_a_file_for_people(log: Path, capsys: Captured) -> None:
    assert main(["diagnose", str(log)]) == EXIT_OK
    assert "Change: --gpu-memory-utilization" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_stdin(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vllm_autofit", "diagnose", *arguments, "--format", "json"],
        input=LOG,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert json.loads(done.stdout)["phase"] == "no_kv_memory"


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(LOG.encode()),
        LOG.encode("utf-16"),
        LOG.encode("utf-8-sig"),
        LOG.replace("\n", "\r\n").encode(),
        b"\xff\xfe\xfa not UTF-8 \n".replace(b"\xff\xfe", b"\xfa") + LOG.encode(),
        LOG.encode().rstrip(),
        b"x" * 200_000 + b"\n" + LOG.encode(),
    ],
    ids=["gzip", "UTF-16", "BOM", "CRLF", "broken UTF-8", "no line break", "long line"],
)
def test_whatever_the_encoding(content: bytes, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "log"
    file.write_bytes(content)
    assert main(["diagnose", str(file), "--format", "json"]) == EXIT_OK
    assert phase_in(capsys) == "no_kv_memory"


def test_a_log_without_a_failure_is_classified_too(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "log"
    file.write_text("INFO 01-02 03:04:05 [api_server.py:1] Application startup complete.\n")
    assert main(["diagnose", str(file), "--format", "json"]) == EXIT_OK
    assert json.loads(capsys.readouterr().out)["is_capacity_failure"] is False


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\x7fELF\0\0\0" + bytes(100), b"\x1f\x8bnot gzip at all", gzip.compress(LOG.encode())[:-9]],
    ids=["missing", "empty", "binary", "broken gzip", "cut gzip"],
)
def test_bad_input_is_said_in_one_line(content: bytes | None, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "log"
    if content is not None:
        file.write_bytes(content)
    assert main(["diagnose", str(file)]) == EXIT_BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-autofit: cannot read")
    assert captured.err.count("\n") == 1


def test_a_folder_is_bad_input(tmp_path: Path) -> None:
    assert main(["diagnose", str(tmp_path)]) == EXIT_BAD_INPUT


def test_memory_does_not_grow_with_the_log() -> None:
    def lines(count: int) -> Iterator[str]:
        for number in range(count):
            yield f"(Worker pid={number}) ERROR 01-02 03:04:05 [x.py:1] ValueError: request {number:08} failed\n"

    classify_log(lines(5000))  # what is remembered of messages is full
    tracemalloc.start()
    classify_log(lines(20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**21
