"""What stages need, from the headers of a checkpoint that holds all of them and from its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import GIB
from vllm_autofit.cli.main import EXIT_DOES_NOT_FIT, EXIT_OK, main
from vllm_autofit.stages.package import PACKAGE

Captured = pytest.CaptureFixture[str]

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
    "model_type": "qwen3_omni_moe",
    "thinker_config": {
        "text_config": {
            "model_type": "qwen3_omni_moe_text",
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "vocab_size": 152064,
            "max_position_embeddings": 65536,
        },
        "vision_config": {},
        "audio_config": {},
    },
    "talker_config": {"model_type": "unheard_of"},
}
"""The shapes of the text part of Qwen3-Omni-30B-A3B."""

WEIGHTS_GIB = {"thinker": 20, "talker": 3}
STAGES = """\
stages:
  - {stage_id: 0, devices: "0", gpu_memory_utilization: 0.2}
  - {stage_id: 1, devices: "0", gpu_memory_utilization: 0.7}
  - {stage_id: 2, devices: "0", gpu_memory_utilization: 0.1, enforce_eager: true}
"""
PIPELINE = """\
raise RuntimeError("it is never run")
PIPELINE = PipelineConfig(
    model_type="qwen3_omni_moe",
    stages=(
        StagePipelineConfig(stage_id=0, model_stage="thinker", hf_config_name="thinker_config"),
        StagePipelineConfig(stage_id=1, model_stage="talker", hf_config_name="talker_config"),
        StagePipelineConfig(stage_id=2, model_stage="code2wav", execution_type=StageExecutionType.DIFFUSION),
    ),
)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A config, and headers of matrices without content."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    header, end = {}, 0
    for name, gib in WEIGHTS_GIB.items():
        for layer in range(gib):
            header[f"{name}.model.layers.{layer}.mlp.up_proj.weight"] = {
                "dtype": "BF16",
                "shape": [2**18, 2048],
                "data_offsets": [end, end + GIB],
            }
            end += GIB
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole: nothing is stored
    return folder


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """A file of a package that names its stages in code."""
    package = tmp_path / PACKAGE
    for place, text in (("deploy/mine.yaml", STAGES), ("model_executor/models/any/pipeline.py", PIPELINE)):
        (package / place).parent.mkdir(parents=True)
        (package / place).write_text(text)
    return package / "deploy" / "mine.yaml"


def said(stages: Path, model: Path, capsys: Captured, *words: str, status: int = EXIT_OK) -> str:
    assert main(["plan", "--stages", str(stages), "--model", str(model), *words]) == status
    return capsys.readouterr().err


def test_a_stage_gets_what_it_needs_before_the_files_shares_count(stages: Path, model: Path, capsys: Captured) -> None:
    text = said(stages, model, capsys, "--gpu-memory", "48")
    assert "stage 1 (talker)" in text
    assert "It needs at least 3.00 GiB (weights 3.00; what else it takes isn't known)" in text
    assert "stage 2 (code2wav)" in text
    assert text.count("What it needs isn't known") == 1
    thinker = next(line for line in text.splitlines() if "stage 0 (thinker)" in line)
    assert "(weights 20.1" in thinker  # and the buffers that vLLM makes itself
    assert "activations 0.9" in thinker
    assert "KV cache of 4,096 tokens 0.38" in thinker
    share = float(thinker.partition("gpu_memory_utilization ")[2].partition(" ")[0])
    needed = float(thinker.partition("at least ")[2].partition(" ")[0])
    assert 20 < needed < 24
    assert needed <= share * 48 + 0.01 <= needed + 0.02


def test_on_a_large_device_the_files_proportion_is_enough(stages: Path, model: Path, capsys: Captured) -> None:
    text = said(stages, model, capsys, "--gpu-memory", "141")
    shares = [
        float(line.partition("utilization ")[2].partition(" ")[0]) for line in text.splitlines() if "stage " in line
    ]
    assert shares[1] / shares[0] == pytest.approx(3.5, rel=0.01)


def test_what_can_not_hold_a_stage_is_said(stages: Path, model: Path, capsys: Captured) -> None:
    text = said(stages, model, capsys, "--gpu-memory", "24", status=EXIT_DOES_NOT_FIT)
    assert "stage 1 (talker) needs 3.00 GiB" in text
    assert "GiB short" in text


def test_without_headers_the_file_decides(stages: Path, model: Path, capsys: Captured) -> None:
    (model / "model.safetensors").unlink()
    text = said(stages, model, capsys, "--gpu-memory", "48")
    assert "what the stages need can't be told" in text
    assert "stage 0 (thinker)" in text


def test_a_stage_that_the_file_leaves_out_is_named(stages: Path, model: Path, capsys: Captured) -> None:
    stages.write_text("".join(STAGES.splitlines(keepends=True)[:-1]))
    assert "stage 2 (code2wav) isn't in" in said(stages, model, capsys, "--gpu-memory", "80")
