"""Shares in the text of a file: nothing else of it changes, and vLLM-Omni's rules then find just these."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_autofit.errors import StageFileError
from vllm_autofit.stages.reading import read_stages
from vllm_autofit.stages.writing import filled

COMMENTED = """\
# What this is for.
async_chunk: true   # yes

stages:   # two of them
  - stage_id: 0  # the first
    # why so much
    gpu_memory_utilization: 0.60  # of 80 GiB
    devices: "0"

  - stage_id: 1  # the second
    devices: '0'
# the end
"""


def written(folder: Path, text: str, shares: dict[int, float]) -> str:
    """The filled text, which says the shares when it is read again."""
    path = folder / "stages.yaml"
    path.write_text(text, newline="")
    result = filled(read_stages(path), shares)
    again = folder / "again.yaml"
    again.write_text(result, newline="")
    said = {stage.id: stage.share for stage in read_stages(again).stages}
    assert {number: said[number] for number in shares} == shares
    return result


def lines_of(result: str, text: str) -> tuple[list[str], list[str]]:
    """Lines that only the result has, and only the text."""
    new, old = result.splitlines(), text.splitlines()
    return [line for line in new if line not in old], [line for line in old if line not in new]


def test_a_share_is_replaced_and_one_is_added(tmp_path: Path) -> None:
    result = written(tmp_path, COMMENTED, {0: 0.5, 1: 0.4})
    assert result == COMMENTED.replace("0.60", "0.5").replace(
        "# the second\n", "# the second\n    gpu_memory_utilization: 0.4\n"
    )


def test_nothing_is_filled_nothing_changes(tmp_path: Path) -> None:
    assert written(tmp_path, COMMENTED, {}) == COMMENTED


def test_line_ends_and_a_missing_last_one_stay(tmp_path: Path) -> None:
    text = COMMENTED.replace("# the end\n", "").rstrip("\n").replace("\n", "\r\n")
    result = written(tmp_path, text, {0: 0.5, 1: 0.4})
    assert result.count("\r\n") == text.count("\r\n") + 1
    assert "\n" not in result.replace("\r\n", "")
    assert result.endswith("'0'")


def test_words_of_many_bytes_move_nothing(tmp_path: Path) -> None:
    text = COMMENTED.replace("What this is for", "音声 → текст 🙂")
    assert lines_of(written(tmp_path, text, {0: 0.5}), text) == (
        ["    gpu_memory_utilization: 0.5  # of 80 GiB"],
        ["    gpu_memory_utilization: 0.60  # of 80 GiB"],
    )


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("- {stage_id: 0}", "- {stage_id: 0, gpu_memory_utilization: 0.5}"),
        ("- stage_id: 0x0\n", "- stage_id: 0x0\n  gpu_memory_utilization: 0.5\n"),
        ("- stage_id: 0\n  gpu_memory_utilization:\n", "- stage_id: 0\n  gpu_memory_utilization: 0.5\n"),
        ("- stage_id: 0\n  gpu_memory_utilization: null\n", "- stage_id: 0\n  gpu_memory_utilization: 0.5\n"),
        ("- devices: |\n    0\n  stage_id: 0\n", "- devices: |\n    0\n  stage_id: 0\n  gpu_memory_utilization: 0.5\n"),
        (
            "- engine_args:\n    tokens:\n    - 1\n    gpu_memory_utilization: .7\n  stage_id: 0\n",
            "- engine_args:\n    tokens:\n    - 1\n    gpu_memory_utilization: 0.5\n  stage_id: 0\n",
        ),
    ],
)
def test_ways_of_writing_a_stage(entry: str, expected: str, tmp_path: Path) -> None:
    assert written(tmp_path, f"stages:\n{entry}", {0: 0.5}) == f"stages:\n{expected}"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            "- stage_id: 0\n  engine_args:\n    model_stage: x\n",
            "- stage_id: 0\n  engine_args:\n    model_stage: x\n    gpu_memory_utilization: 0.5\n",
        ),
        (
            "- stage_id: 0\n  engine_args:\n    omni:\n      x: 1\n",
            "- stage_id: 0\n  engine_args:\n    gpu_memory_utilization: 0.5\n    omni:\n      x: 1\n",
        ),
        ("- stage_id: 0\n", "- stage_id: 0\n  engine_args:\n    gpu_memory_utilization: 0.5\n"),
        ("- {stage_id: 0}\n", "- {stage_id: 0, engine_args: {gpu_memory_utilization: 0.5}}\n"),
    ],
)
def test_the_older_schema_takes_it_among_the_engines_options(entry: str, expected: str, tmp_path: Path) -> None:
    assert written(tmp_path, f"stage_args:\n{entry}", {0: 0.5}) == f"stage_args:\n{expected}"


def test_a_file_that_is_based_on_another_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(COMMENTED)
    text = "base_config: base.yaml\nstages:\n    - stage_id: 1\n      devices: '1'  # apart\n\n# the end\n"
    result = written(tmp_path, text, {0: 0.5, 1: 0.4})
    assert lines_of(result, text)[1] == []
    assert result.endswith("# apart\n    - stage_id: 0\n      gpu_memory_utilization: 0.5\n\n# the end\n")
    bare = "# only this\nbase_config: base.yaml  # below\n"
    result = written(tmp_path, bare, {0: 0.5, 1: 0.4})
    assert result.startswith(bare)
    assert result.endswith("\n") or bare.endswith("\n")


def test_the_share_of_a_platform_is_replaced_there(tmp_path: Path) -> None:
    text = COMMENTED + "platforms:\n  cuda:\n    stages:\n    - stage_id: 0\n      gpu_memory_utilization: 0.7\n"
    result = written(tmp_path, text, {0: 0.5})
    assert result == text.replace("0.7", "0.5")


def test_what_cannot_be_put_there_is_said(tmp_path: Path) -> None:
    alias = "stages:\n- stage_id: 0\n  engine_args: &same\n    gpu_memory_utilization: 0.5\n"
    alias += "- stage_id: 1\n  engine_args: *same\n"
    with pytest.raises(StageFileError, match="YAML alias"):
        written(tmp_path, alias, {0: 0.3, 1: 0.4})
    inherited = COMMENTED + "platforms:\n  cuda:\n    stages:\n    - {stage_id: 0, gpu_memory_utilization: 0.7}\n"
    (tmp_path / "base.yaml").write_text(inherited)
    with pytest.raises(StageFileError, match=r"inherited from `platforms\.cuda\.stages`"):
        written(tmp_path, "base_config: base.yaml\n", {0: 0.3})
