"""An engine that fails for memory is made again, by the rules: vLLM's engine here is a stand-in that fails to order."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import wrapt

from vllm_autofit import FIELDS
from vllm_autofit.errors import DeviceError, RefusedError
from vllm_autofit.hooks import aftermath, attempts, guard, origin, platform, retry
from vllm_autofit.hooks.channel import tell
from vllm_autofit.hooks.failures import described
from vllm_autofit.hooks.runs import attach, failed_here, new_run, run_of

KEY = "0123456789abcdef"
OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 80.00 GiB of which 1.00 GiB is free."
)


class Config:
    """A ``VllmConfig``."""

    def __init__(self, name: str, **parallel: Any) -> None:
        self.name = name
        self.parallel_config = SimpleNamespace(
            **{"data_parallel_size": 1, "nnodes": 1, "distributed_executor_backend": "mp", **parallel}
        )


def config_with(folder: Path, utilization: float = 0.9, mode: str = "on", **parallel: Any) -> Config:
    settings = {name: {"value": None} for name in FIELDS} | {"gpu_memory_utilization": {"value": utilization}}
    identity = {"devices": [{"index": 0, "kind": "cuda"}]}
    run = new_run(KEY, folder, {"identity": identity, "settings": settings, "plan": {"mode": mode}})
    config = Config(str(utilization), **parallel)
    attach(config, run)
    return config


class Arguments:
    """An ``EngineArgs`` that plans lower and lower."""

    def __init__(self, folder: Path, *utilizations: float) -> None:
        self.folder = folder
        self.left = list(utilizations)

    def __deepcopy__(self, memo: Any) -> Arguments:
        return self

    def create_engine_config(self) -> Config:
        return config_with(self.folder, self.left.pop(0))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aftermath, "SETTLED_SECONDS", 0.0)
    monkeypatch.setattr(aftermath, "sweep", lambda told, since: None)  # the temporary folder is everybody's
    monkeypatch.setattr(platform, "read_devices", lambda engine_args: [])
    monkeypatch.setattr(guard, "_warned", False)
    monkeypatch.setattr(guard.logger, "propagate", True)
    monkeypatch.delenv("VLLM_AUTOFIT_RETRIES", raising=False)


class Engine:
    """vLLM's engine: ``outcomes`` says what each attempt at it does."""

    outcomes: ClassVar[list[Callable[[Config], None]]]
    seen: ClassVar[list[str]]

    def __init__(
        self,
        vllm_config: Config,
        client_addresses: Any = None,  # noqa: ARG002
        multiprocess_mode: bool = True,  # noqa: ARG002
    ) -> None:
        self.half_made = True
        self.seen.append(vllm_config.name)
        self.outcomes.pop(0)(vllm_config)
        self.config = vllm_config


@pytest.fixture
def engine() -> Any:
    made = type("Engine", (Engine,), {"outcomes": [], "seen": [], "__init__": Engine.__init__})
    wrapt.wrap_function_wrapper(SimpleNamespace(Engine=made), "Engine.__init__", guard.shield(retry.start, "testing"))
    return made


def works(config: Config) -> None:
    pass


def fails(message: str = OUT_OF_MEMORY, phase: str = "capture_model") -> Callable[[Config], None]:
    """The engine core tells why and dies; the front end only learns that it died."""

    def attempt(config: Config) -> None:
        source = f"def {phase}():\n    raise RuntimeError({message!r})\n"
        names: dict[str, Any] = {}
        exec(source, names)
        try:
            names[phase]()
        except RuntimeError as error:
            tell(run_of(config) or {}, failure=described(error))
        raise RuntimeError(
            "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
        )

    return attempt


def killed(config: Config) -> None:
    tell(run_of(config) or {}, phase="kv_alloc")
    raise RuntimeError(
        "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}"
    )


def interrupted(config: Config) -> None:
    raise KeyboardInterrupt


def make(engine: Any, config: Config, *utilizations: float, **more: Any) -> Any:
    run = run_of(config)
    assert run is not None
    folder = Path(run["cache_dir"])
    origin.keep(config, run, origin.Origin(Arguments(folder, *utilizations), (), {}))
    return engine(vllm_config=config, **more)


def note_of(error: BaseException) -> str:
    (note,) = getattr(error, "__notes__", [""])
    return str(note)


needs_notes = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions carry notes from Python 3.11 on")


