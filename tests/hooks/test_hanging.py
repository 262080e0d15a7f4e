"""Never take vLLM down: what reads the world hangs or answers nonsense; vLLM starts, with one warning at most."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import printed, run_forked
from tests.sabotage import our_warnings, sabotage, use_once
from vllm_autofit.hooks import deadline, serving, worker_report

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

AN_HOUR = 3600.0
SECONDS = 3.0
"""Every limit here: enough for a busy machine that answers."""


def hangs(*_args: Any, **_kwargs: Any) -> None:
    """As a call of a driver's C code does: without the interpreter's lock, and without end."""
    time.sleep(AN_HOUR)


@pytest.fixture(autouse=True)
def _in_one_quick_process(monkeypatch: pytest.MonkeyPatch, vllm_loaded: None) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some seconds for each, so that what asks twice doesn't take a minute."""
    limits = (deadline.DRIVER, deadline.DRIVER_IN_USE, deadline.HOST)
    before = [limit.seconds for limit in limits]
    for limit in limits:
        object.__setattr__(limit, "seconds", SECONDS)
    monkeypatch.setattr(deadline, "FOLDER_SECONDS", SECONDS)
    monkeypatch.setattr(worker_report, "HOST_SECONDS", SECONDS)
    monkeypatch.setattr(serving, "SAMPLE_SECONDS", 0.2)
    yield
    for limit, seconds in zip(limits, before, strict=True):
        object.__setattr__(limit, "seconds", seconds)


def start(model: Path, prepare: Callable[[], list[str]]) -> tuple[bool, list[str], int, str]:
    """Whether what ``prepare`` spoils was called, our warnings, the tokens that came, and the log."""

    def child() -> tuple[bool, list[str], int, str]:
        called = prepare()
        from vllm import LLM

        tokens = use_once(LLM(str(model), max_model_len=1024, enforce_eager=True))
        return bool(called), our_warnings(), tokens, printed()

    return run_forked(child)


def a_hung_driver() -> list[str]:
    """A GPU machine, as far as we can tell, whose driver is stuck."""
    import pynvml

    from vllm_autofit.hooks import platform

    called: list[str] = []
    platform.device_type = lambda: "cuda"

    def init() -> None:
        called.append("nvmlInit")
        hangs()

    pynvml.nvmlInit = init
    return called


def test_a_hung_driver_is_named_and_vllm_starts_with_its_defaults(tiny_model: Path) -> None:
    was_called, warnings, tokens, log = start(tiny_model, a_hung_driver)
    assert was_called
    (warning,) = warnings
    assert "the NVIDIA driver (NVML) gave no answer within 3 s. See whether nvidia-smi answers" in warning
    assert warning.endswith("nothing is filled in.")
    assert "vllm-autofit: set" not in log
    assert tokens == 3


