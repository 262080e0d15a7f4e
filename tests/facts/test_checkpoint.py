"""A model read from its folder: config and headers together, and what happens when one of them can't be had."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from vllm_autofit.errors import ConfigError
from vllm_autofit.facts.checkpoint import draft_of, read_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}


def folder(place: Path, config: dict[str, object] | None = None, tensors: dict[str, list[int]] | None = None) -> str:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    if tensors is not None:
        header, offset = {}, 0
        for name, shape in tensors.items():
            size = 2
            for each in shape:
                size *= each
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return str(place)


def test_config_and_headers(tmp_path: Path) -> None:
    model = read_model(folder(tmp_path, tensors={"model.embed_tokens.weight": [1000, 64]}))
    assert model.facts is not None
    assert (model.facts.hidden_size, len(model.facts.layers)) == (64, 2)
    assert [(tensor.name, tensor.bytes) for tensor in model.tensors] == [("model.embed_tokens.weight", 128_000)]
    assert (model.weights_source, model.exact) == ("folder", True)


def test_a_config_alone_is_enough(tmp_path: Path) -> None:
    model = read_model(folder(tmp_path))
    assert model.facts is not None
    assert (model.tensors, model.weights_source, model.exact) == ((), "config", False)
    assert "holds no weights" in " ".join(model.notes)


def test_a_launch_that_may_not_ask_the_hub_says_nothing_about_missing_weights(tmp_path: Path) -> None:
    assert read_model(folder(tmp_path), hub=False).notes == ()


def test_a_config_that_is_not_understood_is_said_to_be_so(tmp_path: Path) -> None:
    model = read_model(folder(tmp_path, {"architectures": ["NoveltyForCausalLM"], "model_type": "novelty"}))
    assert model.facts is None
    assert "NoveltyForCausalLM" in " ".join(model.notes)


def test_a_config_that_is_handed_in_is_not_read_again(tmp_path: Path) -> None:
    model = read_model(str(tmp_path), config={**LLAMA, "num_hidden_layers": 7}, hub=False)
    assert model.facts is not None
    assert len(model.facts.layers) == 7


def test_what_drafts_is_read_too(tmp_path: Path) -> None:
    draft = folder(tmp_path / "draft", {**LLAMA, "num_hidden_layers": 1})
    model = read_model(folder(tmp_path / "target"), draft=draft)
    assert model.draft is not None
    assert model.draft.facts is not None
    assert len(model.draft.facts.layers) == 1


@pytest.mark.parametrize(
    "config",
    [
        {**LLAMA, "num_hidden_layers": 1, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 320},
        {**LLAMA, "num_hidden_layers": 1, "architectures": ["Eagle3LlamaForCausalLM"], "draft_vocab_size": 320},
        {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "draft_vocab_size": 320,
            "transformer_layer_config": {
                **{name: value for name, value in LLAMA.items() if name != "architectures"},
                "num_hidden_layers": 1,
            },
        },
    ],
    ids=["their authors'", "vLLM's", "of the speculators library"],
)
def test_eagles_drafts_are_read_as_what_they_are_made_like(tmp_path: Path, config: dict[str, object]) -> None:
    draft = folder(tmp_path / "draft", config)
    model = read_model(folder(tmp_path / "target"), draft=draft)
    assert model.draft is not None, model.notes
    assert model.draft.facts is not None
    assert (model.draft.facts.architecture, len(model.draft.facts.layers)) == ("LlamaForCausalLM", 1)
    assert model.draft.facts.raw["draft_vocab_size"] == 320


@pytest.mark.parametrize(
    ("asked", "draft"),
    [
        (None, None),
        ({"method": "mtp"}, None),
        ({"model": "some/model", "method": "mtp"}, None),
        ({"model": "[ngram]"}, None),
        ({"model": "my.module.Proposer", "method": "custom_class"}, None),
        ({"model": "some/draft"}, "some/draft"),
    ],
)
def test_which_checkpoint_drafts(asked: object, draft: str | None) -> None:
    assert draft_of("some/model", asked) == draft


def test_a_draft_that_is_not_understood_is_said_not_to_be_counted(tmp_path: Path) -> None:
    draft = folder(tmp_path / "draft", {"architectures": ["MedusaModel"], "model_type": "medusa"})
    model = read_model(folder(tmp_path / "target"), draft=draft)
    assert model.draft is None
    assert "MedusaModel" in " ".join(model.notes)


def test_damage_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": ')
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_model(str(tmp_path), hub=False)
    with pytest.raises(ConfigError):
        read_model("some/model", hub=False)
