"""A plan as something that starts vLLM."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.answers import answered, model_folder
from tests.conftest import Forked
from vllm_autofit.answer import Answer
from vllm_autofit.cli.flags import parse_flags
from vllm_autofit.render.launch import config_file, container_command, script, shell_command

OPTIONS: dict[str, object] = {
    "tensor_parallel_size": 2,
    "port": 9000,
    "api_key": ("it's", "two words"),
    "allowed_origins": ["*"],
    "limit_mm_per_prompt": {"image": 2},
    "enable_prefix_caching": False,
    "enable_chunked_prefill": True,
    "trust_remote_code": True,
    "device_ids": "0,1",
    "kv_cache_dtype": "fp8",
    "served_model_name": ("prüf # name: $HOME",),
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
    "disable_log_stats": True,
}
"""One of each kind, with what a shell or YAML could stumble over."""


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    """A plan for two devices in a folder with a difficult name."""
    return answered(model_folder(tmp_path / "my 'model' #1"), options=OPTIONS)


def test_a_shell_command_says_all_that_was_given_and_chosen(answer: Answer) -> None:
    command = shell_command(answer)
    assert "\n" not in command
    flags = parse_flags(shlex.split(command))
    assert flags.model == answer.model_name
    assert flags.values == {**OPTIONS, **answer.chosen}
    assert "gpu_memory_utilization" in flags.values


def test_what_vllm_decides_is_left_to_it(answer: Answer) -> None:
    left = {each.field for each in answer.plan.decisions if each.source == "vllm"}
    assert left
    assert not left & parse_flags(shlex.split(shell_command(answer))).values.keys()


def test_a_config_file_reads_back_as_it_was(answer: Answer, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(config_file(answer))
    flags = parse_flags(["--config", str(path)])
    assert flags.model == answer.model_name
    assert flags.values == {**OPTIONS, **answer.chosen}


def test_a_config_file_says_no_so_that_every_vllm_hears_it(answer: Answer) -> None:
    lines = config_file(answer).splitlines()
    assert "no-enable-prefix-caching: true" in lines
    assert not [line for line in lines if line.endswith(": false")]


@pytest.mark.vllm
def test_vllm_takes_the_config_file_as_it_is(answer: Answer, tmp_path: Path, forked: Forked) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(config_file(answer))

    def read() -> dict[str, Any]:
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        parser = FlexibleArgumentParser(prog="vllm")
        ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
        return dict(vars(parser.parse_args(["serve", "--config", str(path)])))

    theirs = forked(read)
    assert theirs["model"] == answer.model_name
    chosen = {name: theirs[name] for name in answer.chosen}
    assert chosen == answer.chosen
    assert theirs["enable_prefix_caching"] is False
    assert theirs["enable_chunked_prefill"] is True
    assert theirs["api_key"] == ["it's", "two words"]
    assert theirs["served_model_name"] == ["prüf # name: $HOME"]
    assert theirs["allowed_origins"] == ["*"]
    assert theirs["device_ids"] == [0, 1]
    assert theirs["port"] == 9000
    assert theirs["disable_log_stats"] is True


@pytest.mark.vllm
def test_vllm_builds_its_arguments_from_the_script(answer: Answer, forked: Forked) -> None:
    arguments = _arguments_of_llm(script(answer))

    def build() -> dict[str, Any]:
        from vllm.engine.arg_utils import EngineArgs

        built = EngineArgs(**arguments)
        return {name: getattr(built, name) for name in ("model", "tensor_parallel_size", *answer.chosen)}

    assert forked(build) == {"model": answer.model_name, "tensor_parallel_size": 2, **answer.chosen}


def test_a_script_is_guarded_and_gives_the_engine_nothing_of_the_server_s(answer: Answer) -> None:
    text = script(answer)
    tree = ast.parse(text)
    guard = tree.body[-1]
    assert isinstance(guard, ast.If)
    assert ast.unparse(guard.test) == "__name__ == '__main__'"
    arguments = _arguments_of_llm(text)
    assert arguments["device_ids"] == [0, 1]
    assert arguments["model"] == answer.model_name
    assert not {"port", "api_key", "allowed_origins"} & arguments.keys()


def test_a_container_gets_its_devices_port_and_model(answer: Answer) -> None:
    words = shlex.split(container_command(answer))
    assert words[:2] == ["docker", "run"]
    assert words[words.index("--gpus") + 1] == "2"
    assert words[words.index("-p") + 1] == "9000:9000"
    assert f"{answer.model_name}:{answer.model_name}:ro" in words
    image = words.index("vllm/vllm-openai:v0.32.0")
    assert parse_flags(words[image + 1 :]).values == {**OPTIONS, **answer.chosen}
    assert '"$HOME/.cache/huggingface:' in container_command(answer)  # for the shell to expand


def test_a_hub_model_needs_no_folder() -> None:
    answer = answered(None)
    assert ":ro" not in container_command(answer)
    assert "--model" not in container_command(answer)


def test_a_version_without_a_patch_number_is_its_first_release() -> None:
    assert "vllm/vllm-openai:v0.20.0" in container_command(answered(None, vllm_version="0.20"))


def _arguments_of_llm(text: str) -> dict[str, Any]:
    call = next(
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LLM"
    )
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