def test_it_is_made_again_with_what_the_failure_asked_for(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_with(tmp_path)
    first = (run_of(config) or {})["run_id"]
    engine.outcomes = [fails(), works]
    made = make(engine, config, 0.8)
    assert engine.seen == ["0.9", "0.8"]
    assert made.config is config
    assert config.name == "0.8"
    assert vars(made).keys() == {"half_made", "config"}
    second = run_of(config)
    assert second is not None
    assert second["record"]["plan"]["after_failed"] == first
    assert "gpu_memory_utilization=0.8 instead of 0.9" in caplog.text
    assert "channel" not in second


def test_twice_at_most_and_the_last_error_ends_with_our_line(engine: Any, tmp_path: Path) -> None:
    engine.outcomes = [fails(), fails(), fails(), works]
    with pytest.raises(RuntimeError, match="Engine core initialization failed") as caught:
        make(engine, config_with(tmp_path), 0.8, 0.7, 0.6)
    assert engine.seen == ["0.9", "0.8", "0.7"]
    if sys.version_info >= (3, 11):
        assert note_of(caught.value).startswith(
            "vllm-autofit: The device ran out of memory while CUDA graphs were captured (2.00 GiB tried, 1.00 GiB "
            "free). It was tried 3 times. What helps: "
        )
        assert note_of(caught.value).endswith("The next start knows, and plans for it.")


@pytest.mark.parametrize("retries", ["0", "1"])
def test_no_more_often_than_the_user_allows(
    retries: str, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_RETRIES", retries)
    engine.outcomes = [fails()] * 3
    with pytest.raises(RuntimeError):
        make(engine, config_with(tmp_path), 0.8, 0.7, 0.6)
    assert len(engine.seen) == int(retries) + 1


@pytest.mark.parametrize("utilization", [0.9, 0.95])
def test_not_where_the_new_plan_is_no_better(utilization: float, engine: Any, tmp_path: Path) -> None:
    engine.outcomes = [fails(), works]
    with pytest.raises(RuntimeError):
        make(engine, config_with(tmp_path), utilization)
    assert engine.seen == ["0.9"]


@needs_notes
def test_not_for_what_has_nothing_to_do_with_memory(engine: Any, tmp_path: Path) -> None:
    engine.outcomes = [fails("CUDA error: an illegal memory access was encountered"), works]
    with pytest.raises(RuntimeError) as caught:
        make(engine, config_with(tmp_path), 0.8)
    assert engine.seen == ["0.9"]
    assert "illegal memory access" in note_of(caught.value)


@pytest.mark.parametrize(
    ("parallel", "more", "reason"),
    [
        ({"data_parallel_size": 2}, {}, "data-parallel engines wait for each other"),
        ({"nnodes": 2}, {}, "other nodes wait for the engine"),
        ({"distributed_executor_backend": "ray"}, {}, "its workers aren't this command's own processes"),
        ({}, {"multiprocess_mode": False}, "the engine lives in this process"),
        ({}, {"client_addresses": {"input_address": "x"}}, "several API servers wait for the engine"),
    ],
)
@needs_notes
def test_not_where_others_wait_or_the_process_is_the_users(
    parallel: dict[str, Any], more: dict[str, Any], reason: str, engine: Any, tmp_path: Path
) -> None:
    engine.outcomes = [fails(), works]
    with pytest.raises(RuntimeError) as caught:
        make(engine, config_with(tmp_path, **parallel), 0.8, **more)
    assert engine.seen == ["0.9"]
    assert "ran out of memory" in note_of(caught.value)
    assert f"It isn't tried again by itself: {reason}." in note_of(caught.value)


def test_what_no_other_settings_cure_is_not_said_to_be_left_alone(engine: Any, tmp_path: Path) -> None:
    engine.outcomes = [fails("cuDNN error: CUDNN_STATUS_MAPPING_ERROR"), works]
    with pytest.raises(RuntimeError) as caught:
        make(engine, config_with(tmp_path, data_parallel_size=2), 0.8)
    assert "by itself" not in "".join(getattr(caught.value, "__notes__", ()))


def test_not_while_only_observing(engine: Any, tmp_path: Path) -> None:
    engine.outcomes = [fails(), works]
    with pytest.raises(RuntimeError) as caught:
        make(engine, config_with(tmp_path, mode="observe"), 0.8)
    assert engine.seen == ["0.9"]
    assert note_of(caught.value) == ""


def test_a_config_that_we_had_no_hand_in_is_left_alone(engine: Any) -> None:
    engine.outcomes = [fails()]
    with pytest.raises(RuntimeError) as caught:
        engine(vllm_config=Config("plain"))
    assert note_of(caught.value) == ""


@needs_notes
def test_a_process_that_was_killed_is_told_by_the_front_end(engine: Any, tmp_path: Path) -> None:
    """On a GPU, the host's memory isn't what the five fields govern."""
    engine.outcomes = [killed, works]
    with pytest.raises(RuntimeError) as caught:
        make(engine, config_with(tmp_path), 0.8)
    assert engine.seen == ["0.9"]
    assert "killed from outside" in note_of(caught.value)
    newest = failed_here(KEY)[0]["outcome"]["failure"]
    assert (newest["phase"], newest["resource"]) == ("kv_alloc", "host")


def killed_compiling(config: Config) -> None:
    tell(run_of(config) or {}, phase="profile_run")
    raise RuntimeError("Engine core initialization failed. Failed core proc(s): {'EngineCore': -9}")


def test_an_engine_core_that_is_killed_while_it_compiles_is_made_again_without(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def eager(self: Arguments) -> Config:
        config = config_with(self.folder, 0.9)
        (run_of(config) or {})["record"]["settings"]["enforce_eager"] = {"value": True}
        return config

    monkeypatch.setattr(Arguments, "create_engine_config", eager)
    engine.outcomes = [killed_compiling, works]
    assert make(engine, config_with(tmp_path)).config
    newest = failed_here(KEY)[0]["outcome"]["failure"]
    assert (newest["phase"], newest["type"]) == ("profile_run", "killed")
    assert newest["remedies"][0]["flag"] == "--enforce-eager"


def test_memory_that_came_back_is_asked_for_again(
    engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    requested = "Free memory on device cuda:0 ({}/80.0 GiB) on startup is less than desired GPU memory utilization"
    refused = fails(f"{requested.format(40.0)} (0.9, 72.0 GiB).", "request_memory")
    again = config_with(tmp_path)
    budget = {"free_bytes": 78 * 2**30, "startup_overhead_bytes": 2**30, "ranks": 1}
    (run_of(again) or {})["record"]["plan"]["budget"] = budget
    config = config_with(tmp_path)
    run = run_of(config) or {}
    arguments = SimpleNamespace(create_engine_config=lambda: again)
    origin.keep(config, run, origin.Origin(arguments, (), {}))
    engine.outcomes = [refused, works]
    assert engine(vllm_config=config).config
    assert "Trying again with the same settings: what was missing is free now." in caplog.text


def test_an_interrupt_ends_it_at_once(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.outcomes = [interrupted, works]
    with pytest.raises(KeyboardInterrupt):
        make(engine, config_with(tmp_path), 0.8)
    assert engine.seen == ["0.9"]

    engine.outcomes = [fails(), interrupted, works]
    with pytest.raises(KeyboardInterrupt):
        make(engine, config_with(tmp_path), 0.8)

    def wait(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(aftermath, "wait", wait)
    engine.outcomes = [fails(), works]
    with pytest.raises(KeyboardInterrupt):
        make(engine, config_with(tmp_path), 0.8)
    assert engine.outcomes == [works]


def terminated(config: Config) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


def test_sigterm_ends_it_as_an_interrupt_does_and_is_the_users_again_afterwards(engine: Any, tmp_path: Path) -> None:
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    engine.outcomes = [fails(), terminated, works]
    with pytest.raises(SystemExit) as caught:
        make(engine, config_with(tmp_path), 0.8)
    assert caught.value.code == 128 + signal.SIGTERM
    assert engine.outcomes == [works]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_who_handles_sigterm_goes_on_doing_so(engine: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        engine.outcomes = [lambda _config: seen.append(signal.getsignal(signal.SIGTERM))]
        make(engine, config_with(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIG_IGN]


def test_no_file_stays_open(engine: Any, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for last in (works, fails(), interrupted):
        engine.outcomes = [fails(), fails(), last]
        try:
            make(engine, config_with(tmp_path), 0.8, 0.7)
        except (RuntimeError, KeyboardInterrupt):
            continue
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("broken", ["listen", "prepare_another", "stop_listening", "__init__"])
def test_whatever_of_ours_is_broken_vllm_says_what_it_would(
    broken: str, engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(attempts.Attempts, broken, raises)
    engine.outcomes = [works]
    assert make(engine, config_with(tmp_path)).config
    engine.outcomes = [fails()]
    with pytest.raises(RuntimeError, match="Engine core initialization failed"):
        make(engine, config_with(tmp_path))


def test_a_device_that_cannot_be_read_any_more_ends_it(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(engine_args: Any) -> None:
        raise DeviceError("the device", "gone", "")

    monkeypatch.setattr(platform, "read_devices", gone)
    engine.outcomes = [fails(), works]
    with pytest.raises(RuntimeError, match="Engine core initialization failed"):
        make(engine, config_with(tmp_path), 0.8)


def test_what_is_refused_is_not_even_tried(engine: Any, tmp_path: Path) -> None:
    config = config_with(tmp_path)
    (run_of(config) or {})["refusal"] = {"reasons": ("3 GiB are missing",), "remedies": ["less"], "device": "none"}
    engine.outcomes = [works]
    with pytest.raises(RefusedError, match="can't succeed: 3 GiB are missing") as caught:
        make(engine, config)
    assert isinstance(caught.value, ValueError)
    assert engine.seen == []
