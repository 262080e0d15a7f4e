"""What a file of stages says, in both schemas, with bases and platforms; what is wrong with one that says nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_autofit.errors import StageFileError
from vllm_autofit.stages.reading import read_stages
from vllm_autofit.stages.stage import Place, Stage

CURRENT = """\
stages:
  - stage_id: 0
    gpu_memory_utilization: 0.6
    devices: "0"
  - stage_id: 1
    devices: "0"
"""

LEGACY = """\
stage_args:
  - stage_id: 0
    runtime:
      devices: "0,1"
      max_batch_size: 4
    engine_args:
      model_stage: thinker
      hf_config_name: thinker_config
      tensor_parallel_size: 2
      gpu_memory_utilization: 0.8
      enforce_eager: true
  - stage_id: 1
    runtime: {devices: 1}
    engine_args:
      model_stage: talker
"""


def stages(folder: Path, text: str, name: str = "stages.yaml") -> tuple[Stage, ...]:
    path = folder / name
    path.write_text(text)
    return read_stages(path).stages


def test_the_current_schema(tmp_path: Path) -> None:
    first, second = stages(tmp_path, CURRENT)
    assert (first.id, first.share, first.devices, first.place) == (0, 0.6, (0,), Place(("stages",)))
    assert (second.id, second.share, second.devices, second.place) == (1, None, (0,), Place(("stages",)))
    assert first.share_from == tmp_path / "stages.yaml"


def test_the_older_schema(tmp_path: Path) -> None:
    first, second = stages(tmp_path, LEGACY)
    assert (first.name, first.config_name, first.devices) == ("thinker", "thinker_config", (0, 1))
    assert (first.share, first.eager, first.max_num_seqs) == (0.8, True, 4)
    assert first.place == second.place == Place(("stage_args",), "engine_args")
    assert (second.label, second.share, second.eager, second.devices) == ("stage 1 (talker)", None, False, (1,))


def test_a_file_adds_to_the_one_it_is_based_on(tmp_path: Path) -> None:
    stages(tmp_path, CURRENT, "base.yaml")
    first, second = stages(
        tmp_path, "base_config: base.yaml\nstages:\n  - {stage_id: 1, gpu_memory_utilization: 0.3}\n"
    )
    assert (first.share, first.share_from) == (0.6, tmp_path / "base.yaml")
    assert (second.share, second.share_from, second.devices) == (0.3, tmp_path / "stages.yaml", (0,))


def test_a_file_may_have_no_stages_of_its_own(tmp_path: Path) -> None:
    stages(tmp_path, CURRENT, "base.yaml")
    assert [each.share for each in stages(tmp_path, "base_config: base.yaml\n")] == [0.6, None]


def test_an_empty_value_takes_back_what_the_base_says(tmp_path: Path) -> None:
    stages(tmp_path, CURRENT.replace("0.6", "0.6\n    kv_cache_memory_bytes: 1024"), "base.yaml")
    text = "base_config: base.yaml\nstages:\n- stage_id: 0\n  gpu_memory_utilization:\n  kv_cache_memory_bytes: null\n"
    first, _ = stages(tmp_path, text)
    assert (first.share, first.kv_cache_bytes) == (None, 0)


def test_what_is_said_for_nvidia_outdoes_the_rest_and_other_platforms_do_not_count(tmp_path: Path) -> None:
    platforms = """\
platforms:
  npu:
    stages:
      - {stage_id: 0, gpu_memory_utilization: 0.2, devices: "7"}
  cuda:
    stages:
      - stage_id: 1
        gpu_memory_utilization: 0.1
        devices: "1"
"""
    first, second = stages(tmp_path, CURRENT + platforms)
    assert (first.share, first.devices) == (0.6, (0,))
    assert (second.share, second.devices, second.place) == (0.1, (1,), Place(("platforms", "cuda", "stages")))


@pytest.mark.parametrize("inner", ["engine_args", "engine_extras"])
def test_options_within_options_outdo_those_of_the_stage(inner: str, tmp_path: Path) -> None:
    text = CURRENT.replace('devices: "0"\n  -', f'devices: "0"\n    {inner}:\n      gpu_memory_utilization: 0.4\n  -')
    first, _ = stages(tmp_path, text)
    assert (first.share, first.place) == (0.4, Place(("stages",), inner))


@pytest.mark.parametrize(
    ("said", "devices"),
    [
        ("", (0,)),
        ("devices: 3", (3,)),
        ('devices: "2, 3"', (2, 3)),
        ("devices: cpu", ()),
        ("tensor_parallel_size: 2", (0, 1)),
        ('devices: "1,2"\n    num_replicas: 2', (1, 2)),
        ('devices: "0"\n    num_replicas: 3', (0, 1, 2)),
        ('devices: "0,0"\n    num_replicas: 2', (0, 0)),
        ('devices: "0,1"\n    num_replicas: 2\n    tensor_parallel_size: 2', (0, 1, 2, 3)),
        ('devices: "0,1,4,5"\n    num_replicas: 2\n    parallel_config:\n      tensor_parallel_size: 2', (0, 1, 4, 5)),
    ],
)
def test_devices(said: str, devices: tuple[int, ...], tmp_path: Path) -> None:
    (stage,) = stages(tmp_path, f"stages:\n  - stage_id: 0\n    {said}\n")
    assert stage.devices == devices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("option: value",)),
        ("stages: [\n", ("isn't YAML", "line 2")),
        ("- stage_id: 0\n", ("option: value",)),
        ("forced_aligner:\n  model: some/model\n", ("names no stages", "--deploy-config")),
        ("stages:\n", ("names no stages",)),
        ("stages: 3\n", ("isn't a list",)),
        ("stages:\n  - devices: 0\n", ("entry 0", "stage_id is None")),
        ("stages:\n  - stage_id: one\n", ("'one'",)),
        ("stages:\n  - stage_id: 0\n  - stage_id: 0\n", ("stage 0 stands there twice",)),
        ("stages:\n  - stage_id: 0\n    devices: all\n", ("stage 0", "'all'", 'devices: "0,1"')),
        ("stages:\n  - stage_id: 0\n    devices: [0, 1]\n", ("[0, 1]", 'devices: "0,1"')),
        ('stages:\n  - stage_id: 0\n    devices: ""\n', ("names none",)),
        ("stages:\n  - stage_id: 0\n    gpu_memory_utilization: 80%\n", ("'80%'", "up to 1")),
        ("stages:\n  - stage_id: 0\n    gpu_memory_utilization: 1.5\n", ("1.5", "up to 1", "leave it out")),
        ("stages:\n  - stage_id: 0\n    tensor_parallel_size: two\n", ("tensor_parallel_size", "'two'")),
        ("base_config: elsewhere.yaml\n", ("elsewhere.yaml", "No such file")),
        ("base_config: stages.yaml\n", ("leads back to itself",)),
    ],
)
def test_what_cannot_be_read_is_named(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(StageFileError) as raised:
        stages(tmp_path, text)
    for word in ("stages.yaml" if "elsewhere" not in text else "elsewhere.yaml", *words):
        assert word in str(raised.value)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(StageFileError, match="it can't be read"):
        read_stages(tmp_path / name)
