"""The model of a launch is the one that vLLM itself will see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Forked, printed

pytestmark = pytest.mark.vllm


def seen(model: str, **arguments: Any) -> Any:
    """In a fork: what we make of an ``EngineArgs``."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_autofit.facts.request import read_request
    from vllm_autofit.hooks.model_config import model_of

    engine_args = EngineArgs(model=model, **arguments)
    return model_of(engine_args, read_request(engine_args, (), {}))


def test_config_and_weights_of_a_folder(tiny_model: Path, forked: Forked) -> None:
    model = forked(lambda: seen(str(tiny_model)))
    assert model.facts.architecture == "Qwen3ForCausalLM"
    assert model.exact
    assert sum(tensor.bytes for tensor in model.tensors) > 10_000_000


def test_overrides_of_the_config_count(tiny_model: Path, forked: Forked) -> None:
    model = forked(lambda: seen(str(tiny_model), hf_overrides={"max_position_embeddings": 1234}))
    assert model.facts.context_tokens == 1234


def test_a_function_may_override_the_config_too(tiny_model: Path, forked: Forked) -> None:
    def override(config: Any) -> Any:
        config.max_position_embeddings = 4321
        return config

    assert forked(lambda: seen(str(tiny_model), hf_overrides=override)).facts.context_tokens == 4321


def test_a_config_that_vllm_cannot_read_is_left_to_vllm(tmp_path: Path, forked: Forked) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ')

    def child() -> tuple[Any, str]:
        return seen(str(tmp_path)), printed()

    model, said = forked(child)
    assert model is None
    assert "WARNING" not in said


def test_a_model_that_we_do_not_understand_leaves_a_plan_for_the_device(
    tiny_model: Path, tmp_path: Path, forked: Forked
) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    for file in tiny_model.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["Gemma3nForConditionalGeneration2"]}))

    model = forked(lambda: seen(str(tmp_path)))
    assert model.facts is None
    assert "Gemma3nForConditionalGeneration2" in " ".join(model.notes)


def test_a_hub_that_cannot_be_reached_costs_no_time_and_no_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forked: Forked
) -> None:
    """vLLM tries for minutes; we don't try before it."""

    def child() -> tuple[Any, str]:
        from types import SimpleNamespace

        import huggingface_hub.constants as constants
        import vllm.transformers_utils.config as vllm_config

        from vllm_autofit.hooks.model_config import model_of
        from vllm_autofit.values import Request

        constants.HF_HUB_CACHE = str(tmp_path)
        constants.ENDPOINT = "http://127.0.0.1:9"  # nobody listens there
        vllm_config.get_config = lambda *args, **kwargs: pytest.fail("vLLM was asked")
        return model_of(SimpleNamespace(), Request("some/model", {}, frozenset())), printed()

    model, said = forked(child)
    assert model is None
    assert "WARNING" not in said
