"""The entry point: quick, standard library only when switched off, and known to vLLM's check of its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from typing import Any

import pytest

from tests.conftest import Forked, printed
from vllm_autofit import VARIABLES
from vllm_autofit.plugin import KnownVariables, register

WHAT_IS_IMPORTED = """
import sys, importlib.metadata
before = set(sys.modules)
from vllm_autofit.plugin import register
register()
register()
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name.startswith("vllm_autofit")))
"""


def imported(**environ: str) -> tuple[str, str]:
    """Third-party packages, and modules of ours, that registering imports in a bare process."""
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_IMPORTED],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    packages, ours = done.stdout.splitlines()
    return packages, ours


def test_vllm_finds_it_under_its_group_of_plugins() -> None:
    (point,) = [each for each in entry_points(group="vllm.general_plugins") if each.name == "vllm_autofit"]
    assert point.load() is register


@pytest.mark.parametrize("word", ["0", "off", "False", " no "])
def test_switched_off_it_imports_nothing_beyond_the_standard_library(word: str) -> None:
    packages, ours = imported(VLLM_AUTOFIT=word)
    assert packages == "vllm_autofit"
    assert ours == "vllm_autofit vllm_autofit.plugin"


def test_switched_on_it_imports_little_and_no_vllm() -> None:
    packages, ours = imported()
    assert packages == "vllm_autofit wrapt"
    assert "vllm_autofit.hooks.engine_args" in ours
    assert "vllm_autofit.hooks.launch" not in ours


def test_our_variables_are_known_but_not_listed() -> None:
    table = KnownVariables({"VLLM_PORT": lambda: 1})
    assert "VLLM_AUTOFIT" in table
    assert "VLLM_PORT" in table
    assert "VLLM_AUTOFIT_POLCY" not in table
    assert list(table) == ["VLLM_PORT"]
    with pytest.raises(KeyError):
        table["VLLM_AUTOFIT_POLCY"]


@pytest.mark.vllm
@pytest.mark.parametrize("mode", ["1", "0", "observe"])
def test_vllms_check_of_its_environment_passes_and_its_compile_key_stays(
    mode: str, forked: Forked, tiny_model: Any, small_start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES[1:]:
        monkeypatch.setenv(name, {"VLLM_AUTOFIT_POLICY": "safe"}.get(name, os.environ.get(name, "1")))
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tiny_model.parent / "records-of-a-test"))
    monkeypatch.setenv("VLLM_AUTOFIT", mode)

    def child() -> tuple[str, list[str], list[str]]:
        from vllm import envs
        from vllm.engine.arg_utils import EngineArgs

        before = list(envs.compile_factors())
        EngineArgs(model=str(tiny_model), fail_on_environ_validation=True).create_engine_config()
        return printed(), before, list(envs.compile_factors())

    text, before, after = forked(child)
    assert "Unknown vLLM environment variable" not in text
    assert after == before
    assert not [name for name in after if "AUTOFIT" in name]


@pytest.mark.vllm
def test_a_bad_setting_is_one_warning_and_the_default(
    forked: Forked, tiny_model: Any, small_start: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT", "maybe")

    def child() -> str:
        from vllm.engine.arg_utils import EngineArgs

        EngineArgs(model=str(tiny_model)).create_engine_config()
        return printed()

    lines = [line for line in forked(child).splitlines() if "vllm-autofit" in line]
    assert len(lines) == 2
    assert "WARNING" in lines[0]
    assert "VLLM_AUTOFIT='maybe' is not 1, 0 or observe; using the default (on)" in lines[0]
    assert "set gpu_memory_utilization=" in lines[1]
