"""The command ``vllm-autofit``: what it prints, where, and with which exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import record
from vllm_autofit import __version__
from vllm_autofit.cli.main import EXIT_BAD_INPUT, EXIT_NOT_WRITTEN, EXIT_OK, main
from vllm_autofit.experience.store import Store

KEY = "0123456789abcdef"
OLD, NEW = "20261120T120000Z-1-aaaa", "20261121T120000Z-1-bbbb"

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def two_starts(store: Store) -> Store:
    """A store with two starts."""
    for run_id in (OLD, NEW):
        store.update(KEY, run_id, lambda _, run_id=run_id: record(run_id))  # type: ignore[misc]
    return store


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan for this machine's host memory, whatever devices it has."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    monkeypatch.setenv("VLLM_AUTOFIT_HEADROOM", "0")


def run_module(
    *arguments: str, stdout: int = subprocess.PIPE, closed: int | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m vllm_autofit``, as a shell would run it; with ``closed``, as by ``1>&-``."""
    module = [sys.executable, "-m", "vllm_autofit", *arguments]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        module if closed is None else ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *module],
        env={**environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


# The command itself


def test_the_version(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == EXIT_OK
    assert capsys.readouterr().out == f"vllm-autofit {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["history", "nonsense"], ["history", "--format", "xml"]], ids=" ".join
)
def test_a_command_that_is_not_understood_is_bad_input(arguments: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == EXIT_BAD_INPUT
    assert "usage: vllm-autofit" in capsys.readouterr().err


def test_it_runs_as_a_module(two_starts: Store) -> None:
    process = run_module("history", "list")
    assert (process.returncode, process.stderr) == (EXIT_OK, "")
    assert NEW in process.stdout


def test_a_terminal_that_lacks_characters_gets_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.update(KEY, NEW, lambda _: record(NEW, identity={"model": "名前", "devices": []}))
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    process = run_module("history")
    assert (process.returncode, process.stderr) == (EXIT_OK, "")
    assert "??" in process.stdout


def test_a_reader_that_had_enough_is_no_error(two_starts: Store) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = run_module("history", "list", stdout=writing)
    finally:
        os.close(writing)
    assert (process.returncode, process.stderr) == (EXIT_OK, "")


@pytest.mark.parametrize("words", ["history list", "--help", "plan --help"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_can_not_be_written_is_one_line_and_a_status_of_its_own(words: str, two_starts: Store) -> None:
    with Path("/dev/full").open("w") as full:
        process = run_module(*words.split(), stdout=full.fileno())
    assert process.returncode == EXIT_NOT_WRITTEN
    assert process.stderr.startswith("vllm-autofit: the output can't be written (")
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(("words", "status"), [("history list", EXIT_OK), ("plan --gpu a100", EXIT_BAD_INPUT)])
def test_without_stdout_the_status_is_left(words: str, status: int, two_starts: Store) -> None:
    process = run_module(*words.split(), closed=1)
    assert process.returncode == status
    assert process.stderr.count("\n") == (status == EXIT_BAD_INPUT)


def test_without_stderr_no_error_is_taken_for_output(two_starts: Store) -> None:
    process = run_module("plan", "--gpu", "a100", closed=2)
    assert (process.returncode, process.stdout) == (EXIT_BAD_INPUT, "")


# both


@pytest.mark.parametrize("command", ["plan", "history"])
def test_bad_settings_are_named_once_and_nothing_stops(
    command: str, on_the_host: None, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_POLICY", "fast")
    assert main([command]) == EXIT_OK
    output = capsys.readouterr()
    assert output.err == (
        "vllm-autofit: VLLM_AUTOFIT_POLICY='fast' is not one of balanced, throughput, context, safe; "
        "using the default (balanced).\n"
    )
    assert output.out != ""
