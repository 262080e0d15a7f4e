"""Finding and reading a config, whatever state it is in."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from vllm_autofit.architecture import Attention
from vllm_autofit.errors import ConfigError, UnknownModelError
from vllm_autofit.facts.config import LARGEST_FILE, load_config, model_facts
from vllm_autofit.facts.families.fields import MOST_LAYERS

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_scaling": {"factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def _write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local hub cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_folder_with_nothing_but_a_config_is_enough(tmp_path: Path) -> None:
    _write(tmp_path, "config.json", LLAMA)
    assert load_config(str(tmp_path)) == load_config(str(tmp_path / "config.json")) == LLAMA


def test_what_lies_beside_the_config_is_read_too(tmp_path: Path) -> None:
    _write(tmp_path, "config.json", LLAMA)
    quantised = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    _write(tmp_path, "hf_quant_config.json", quantised)
    _write(tmp_path, "modules.json", [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    facts = model_facts(load_config(str(tmp_path)))
    assert facts.quantization is not None
    assert (facts.quantization.method, facts.quantization.weight_bits) == ("modelopt", 8)
    assert facts.quantization.kv_cache_dtype == "fp8"
    assert facts.runner == "pooling"


def test_a_hub_name_is_found_in_the_local_cache(hub_cache: Path) -> None:
    repository = hub_cache / "models--org--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    _write(snapshot, "config.json", LLAMA)
    assert load_config("org/model") == load_config("org/model", "a" * 40) == LLAMA


def test_without_a_network_the_error_says_so(hub_cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"the hub isn't to be asked.*name a local folder"):
        load_config("org/model")


def test_a_hub_out_of_reach_is_given_up_at_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ConfigError, match="ConnectionRefusedError"):
            load_config("org/model")


@pytest.mark.parametrize("name", ["../elsewhere", "a/b/c", "x\0y", "a" * 5000, "no such thing"])
def test_what_is_neither_path_nor_hub_name_is_refused(name: str, hub_cache: Path) -> None:
    with pytest.raises(ConfigError):
        load_config(name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"hidden_size": 40', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "not a JSON object but a list"),
        (b"null", "not a JSON object"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"hidden_size": ' + b"9" * 100_000 + b"}", "not JSON"),
    ],
    ids=["empty", "truncated", "not text", "a list", "null", "deep", "digits"],
)
def test_a_file_that_is_no_config_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=reason):
        load_config(str(tmp_path))


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(ConfigError, match="more than any config"):
        load_config(str(tmp_path))


@pytest.mark.parametrize(("file", "reason"), [("params.json", "only params.json"), ("README.md", "no config.json")])
def test_a_folder_without_a_config_is_refused(file: str, reason: str, tmp_path: Path) -> None:
    _write(tmp_path, file, {})
    with pytest.raises(ConfigError, match=reason):
        load_config(str(tmp_path))


def test_a_gguf_file_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="Name a folder"):
        load_config(str(tmp_path / "model.gguf"))


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")


@pytest.mark.parametrize("value", [-1, True, 1.5, "4096", 2**63, 10**400, float("nan"), float("inf"), [], {}], ids=repr)
@pytest.mark.parametrize("name", SIZES)
def test_what_is_no_size_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        model_facts({**LLAMA, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", MOST_LAYERS + 1),
        ("num_key_value_heads", 64),
        ("num_attention_heads", 10**6),
        ("layer_types", ["full_attention"] * 31),
        ("layer_types", [None] * 32),
        ("layer_types", {"0": "full_attention"}),
        ("max_position_embeddings", float("nan")),
        ("rope_scaling", {"rope_type": "linear", "factor": -3}),
        ("rope_scaling", {"rope_type": "linear", "factor": "8"}),
        ("partial_rotary_factor", 2),
        ("attention_bias", "yes"),
        ("text_config", [1]),
        ("architectures", "LlamaForCausalLM"),
        ("quantization_config", {"quant_method": "gptq", "bits": "four"}),
        ("quantization_config", {"quant_method": "fp8", "weight_block_size": [128]}),
    ],
)
def test_what_cant_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError):
        model_facts({**LLAMA, name: value})


@pytest.mark.parametrize("config", [None, [], "config", 3])
def test_what_is_no_object_is_refused(config: Any) -> None:
    with pytest.raises(ConfigError, match="not an object"):
        model_facts(config)


def test_endless_configs_come_to_an_end() -> None:
    endless: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_size": "?"}
    endless["text_config"] = endless
    with pytest.raises(ConfigError, match="hidden_size"):
        model_facts(endless)
    with pytest.raises(ConfigError, match="vocab_size"):
        model_facts({**LLAMA, "torch_dtype": endless, "vocab_size": endless})


def test_an_unknown_architecture_is_never_guessed() -> None:
    with pytest.raises(UnknownModelError, match="NobodyForCausalLM") as caught:
        model_facts({**LLAMA, "architectures": ["NobodyForCausalLM"]})
    assert caught.value.architecture == "NobodyForCausalLM"
    with pytest.raises(UnknownModelError):
        model_facts({name: value for name, value in LLAMA.items() if name not in ("architectures", "model_type")})
    with pytest.raises(UnknownModelError, match="compressed KV cache"):
        model_facts({**LLAMA, "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4"})


def test_custom_code_with_a_plain_decoders_fields_counts_as_one_and_says_so() -> None:
    custom = {
        **LLAMA,
        "architectures": ["NobodyForCausalLM"],
        "model_type": "nobody",
        "auto_map": {"AutoConfig": "a.B"},
    }
    facts = model_facts(custom)
    assert facts.layers == model_facts(LLAMA).layers
    assert any("NobodyForCausalLM isn't known" in note for note in facts.notes)
    for strange in ("num_experts", "mamba_d_state", "kv_lora_rank", "block_configs"):
        with pytest.raises(UnknownModelError):
            model_facts({**custom, strange: 4})


def test_a_size_that_the_config_leaves_out_is_its_classs_and_noted() -> None:
    facts = model_facts({name: value for name, value in LLAMA.items() if name != "vocab_size"})
    assert facts.vocabulary == 32000
    assert facts.notes == ("the config leaves out vocab_size: taken from the defaults of llama",)
    assert model_facts(LLAMA).notes == ()


def test_null_means_none_and_not_the_default() -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    windows = {
        layer.mixer.window
        for config in (mistral, {**mistral, "sliding_window": None}, {**mistral, "sliding_window": 0})
        for layer in model_facts(config).layers
        if isinstance(layer.mixer, Attention)
    }
    assert windows == {4096, None}
    kv_heads = model_facts({**LLAMA, "num_key_value_heads": None}).layers[0].mixer
    assert isinstance(kv_heads, Attention)
    assert kv_heads.kv_heads == 32
