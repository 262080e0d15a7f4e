"""Never take vLLM down: every function of ours raises in turn; vLLM starts with its own defaults, and one warning.

What reads the world may hang instead, or answer nonsense: tests/hooks/test_hanging.py.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vllm_autofit
from tests.conftest import printed, run_forked
from tests.sabotage import modules, our_warnings, sabotage, use_once

pytestmark = pytest.mark.vllm

THE_ESTIMATOR = (
    "vllm_autofit.facts.checkpoint",
    "vllm_autofit.facts.config",
    "vllm_autofit.facts.families",
    "vllm_autofit.facts.safetensors",
    "vllm_autofit.facts.weights",
    "vllm_autofit.hooks.model_config",
    "vllm_autofit.memory",
    "vllm_autofit.planning",
)
"""Rooms of arithmetic behind one net of their own: one function of each stands for the others. Without the estimate,
the plan is for the device alone."""

SHARED_WITH_THE_PLAN = (
    "vllm_autofit.memory.budget",
    "vllm_autofit.memory.overhead",
    "vllm_autofit.planning.defaults",
    "vllm_autofit.planning.planner",
    "vllm_autofit.planning.sharing",
)
"""Of those, what the plan for the device needs too."""

THE_NET = {
    "vllm_autofit.hooks.guard": "it is what catches the others",
    "vllm_autofit.plugin:register": "vLLM calls it directly; it catches all that it calls",
    "vllm_autofit.hooks.worker_report:measure": "runs inside a worker and catches everything itself",
    "vllm_autofit.experience.pins:_is_share": "a table holds it since import, so that no other can take its place",
}

WHEN_A_START_FAILS = (
    "vllm_autofit.failures",
    "vllm_autofit.hooks.aftermath",
    "vllm_autofit.hooks.attempts",
    "vllm_autofit.hooks.channel",
    "vllm_autofit.hooks.death",
    "vllm_autofit.hooks.failures",
    "vllm_autofit.hooks.lever",
    "vllm_autofit.hooks.limits",
    "vllm_autofit.hooks.refusal",
    "vllm_autofit.render.failure",
)

AFTER_THE_CONFIG = (
    "vllm_autofit.hooks.aftermath",
    "vllm_autofit.hooks.attempts",
    "vllm_autofit.hooks.channel",
    "vllm_autofit.hooks.death",
    "vllm_autofit.hooks.engine_core",
    "vllm_autofit.hooks.engine_end",
    "vllm_autofit.hooks.executor",
    "vllm_autofit.hooks.failures",
    "vllm_autofit.hooks.front_end",
    "vllm_autofit.hooks.follower",
    "vllm_autofit.hooks.growth",
    "vllm_autofit.hooks.interrupts",
    "vllm_autofit.hooks.lease:ended",
    "vllm_autofit.hooks.lease:starting",
    "vllm_autofit.hooks.lease:up",
    "vllm_autofit.hooks.lever",
    "vllm_autofit.hooks.limits",
    "vllm_autofit.hooks.memory_now",
    "vllm_autofit.hooks.origin",
    "vllm_autofit.hooks.refusal",
    "vllm_autofit.hooks.retry",
    "vllm_autofit.hooks.runs",
    "vllm_autofit.hooks.scheduler",
    "vllm_autofit.hooks.serving",
    "vllm_autofit.hooks.shared_memory",
    "vllm_autofit.hooks.warm_start",
    "vllm_autofit.hooks.worker",
    "vllm_autofit.experience.ending",
    "vllm_autofit.experience.files",
    "vllm_autofit.experience.locking",
    "vllm_autofit.experience.record",
    "vllm_autofit.experience.store",
    "vllm_autofit.experience.tree",
    "vllm_autofit.experience.upkeep",
    "vllm_autofit.facts.processes",
    "vllm_autofit.facts.variables:_told",  # this start has variables that memory depends on, the config alone has none
    "vllm_autofit.failures",
)
"""Rooms that work while the engine comes up, serves and ends; the others have done their part when the config is made.
"""


def _functions() -> Iterator[str]:
    """``module:function`` and ``module:Class.function`` of everything that a start may call."""
    for module in modules():
        if module.__name__ in THE_NET:
            continue
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                yield f"{module.__name__}:{name}"
            elif inspect.isclass(value) and not issubclass(value, Exception):
                for attribute, member in vars(value).items():
                    if _is_method(attribute, member):
                        yield f"{module.__name__}:{name}.{attribute}"


def _is_method(name: str, member: Any) -> bool:
    """Methods and properties with code of ours; the dunder methods of values are part of the value."""
    ours = inspect.isfunction(member) or isinstance(member, property | staticmethod | classmethod)
    return ours and not (name.startswith("__") and name.endswith("__"))


FUNCTIONS = sorted(set(_functions()) - set(THE_NET))


def _needs(target: str, reached: set[str]) -> None:
    if target not in reached:
        pytest.skip("not on the way of a start that succeeds on this machine")


@pytest.fixture(scope="module")
def reached(vllm_loaded: None, tiny_model: Path) -> set[str]:
    """The functions that a start of an LLM in one process runs."""

    def child() -> set[str]:
        seen: set[str] = set()
        root = str(Path(vllm_autofit.__file__).parent)
        os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_CI_ENV="1", VLLM_CPU_KVCACHE_SPACE="1")

        def tracer(frame: Any, event: str, argument: Any) -> None:
            if event == "call" and frame.f_code.co_filename.startswith(root):
                seen.add(f"{frame.f_globals['__name__']}:{frame.f_code.co_qualname}")

        sys.setprofile(tracer)
        threading.setprofile(tracer)  # what may hang runs in threads of its own
        from vllm import LLM

        use_once(LLM(str(tiny_model), max_model_len=1024))
        sys.setprofile(None)
        threading.setprofile(None)
        return seen

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_AUTOFIT_CACHE_DIR", place)
        return run_forked(child)


def test_a_start_runs_most_of_our_functions(reached: set[str]) -> None:
    # most of the estimator's rooms are for other models
    ours = {name for name in FUNCTIONS if not name.startswith((*THE_ESTIMATOR, *WHEN_A_START_FAILS))}
    assert len(ours) > 80
    assert len(reached & ours) > len(ours) / 2


ON_THE_WAY = [name for name in FUNCTIONS if not name.startswith(AFTER_THE_CONFIG)]


@pytest.mark.parametrize("target", [name for name in ON_THE_WAY if not name.startswith(THE_ESTIMATOR)])
def test_a_broken_function_leaves_the_config_to_vllm(
    target: str, reached: set[str], tiny_model: Path, small_start: None
) -> None:
    _needs(target, reached)

    was_called, warnings, types, _planned = run_forked(lambda: _config_with_broken(target, model=tiny_model))

    assert was_called
    assert len(warnings) == 1, warnings
    assert types == (float, bool)


@pytest.mark.parametrize(
    "module", sorted({name.partition(":")[0] for name in ON_THE_WAY if name.startswith(THE_ESTIMATOR)})
)
def test_a_broken_estimate_leaves_the_plan_for_the_device(module: str, reached: set[str], tiny_model: Path) -> None:
    used = [name for name in ON_THE_WAY if name.startswith(f"{module}:") and name in reached]
    if not used:
        pytest.skip("not on the way of a start that succeeds on this machine")

    was_called, warnings, types, planned = run_forked(lambda: _config_with_broken(*used, model=tiny_model))

    assert was_called
    assert len(warnings) == 1, warnings
    assert types == (float, bool)
    assert planned or module.startswith(SHARED_WITH_THE_PLAN)


def _config_with_broken(*targets: str, model: Path) -> tuple[bool, list[str], Any, bool]:
    """Whether any was called, our warnings, the types that vLLM got, and whether there was a plan all the same."""
    called = [sabotage(target) for target in targets]
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(model=str(model)).create_engine_config()
    types = (type(config.cache_config.gpu_memory_utilization), type(config.model_config.enforce_eager))
    return any(called), our_warnings(), types, "vllm-autofit: set gpu_memory_utilization" in printed()


WHILE_IT_STARTS = [name for name in FUNCTIONS if name.startswith(AFTER_THE_CONFIG)]


@pytest.mark.e2e
@pytest.mark.parametrize("module", sorted({name.partition(":")[0] for name in WHILE_IT_STARTS}))
def test_a_broken_room_leaves_the_start_to_vllm(
    module: str, reached: set[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [name for name in WHILE_IT_STARTS if name.startswith(f"{module}:") and name in reached]
    if not used:
        pytest.skip("not on the way of a start that succeeds on this machine")
    _starts_all_the_same(used, tiny_model, monkeypatch)


@pytest.mark.full
@pytest.mark.e2e
@pytest.mark.parametrize("target", WHILE_IT_STARTS)
def test_a_broken_function_leaves_the_start_to_vllm(
    target: str, reached: set[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _needs(target, reached)
    _starts_all_the_same([target], tiny_model, monkeypatch)


def _starts_all_the_same(targets: list[str], model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``targets`` broken, vLLM starts, answers and ends, and there is one warning."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")

    def child() -> tuple[bool, list[str], int]:
        called = [sabotage(target) for target in targets]
        from vllm import LLM

        tokens = use_once(LLM(str(model), max_model_len=1024))
        return any(called), our_warnings(), tokens

    was_called, warnings, tokens = run_forked(child)

    assert was_called
    assert len(warnings) == 1, warnings
    assert tokens == 3