@pytest.mark.full
def test_a_hung_driver_hinders_no_engine_core_that_is_forked(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    was_called, warnings, tokens, _log = start(tiny_model, a_hung_driver)
    assert (was_called, len(warnings), tokens) == (True, 1, 3)


READS_AND_WRITES = (
    "vllm_autofit.hooks.platform:read_devices",
    "vllm_autofit.experience.recall:recall",
    "vllm_autofit.experience.store:Store.new_run_id",
    "vllm_autofit.experience.store:Store.update",
    "vllm_autofit.facts.processes:family_bytes",
    "vllm_autofit.hooks.memory_now:_own_memory_node",
    "vllm_autofit.hooks.memory_now:free_bytes_of",
    "vllm_autofit.hooks.runs:record_serving",
    "vllm_autofit.hooks.runs:record_end",
)


@pytest.mark.full
@pytest.mark.parametrize("target", READS_AND_WRITES)
def test_what_reads_or_writes_the_world_may_hang(
    target: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "END_SECONDS", SECONDS)
    was_called, warnings, tokens, _log = start(tiny_model, lambda: sabotage(target, hangs))
    assert was_called
    assert tokens == 3
    in_a_thread_that_nobody_waits_for = ("hooks.runs:record_serving", "hooks.runs:record_end", ":free_bytes_of")
    assert len(warnings) == (0 if target.endswith(in_a_thread_that_nobody_waits_for) else 1), warnings


def the_hosts_figures_hang_once_vllm_has_read_them() -> list[str]:
    """From the worker report on: in it, in the sampler, and at the end."""
    from vllm.utils import cpu_resource_utils

    from vllm_autofit.hooks import engine_core

    called: list[str] = []
    report = engine_core._report

    def read(*_args: Any) -> None:
        called.append("get_memory_node_info")
        hangs()

    def hang_from_here(*args: Any) -> None:
        cpu_resource_utils.get_memory_node_info = read
        report(*args)

    vars(engine_core)["_report"] = hang_from_here
    return called


def test_the_hosts_figures_may_hang_while_it_serves(tiny_model: Path) -> None:
    was_called, warnings, tokens, _log = start(tiny_model, the_hosts_figures_hang_once_vllm_has_read_them)
    assert was_called
    assert tokens == 3
    assert all("the system (/proc and /sys) gave no answer within 3 s" in each for each in warnings)
    assert len(warnings) <= 1


@contextlib.contextmanager
def all_locks_held() -> Iterator[None]:
    """By another process, for ever: every lock of the folder of records."""
    folder = Path(os.environ["VLLM_AUTOFIT_CACHE_DIR"]) / "locks"
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as held:
        for number in range(256):
            file = held.enter_context((folder / f"{number:02x}").open("w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_locks_that_another_process_holds_for_ever(tiny_model: Path) -> None:
    with all_locks_held():
        _, warnings, tokens, log = start(tiny_model, lambda: [])
    assert tokens == 3
    (warning,) = warnings
    assert "the folder of past starts" in warning
    assert "gave no answer within 3 s" in warning
    assert "vllm-autofit: set" in log


def test_pipes_in_place_of_the_files_of_the_store(tiny_model: Path) -> None:
    """Opening one waits for somebody at the other end."""
    start(tiny_model, lambda: [])
    folder = Path(os.environ["VLLM_AUTOFIT_CACHE_DIR"])
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        path.unlink()
        os.mkfifo(path)
    _, warnings, tokens, _log = start(tiny_model, lambda: [])
    assert tokens == 3
    assert len(warnings) <= 2, warnings


def nonsense_devices(total: Any, free: Any) -> Callable[..., list[Any]]:
    from vllm_autofit.values import DeviceFacts

    return lambda *_: [DeviceFacts("cpu", 0, "cpu node 0", total, free, size_is_fixed=False)]


GIB = 2**30
SIZES = (
    (None, None),
    (math.nan, math.nan),
    (-GIB, -2 * GIB),
    (0, 0),
    (2**80, 2**79),
    (16 * GIB, 17 * GIB),
    ("16 GiB", "8 GiB"),
)


@pytest.mark.parametrize(("total", "free"), SIZES)
def test_nonsense_from_a_device_is_said_and_left_to_vllm(total: Any, free: Any, tiny_model: Path) -> None:
    does = nonsense_devices(total, free)
    _, warnings, tokens, log = start(tiny_model, lambda: sabotage("vllm_autofit.hooks.platform:read_devices", does))
    assert tokens == 3
    (warning,) = warnings
    assert f"it says that {free!r} of {total!r} bytes are free" in warning
    assert "vllm-autofit: set" not in log


ANSWERS: tuple[Any, ...] = (None, math.nan, -1, 2**80, "nonsense", [], {})


@pytest.mark.parametrize(
    "target",
    [
        "vllm_autofit.hooks.platform:read_devices",
        "vllm_autofit.hooks.platform:visible_devices",
        "vllm_autofit.planning.planner:make_plan",
        "vllm_autofit.experience.recall:recall",
        "vllm_autofit.facts.model:identify",
        "vllm_autofit.facts.processes:family_bytes",
        "vllm_autofit.hooks.model_config:model_of",
    ],
)
def test_whatever_a_function_answers_vllm_gets_its_config(target: str, tiny_model: Path) -> None:
    for answer in ANSWERS:
        was_called, warnings, types = run_forked(partial(config_with, target, answer, tiny_model))
        assert was_called
        assert len(warnings) <= 1, (answer, warnings)
        assert types == (float, bool, int)


def config_with(target: str, answer: Any, model: Path) -> tuple[bool, list[str], tuple[type, ...]]:
    """Whether ``target`` was called, our warnings, and the types of what vLLM got."""
    called = sabotage(target, lambda *_, **__: answer)
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(model)).create_engine_config()
    got = (
        config.cache_config.gpu_memory_utilization,
        config.model_config.enforce_eager,
        config.model_config.max_model_len,
    )
    return bool(called), our_warnings(), tuple(map(type, got))


@pytest.mark.full
@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
@pytest.mark.parametrize(
    "target",
    [
        "vllm_autofit.hooks.worker_report:measure",
        "vllm_autofit.hooks.memory_now:memory_now",
        "vllm_autofit.hooks.memory_now:free_bytes_of",
    ],
)
def test_whatever_a_function_answers_vllm_starts(target: str, answer: Any, tiny_model: Path) -> None:
    was_called, warnings, tokens, _log = start(tiny_model, lambda: sabotage(target, lambda *_, **__: answer))
    assert was_called
    assert tokens == 3
    assert len(warnings) <= 1, warnings


def nonsense_plan(value: Any) -> Callable[..., Any]:
    """The planner's own plan, with ``value`` in every field that it fills."""
    from dataclasses import replace

    from vllm_autofit.planning.planner import make_plan

    def plan(*args: Any, **kwargs: Any) -> Any:
        made = make_plan(*args, **kwargs)
        spoilt = [replace(each, value=value) if each.field in made.filled else each for each in made.decisions]
        return replace(made, decisions=tuple(spoilt))

    return plan


@pytest.mark.full
@pytest.mark.parametrize("value", ANSWERS, ids=repr)
def test_nonsense_in_a_plan_is_not_filled_in(value: Any, tiny_model: Path) -> None:
    does = nonsense_plan(value)
    was_called, warnings, tokens, log = start(
        tiny_model, lambda: sabotage("vllm_autofit.planning.planner:make_plan", does)
    )
    assert was_called
    assert tokens == 3
    assert len(warnings) == 1, warnings
    assert "vllm-autofit: set" not in log


@pytest.mark.full
@pytest.mark.parametrize("value", [None, -1, 2**62, 1e300, "nonsense", True, [], {}], ids=repr)
def test_nonsense_in_every_figure_of_a_record(value: Any, tiny_model: Path) -> None:
    start(tiny_model, lambda: [])
    folder = Path(os.environ["VLLM_AUTOFIT_CACHE_DIR"]) / "starts"
    (path,) = folder.glob("*/*.json")
    record = json.loads(path.read_text())
    path.write_text(
        json.dumps({name: each if name == "schema" else spoilt(each, value) for name, each in record.items()})
    )
    _, warnings, tokens, _log = start(tiny_model, lambda: [])
    assert tokens == 3
    assert len(warnings) <= 1, warnings


def spoilt(document: Any, value: Any) -> Any:
    """``value`` in place of every number."""
    if isinstance(document, dict):
        return {name: spoilt(each, value) for name, each in document.items()}
    if isinstance(document, list):
        return [spoilt(each, value) for each in document]
    return value if isinstance(document, int | float) and not isinstance(document, bool) else document
