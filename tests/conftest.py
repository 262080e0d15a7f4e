"""What all tests share: a clean environment, a small model, and a fresh process with vLLM in it within a second."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dev.neighbour import GIB, available_and_total
from vllm_autofit.hooks import guard

T = TypeVar("T")
Forked = Callable[[Callable[[], Any]], Any]
CACHE = Path(__file__).resolve().parent.parent / ".cache"
SMALL_START_GIB = 2.5
"""What a test's vLLM may ask for: filling a KV cache costs about a second per GiB here."""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's reaches a test, and no test reaches the developer's records."""
    for name in [name for name in os.environ if name.startswith(("VLLM_", "_VLLM_AUTOFIT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path / "records"))


@pytest.fixture(autouse=True)
def _nobody_warned_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours is warned of once in a process: in each test anew."""
    monkeypatch.setattr(guard, "_warned", False)


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """A Qwen3 with 6.6 million random weights and a 32768-token context."""
    return _made_elsewhere(CACHE / "tiny-model")


@pytest.fixture(scope="session")
def tiny_embedder() -> Path:
    """A BERT without a KV cache."""
    return _made_elsewhere(CACHE / "tiny-embedder", "--embedder")


@pytest.fixture(scope="session")
def tiny_mixture() -> Path:
    """A Qwen3 with eight experts in each layer."""
    return _made_elsewhere(CACHE / "tiny-mixture", "--mixture")


def _made_elsewhere(folder: Path, *flags: str) -> Path:
    """A model, made in a process of its own: torch's threads don't survive the forks that tests make of this one."""
    subprocess.run([sys.executable, "-m", "dev.tiny_model", str(folder), *flags], cwd=CACHE.parent, check=True)
    return folder


@pytest.fixture
def small_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave all but a little of the machine alone, so that a start takes seconds."""
    monkeypatch.setenv("VLLM_AUTOFIT_HEADROOM", small_headroom())


def small_headroom() -> str:
    """``VLLM_AUTOFIT_HEADROOM`` that leaves ``SMALL_START_GIB`` to ask for, and the start-up of its processes."""
    available, _total = available_and_total()
    return f"{max(0.5, available / GIB - SMALL_START_GIB - 1.5):.1f}GiB"


@pytest.fixture(scope="session")
def vllm_loaded() -> None:
    """vLLM imported in this process, so that forks of it have it at once. Its plugins are not loaded here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.benchmarks.latency
        import vllm.engine.arg_utils
        import vllm.entrypoints.cli.main
        import vllm.entrypoints.cli.serve
        import vllm.entrypoints.launchers.cli_args
        import vllm.entrypoints.llm
        import vllm.v1.engine.async_llm
        import vllm.v1.engine.core
        import vllm.v1.engine.llm_engine
        import vllm.v1.executor.uniproc_executor
        import vllm.v1.worker.cpu_worker
        import vllm.v1.worker.worker_base
    assert not vllm.plugins.plugins_loaded


@pytest.fixture
def forked(vllm_loaded: None) -> Forked:
    """Run a function in a fork of this process: a fresh process of vLLM's in which no plugin is loaded yet.

    Its result comes back; it reads what it printed with ``printed()``. A failure in it fails the test, with all that it
    printed.
    """
    return run_forked


def printed() -> str:
    """In a forked function: everything that the process wrote so far."""
    sys.stdout.flush()
    return Path(os.environ["TEST_FORK_LOG"]).read_text(errors="replace")


def run_forked(function: Callable[[], T]) -> T:
    """See the fixture ``forked``."""
    with tempfile.TemporaryDirectory() as place:
        log, answer = Path(place) / "log", Path(place) / "answer"
        child = os.fork()
        if child == 0:
            _run_child(function, log, answer)
        _, status = os.waitpid(child, 0)
        if status != 0 or not answer.exists():
            pytest.fail(f"forked process ended with status {status}:\n{log.read_text(errors='replace')}", pytrace=False)
        result: T = pickle.loads(answer.read_bytes())
        return result


def _run_child(function: Callable[[], Any], log: Path, answer: Path) -> None:
    status = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        logging.getLogger().handlers.clear()  # pytest's
        for each in logging.getLogger("vllm").handlers:
            if isinstance(each, logging.StreamHandler):
                each.setStream(sys.stdout)
        os.environ["TEST_FORK_LOG"] = str(log)
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="vllm_autofit")
        answer.write_bytes(pickle.dumps(function()))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


@pytest.fixture
def serve_environ(monkeypatch: pytest.MonkeyPatch, small_start: None) -> dict[str, str]:
    """The environment for commands that a test starts."""
    return dict(os.environ)
