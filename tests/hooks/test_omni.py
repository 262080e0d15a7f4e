"""Stages of vLLM-Omni that start by themselves: an ``EngineArgs`` of theirs over real vLLM, on described devices.

Each vLLM-Omni needs a vLLM of its own number, so what stands for it here has its names: a subclass of ``EngineArgs`` in
a module of its package, which overrides ``create_model_config``, made by a method whose object keeps the stages.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.builders import cuda
from tests.conftest import Forked, printed

pytestmark = pytest.mark.vllm

DEFAULT = 0.92
"""vLLM 0.32's."""

OMNI = """
from dataclasses import dataclass
from vllm.engine.arg_utils import EngineArgs

@dataclass
class OmniEngineArgs(EngineArgs):
    stage_id: int = 0
    model_stage: str = ""

    def create_model_config(self):
        config = super().create_model_config()
        config.made_for_stage = self.stage_id
        return config

class Engine:
    def configs(self, model):
        return [self.config(model, stage) for stage in vars(self)[self.keeps]]

    def config(self, model, stage):
        share = stage.engine_args.get("gpu_memory_utilization")
        given = {} if share is None else {"gpu_memory_utilization": share}
        return OmniEngineArgs(model=model, stage_id=stage.stage_id, **given).create_engine_config()

class StageRuntime(Engine):
    keeps = "_stage_configs"

    def __init__(self, stage_configs):
        self._stage_configs = stage_configs

class AsyncOmniEngine(Engine):
    keeps = "stage_configs"

    def __init__(self, stage_configs):
        self.stage_configs = stage_configs
"""


@dataclass
class Config:
    """A stage as files of the older schema give it to vLLM-Omni."""

    stage_id: int
    engine_args: dict[str, Any] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=lambda: {"devices": "0"})


def stage(number: int, share: float | None = None, devices: str = "0") -> Config:
    """A stage without CUDA graphs."""
    given = {} if share is None else {"gpu_memory_utilization": share}
    return Config(number, {"enforce_eager": True, **given}, {"devices": devices})


def shares(
    forked: Forked, model: Path, stages: list[Any], count: int = 1, kind: str = "cuda", maker: str = "StageRuntime"
) -> tuple[list[float], str]:
    """The share that each stage's engine is configured with, and what was printed."""

    def child() -> tuple[list[float], str]:
        import vllm_autofit.facts.devices
        import vllm_autofit.hooks.platform
        from vllm_autofit.plugin import register

        register()
        vllm_autofit.hooks.platform.device_type = lambda: kind
        vllm_autofit.facts.devices.nvidia_devices = lambda *_: [cuda()] * count
        configs = getattr(_omni(), maker)(stages).configs(str(model))
        assert [config.model_config.made_for_stage for config in configs] == [each.stage_id for each in stages]
        assert [config.model_config.max_model_len for config in configs] == [32768] * len(stages)
        return [config.cache_config.gpu_memory_utilization for config in configs], printed()

    result: tuple[list[float], str] = forked(child)
    return result


def _omni() -> Any:
    """The module that stands for vLLM-Omni's."""
    name = "vllm_omni.engine.stage_runtime"
    if name not in sys.modules:
        sys.modules[name] = ModuleType(name)
        exec(OMNI, vars(sys.modules[name]))
    return sys.modules[name]


@pytest.mark.parametrize("maker", ["StageRuntime", "AsyncOmniEngine"])
def test_stages_without_a_share_divide_the_device(maker: str, forked: Forked, tiny_model: Path) -> None:
    found, said = shares(forked, tiny_model, [stage(0), stage(1)], maker=maker)
    # 80 GiB less 1.3 headroom and two contexts of 0.635
    assert found == [0.4839, 0.4839]
    assert "set gpu_memory_utilization=0.4839 for stage 1 on device 0, shared by 2 stage(s)" in said


def test_a_share_that_is_set_stays_and_is_taken_off(forked: Forked, tiny_model: Path) -> None:
    assert shares(forked, tiny_model, [stage(0, 0.6), stage(1)])[0] == [0.6, 0.3678]
    assert shares(forked, tiny_model, [stage(0, DEFAULT), stage(1, 0.5)])[0] == [DEFAULT, 0.5]


def test_a_stage_is_planned_for_its_own_devices(forked: Forked, tiny_model: Path) -> None:
    found, _ = shares(forked, tiny_model, [stage(0, 0.9), stage(1, devices="1")], count=2)
    assert found == [0.9, 0.9758]


def test_typed_configs_are_understood(forked: Forked, tiny_model: Path) -> None:
    def typed(number: int, share: float | None) -> Any:
        return SimpleNamespace(
            stage_id=number,
            model_stage="talker",
            engine_args=SimpleNamespace(get=lambda name: share),  # only what makes the engine here
            cache_config=SimpleNamespace(gpu_memory_utilization=share, kv_cache_memory_bytes=None),
            model_config=SimpleNamespace(enforce_eager=True),
            runtime_config=SimpleNamespace(devices="0", num_replicas=1),
            parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
            scheduler_config=SimpleNamespace(max_num_seqs=None),
        )

    found, said = shares(forked, tiny_model, [typed(0, None), typed(1, 0.6)])
    assert found == [0.3678, 0.6]
    assert "stage 0 (talker)" in said


def test_what_does_not_fit_is_said_and_left_to_vllm(forked: Forked, tiny_model: Path) -> None:
    found, said = shares(forked, tiny_model, [stage(0, 0.99), stage(1)])
    assert found == [0.99, DEFAULT]
    assert "don't fit together" in said


@pytest.mark.parametrize(
    ("stages", "kind", "words"),
    [
        ([stage(0), stage(1, devices="7")], "cuda", "device 7"),
        ([stage(0), stage(1, devices="many")], "cuda", "'many' is not the number of a device"),
        ([stage(0), stage(1)], "cpu", ""),
    ],
)
def test_what_is_not_known_is_left_to_vllm(
    stages: list[Any], kind: str, words: str, forked: Forked, tiny_model: Path
) -> None:
    found, said = shares(forked, tiny_model, stages, kind=kind)
    assert found == [DEFAULT, DEFAULT]
    assert words in said
    assert said.count("failed (") == bool(words)


@pytest.mark.parametrize("setting", ["0", "observe"])
def test_nothing_is_filled_when_nothing_shall_be(
    setting: str, forked: Forked, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT", setting)
    assert shares(forked, tiny_model, [stage(0), stage(1)])[0] == [DEFAULT, DEFAULT]


def test_a_stage_that_nobody_made_with_others_is_left_to_vllm(forked: Forked, tiny_model: Path) -> None:
    def child() -> float:
        from vllm_autofit.plugin import register

        register()
        arguments = _omni().OmniEngineArgs(model=str(tiny_model))
        share: float = arguments.create_engine_config().cache_config.gpu_memory_utilization
        return share

    assert forked(child) == DEFAULT


def test_only_stages_of_vllm_omni_go_this_way(forked: Forked) -> None:
    def child() -> tuple[bool, bool]:
        from vllm.engine.arg_utils import AsyncEngineArgs

        from vllm_autofit.hooks.omni import is_stage

        return is_stage(_omni().OmniEngineArgs.__new__(_omni().OmniEngineArgs)), is_stage(AsyncEngineArgs)

    assert forked(child) == (True, False)
