"""Hooking: only what is there and looks as we know it, once, beside others who hook the same function."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked, printed
from vllm_autofit.errors import SeamError
from vllm_autofit.hooks import guard, seams
from vllm_autofit.hooks.seams import Seam

Wrapped = Callable[..., Any]


def add_one(wrapped: Wrapped, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return wrapped(*args, **kwargs) + 1


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The name of a module that can be imported and isn't yet."""
    name = f"target_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(
        "class Thing:\n"
        "    def method(self, x, y=0):\n        return x + y\n"
        "    @classmethod\n    def build(cls, x):\n        return x\n"
        "    @staticmethod\n    def fixed(x):\n        return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(guard, "_warned", True)
    return name


@pytest.mark.parametrize(("function", "before"), [("method", 5), ("build", 5), ("fixed", 5)])
def test_a_function_is_wrapped_when_its_module_comes_and_only_once(target: str, function: str, before: int) -> None:
    seam = Seam(target, f"Thing.{function}", ("x",), add_one, "testing")
    seams.install(seam)
    module = importlib.import_module(target)
    seams.install(seam)
    assert getattr(module.Thing(), function)(before) == before + 1


def test_a_module_that_is_loaded_already_is_hooked_at_once(target: str) -> None:
    module = importlib.import_module(target)
    seams.install(Seam(target, "Thing.method", ("x", "y"), add_one, "testing"))
    assert module.Thing().method(1, y=2) == 4


def test_another_plugin_may_wrap_before_and_after_us(target: str) -> None:
    module = importlib.import_module(target)

    def other(original: Wrapped) -> Wrapped:
        return lambda self, x: original(self, x) * 10

    module.Thing.method = other(module.Thing.method)
    seams.install(Seam(target, "Thing.method", ("x",), add_one, "testing"))
    module.Thing.method = other(module.Thing.method)
    assert module.Thing().method(1) == (1 * 10 + 1) * 10


@pytest.mark.parametrize(
    ("name", "parameters", "found"),
    [
        ("Thing.gone", (), "missing"),
        ("Gone.method", (), "missing"),
        ("Thing.method", ("z",), r"a function of \(x, y\)"),
    ],
)
def test_what_is_missing_or_changed_is_named_and_left_alone(
    target: str, name: str, parameters: tuple[str, ...], found: str
) -> None:
    module = importlib.import_module(target)
    seam = Seam(target, name, parameters, add_one, "testing")
    with pytest.raises(SeamError, match=f"{target}:{name} is {found}, expected a function of"):
        seams.probe(seam, module)
    seams.install(seam)
    assert module.Thing().method(1) == 1


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A package of two modules: the second has what the first had."""
    name = f"package_{abs(hash(request.node.name))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "new.py").write_text("class Thing:\n    def method(self, x):\n        return x\n")
    (tmp_path / name / "old.py").write_text("class Other: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(guard, "_warned", False)
    importlib.import_module(name)
    return name


def test_a_function_is_found_where_other_versions_have_it(package: str, caplog: pytest.LogCaptureFixture) -> None:
    seam = Seam(f"{package}.old", "Thing.method", ("x",), add_one, "testing", elsewhere=(f"{package}.new",))
    seams.install(seam)
    importlib.import_module(f"{package}.old")
    module = importlib.import_module(f"{package}.new")
    assert module.Thing().method(1) == 2
    assert caplog.records == []


@pytest.mark.parametrize(("optional", "said"), [(False, 1), (True, 0)])
def test_a_module_that_is_gone_is_named_at_once(
    optional: bool, said: int, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(guard.logger, "warning", lambda text, *args: lines.append(text % args))
    seams.install(Seam(f"{package}.gone", "Thing.method", ("x",), add_one, "filling things in", optional=optional))
    assert len(lines) == said
    for line in lines:
        assert f"filling things in failed ({package}.gone:Thing.method is missing" in line


@pytest.mark.vllm
def test_every_seam_holds_in_the_installed_vllm(vllm_loaded: None) -> None:
    found = list(seams.declared())
    assert len(found) >= 20
    for _, seam in found:
        if not (seam.optional and seam.module not in sys.modules):
            seams.probe(seam, importlib.import_module(seam.module))


@pytest.mark.vllm
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_plugin_that_wraps_create_engine_config_too_is_chained(
    when: str, forked: Forked, tiny_model: Path, small_start: None
) -> None:
    def child() -> tuple[list[str], float, str]:
        from vllm.engine.arg_utils import EngineArgs

        seen: list[str] = []

        def wrap() -> None:
            original = EngineArgs.create_engine_config

            def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
                seen.append("theirs")
                return original(self, *args, **kwargs)

            EngineArgs.create_engine_config = theirs

        if when == "before":
            wrap()
        args = EngineArgs(model=str(tiny_model))
        if when == "after":
            wrap()
        return seen, args.create_engine_config().cache_config.gpu_memory_utilization, printed()

    seen, utilization, text = forked(child)
    assert seen == ["theirs"]
    assert 0 < utilization < 0.92
    assert "set gpu_memory_utilization=" in text


@pytest.mark.vllm
def test_a_value_that_vllm_refuses_is_taken_back(forked: Forked, tiny_model: Path, small_start: None) -> None:
    def child() -> tuple[Any, str]:
        from vllm.engine.arg_utils import EngineArgs

        class Strict(EngineArgs):  # type: ignore[misc]
            def create_model_config(self) -> Any:
                if self.max_model_len == -1:
                    raise ValueError("max_model_len must be positive for this model")
                return super().create_model_config()

        config = Strict(model=str(tiny_model)).create_engine_config()
        return config.cache_config.gpu_memory_utilization, printed()

    utilization, text = forked(child)
    assert utilization == 0.92
    assert "vLLM refused what was filled in (max_model_len must be positive for this model)" in text
