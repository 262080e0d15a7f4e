"""Every function that we hook, in every version of vLLM on record: it fits, or it is known what is lacking there."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
from pathlib import Path

import pytest

from dev.signatures import RECORD, Parameters, Source, functions, lacking, read, signatures, write
from vllm_autofit.hooks.seams import BOUND, declared, fits

VERSIONS = [f"0.{minor}.0" for minor in range(11, 34)]

LACKS = {
    "vllm.v1.engine.utils:CoreEngineProcManager.shutdown": VERSIONS[:7],  # called close; it gives engines time to end
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request": VERSIONS[:1],  # done in the middle of schedule()
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.capture_model": VERSIONS[:1],  # there is no second runner yet
}
"""What isn't there, and in which versions: only what is optional. Our other hooks hold from the first to the last."""


def test_every_minor_version_is_on_record_with_every_function() -> None:
    recorded = read(RECORD)
    assert list(recorded) == VERSIONS
    for version in VERSIONS:
        assert list(recorded[version]) == functions(), f"run python -m dev.signatures for {version}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_seam_fits_or_is_known_to_be_lacking(version: str) -> None:
    recorded = read(RECORD)[version]
    for _, seam in declared():
        there = [recorded[f"{module}:{seam.name}"] for module in seam.modules]
        found = [parameters for parameters in there if parameters is not None]
        expected = [] if version in LACKS.get(f"{seam.module}:{seam.name}", ()) else [True]
        assert [fits(seam, parameters) for parameters in found] == expected, (seam.name, there)
        assert found or seam.optional


def test_what_is_lacking_is_told_with_what_does_not_work_then() -> None:
    told = lacking(read(RECORD))
    assert {function: versions for function, (_, versions) in told.items()} == LACKS
    assert told["vllm.v1.core.sched.scheduler:Scheduler._preempt_request"][0] == "counting preemptions"


@pytest.mark.vllm
def test_the_installed_vllm_is_as_recorded(vllm_loaded: None) -> None:
    version = importlib.metadata.version("vllm").partition("+")[0]
    recorded = read(RECORD)[version]
    vllm = importlib.import_module("vllm")
    assert signatures(Path(vllm.__path__[0]).parent) == recorded
    imported = [name for name in recorded if name.partition(":")[0] in sys.modules and recorded[name] is not None]
    assert len(imported) > 15
    for name in imported:
        module, _, path = name.partition(":")
        found: object = sys.modules[module]
        for part in path.split("."):
            found = getattr(found, part)
        assert callable(found)
        names = [each.lstrip("*") for each in recorded[name] or ()]
        assert [each for each in inspect.signature(found).parameters if each not in BOUND] == names


def test_functions_are_found_through_imports_bases_and_branches(tmp_path: Path) -> None:
    package = tmp_path / "vllm" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "vllm" / "base.py").write_text(
        "class Base:\n    def run(self, a, /, b, *rest, c=0, **more): ...\n"
        "try:\n    import fast\nexcept ImportError:\n    async def wait(x): ...\n"
    )
    (package / "__init__.py").write_text("from ..base import Base as Root, wait\n")
    (package / "leaf.py").write_text(
        "from . import Root\nclass Leaf(Root):\n    @classmethod\n    def make(cls, y): ...\n"
    )
    source = Source(tmp_path)
    assert source.parameters("vllm.inner.leaf", "Leaf.run") == ["a", "b", "*rest", "c", "**more"]
    assert source.parameters("vllm.inner.leaf", "Leaf.make") == ["y"]
    assert source.parameters("vllm.inner", "wait") == ["x"]
    assert source.parameters("vllm.inner.leaf", "Leaf.gone") is None
    assert source.parameters("vllm.gone", "Leaf.make") is None
    assert source.parameters("vllm.inner.leaf", "Leaf") is None


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    names = functions()
    old: dict[str, Parameters] = {name: ["a"] for name in names}
    record = {"0.9.0": old, "0.10.0": {**old, names[0]: None, names[1]: []}, "0.11.0": old}
    write(tmp_path / "record.json", record)
    assert read(tmp_path / "record.json") == record
