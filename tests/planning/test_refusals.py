"""Deployments that vLLM refuses whatever memory there is, and their neighbours that it takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.builders import llama
from vllm_autofit.architecture import Attention, Drafter, Experts, LatentAttention, Layer, ModelFacts, Quantization
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.facts.config import model_facts
from vllm_autofit.planning.refusals import CACHE_DTYPES, LEAST_CAPABILITY, METHODS, refusals

FP8_BLOCKS = Quantization("fp8", weight_bits=8, block=(128, 128))
MXFP4 = Quantization("mxfp4", weight_bits=4)
AWQ = Quantization("awq", weight_bits=4)


def dense(**more: Any) -> ModelFacts:
    facts = llama(**more).facts
    assert facts is not None
    return facts


def mixture(width: int = 768, **more: Any) -> ModelFacts:
    """Qwen3-30B-A3B's shapes, in fp8 blocks."""
    layer = Layer(Attention(32, 4, 128, 128), Experts(128, 8, width))
    return replace(dense(hidden=2048, quantization=FP8_BLOCKS), layers=(layer,) * 2, **more)


def latent(heads: int = 128) -> ModelFacts:
    mixer = Attention(heads, 1, 192, 128, latent=LatentAttention(512, 64, 128))
    return replace(dense(), layers=(Layer(mixer, Experts(256, 8, 2048)),))


def ask(facts: ModelFacts, *, context_is_the_users: bool = True, **settings: Any) -> tuple[str, ...]:
    chosen = {"max_model_len": min(4096, facts.context_tokens or 4096), **settings}
    return refusals(facts, Deployment(**chosen), context_is_the_users=context_is_the_users)


def mtp(tokens: int, method: str = "mtp", model: str | None = None) -> Speculation:
    return Speculation(method, tokens, model)


CUDA = {"device": "cuda", "dtype": "float16"}

TAKEN = [
    pytest.param(dense(), {}, id="ordinary"),
    pytest.param(dense(heads=28, kv_heads=4, width=18944), {"tensor_parallel": 4}, id="heads divisible"),
    pytest.param(dense(heads=40, kv_heads=10, width=17920), {"tensor_parallel": 2}, id="KV heads divisible"),
    pytest.param(dense(heads=32, kv_heads=2), {"tensor_parallel": 8}, id="KV heads copied"),
    pytest.param(latent(), {"tensor_parallel": 8}, id="a latent vector is on every rank"),
    pytest.param(dense(width=14336), {"tensor_parallel": 8}, id="width divisible"),
    pytest.param(mixture(), {"tensor_parallel": 2, "vllm": (0, 28)}, id="blocks whole"),
    pytest.param(mixture(), {"tensor_parallel": 8, "vllm": (0, 28), "expert_parallel": True}, id="experts whole"),
    pytest.param(mixture(), {"tensor_parallel": 8, "vllm": (0, 29)}, id="blocks refined to 32"),
    pytest.param(
        mixture(quantization=replace(FP8_BLOCKS, ignored=("re:.*experts.*",))),
        {"tensor_parallel": 8, "vllm": (0, 28)},
        id="experts not stored in blocks",
    ),
    pytest.param(dense(width=12288, quantization=FP8_BLOCKS), {"tensor_parallel": 8}, id="dense blocks whole"),
    pytest.param(dense(quantization=MXFP4), {"compute_capability": (8, 0)}, id="mxfp4 on Ampere"),
    pytest.param(dense(quantization=AWQ), {**CUDA, "compute_capability": (7, 5)}, id="awq on Turing"),
    pytest.param(dense(quantization=MXFP4), {"device": "cpu", "compute_capability": (7, 5)}, id="not CUDA"),
    pytest.param(dense(quantization=MXFP4), {"compute_capability": None}, id="capability unknown"),
    pytest.param(dense(), {**CUDA, "compute_capability": (7, 5)}, id="float16 on Turing"),
    pytest.param(dense(context=8192), {"max_model_len": 8192}, id="all of the context"),
    pytest.param(dense(context=0), {"max_model_len": 10**6}, id="config names no context"),
    pytest.param(
        dense(context=4096, raw={"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}),
        {"max_model_len": 131072},
        id="LongRoPE's own limit",
    ),
    pytest.param(dense(context=4096, raw={"model_max_length": 8192}), {"max_model_len": 8192}, id="model_max_length"),
    pytest.param(
        dense(
            context=40960,
            raw={"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        ),
        {"max_model_len": 131072, "vllm": (0, 29)},
        id="YaRN before 0.32",
    ),
    pytest.param(dense(), {"quantization": "fp8"}, id="fp8 while loading"),
    pytest.param(dense(quantization=AWQ), {"quantization": "awq_marlin"}, id="another kernel for the same weights"),
    pytest.param(dense(quantization=AWQ), {"quantization": "AWQ"}, id="capitals"),
    pytest.param(dense(), {"quantization": "bitsandbytes", "vllm": (0, 27)}, id="bitsandbytes before 0.28"),
    pytest.param(mixture(), {"expert_parallel": True}, id="expert parallelism with experts"),
    pytest.param(dense(), {"kv_cache_dtype": "fp8_e4m3"}, id="cache dtype"),
    pytest.param(
        dense(heads=32, kv_heads=2), {"tensor_parallel": 8, "decode_context_parallel": 4}, id="context parallel"
    ),
    pytest.param(
        dense(), {"tensor_parallel": 4, "decode_context_parallel": 3, "vllm": (0, 18)}, id="not yet checked by vLLM"
    ),
    pytest.param(
        dense(),
        {"quantization": "fp9", "kv_cache_dtype": "fp9", "vllm": (0, 34)},
        id="names that a later vLLM may know",
    ),
    pytest.param(latent(), {"tensor_parallel": 8, "decode_context_parallel": 8}, id="context parallel, latent"),
    pytest.param(replace(dense(), drafter=Drafter(1)), {"speculation": mtp(3)}, id="one layer, used thrice"),
    pytest.param(replace(dense(), drafter=Drafter(2)), {"speculation": mtp(1)}, id="fewer than there are layers"),
    pytest.param(replace(dense(), drafter=Drafter(2)), {"speculation": mtp(4)}, id="a multiple of two layers"),
    pytest.param(replace(dense(), model_type="qwen3_next"), {"speculation": mtp(2)}, id="a family that doesn't count"),
    pytest.param(dense(), {"speculation": mtp(4, "ngram")}, id="ngram"),
    pytest.param(dense(), {"max_num_batched_tokens": 2048, "max_model_len": 8192}, id="chunked prefill"),
    pytest.param(dense(), {"max_num_batched_tokens": 4096, "chunked_prefill": False}, id="a whole context in one step"),
    pytest.param(dense(), {"max_num_batched_tokens": 256, "max_num_seqs": 256}, id="a token for each request"),
]

REFUSED = [
    pytest.param(dense(heads=28, kv_heads=4), {"tensor_parallel": 8}, "28 attention heads", "use 4", id="heads"),
    pytest.param(latent(100), {"tensor_parallel": 8}, "100 attention heads", "use 4", id="latent heads"),
    pytest.param(dense(heads=40, kv_heads=10), {"tensor_parallel": 4}, "10 KV heads", "use 2", id="KV heads"),
    pytest.param(dense(width=1000), {"tensor_parallel": 16}, "width of 1000", "use 8", id="width"),
    pytest.param(
        mixture(), {"tensor_parallel": 4, "data_parallel": 2, "vllm": (0, 28)}, "is 96 each", "fewer", id="blocks"
    ),
    pytest.param(
        mixture(1536), {"tensor_parallel": 8, "vllm": (0, 28)}, "is 192", "--enable-expert-parallel", id="blocks, 1536"
    ),
    pytest.param(mixture(), {"tensor_parallel": 16}, "is 48 each", "use fewer", id="blocks too small to refine"),
    pytest.param(
        mixture(quantization=replace(FP8_BLOCKS, method="compressed-tensors")),
        {"tensor_parallel": 8},
        "is 96 each",
        "use fewer",
        id="compressed-tensors doesn't refine",
    ),
    pytest.param(
        dense(width=18944, quantization=FP8_BLOCKS), {"tensor_parallel": 8}, "down_proj", "smaller", id="dense blocks"
    ),
    pytest.param(
        dense(quantization=MXFP4), {**CUDA, "compute_capability": (7, 5)}, "7.5 is too old", "8.0", id="mxfp4 on a T4"
    ),
    pytest.param(
        dense(quantization=AWQ), {**CUDA, "compute_capability": (7, 0)}, "7.0", "from 7.5", id="awq on a V100"
    ),
    pytest.param(
        dense(), {**CUDA, "compute_capability": (7, 0), "quantization": "fp8"}, "fp8", "7.5", id="fp8 while loading"
    ),
    pytest.param(dense(quantization=MXFP4), {"dtype": "float16"}, "dtype float16", "use bfloat16", id="mxfp4 in half"),
    pytest.param(dense(quantization=AWQ), {"dtype": "float32"}, "dtype float32", "or float16", id="awq in float32"),
    pytest.param(dense(), {"compute_capability": (7, 5)}, "bfloat16", "--dtype half", id="bfloat16 on a T4"),
    pytest.param(dense(context=8192), {"max_model_len": 8193}, "8193", "use 8192 or less", id="context"),
    pytest.param(
        dense(
            context=40960,
            raw={"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        ),
        {"max_model_len": 131072, "vllm": (0, 32)},
        "40960",
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1",
        id="YaRN from 0.32 on",
    ),
    pytest.param(dense(), {"quantization": "fp9"}, "'fp9'", "spelling", id="no such method"),
    pytest.param(dense(), {"quantization": "awq"}, "'awq'", "fp8", id="awq of a plain checkpoint"),
    pytest.param(dense(quantization=AWQ), {"quantization": "gptq"}, "'gptq'", "leave it out", id="not its own"),
    pytest.param(
        dense(quantization=FP8_BLOCKS), {"quantization": "fp8_per_tensor"}, "'fp8'", "leave it out", id="fp8 again"
    ),
    pytest.param(dense(), {"quantization": "bitsandbytes", "vllm": (0, 28)}, "0.28", "plugin", id="dropped"),
    pytest.param(
        dense(quantization=Quantization("gguf")), {"vllm": (0, 24)}, "'gguf'", "plugin", id="checkpoint's was dropped"
    ),
    pytest.param(dense(), {"expert_parallel": True}, "model with experts", "leave", id="expert parallelism"),
    pytest.param(dense(), {"kv_cache_dtype": "fp9"}, "'fp9'", "auto", id="no such cache dtype"),
    pytest.param(
        dense(), {"tensor_parallel": 4, "decode_context_parallel": 3}, "doesn't divide", "use 1", id="context parallel"
    ),
    pytest.param(
        dense(heads=32, kv_heads=2),
        {"tensor_parallel": 8, "decode_context_parallel": 8},
        "the 4 copies",
        "use fewer",
        id="context parallel beyond the copies",
    ),
    pytest.param(dense(), {"speculation": mtp(1)}, "prediction layers", "use ngram", id="no prediction layers"),
    pytest.param(
        replace(dense(), drafter=Drafter(2)), {"speculation": mtp(5)}, "multiple", "use 4", id="no multiple of two"
    ),
    pytest.param(dense(), {"speculation": mtp(0, "ngram")}, "at least 1", "raise", id="nothing speculated"),
    pytest.param(
        dense(),
        {"max_num_batched_tokens": 4095, "chunked_prefill": False},
        "4095 is less than max_model_len 4096",
        "chunked prefill",
        id="no chunked prefill",
    ),
    pytest.param(
        dense(), {"max_num_batched_tokens": 255, "max_num_seqs": 256}, "255", "--max-num-seqs 255", id="batch"
    ),
]


@pytest.mark.parametrize(("facts", "settings"), TAKEN)
def test_taken(facts: ModelFacts, settings: dict[str, Any]) -> None:
    assert ask(facts, **settings) == ()


@pytest.mark.parametrize(("facts", "settings", "value", "remedy"), REFUSED)
def test_refused_once_with_value_and_remedy(
    facts: ModelFacts, settings: dict[str, Any], value: str, remedy: str
) -> None:
    (message,) = ask(facts, **settings)
    assert value in message
    assert remedy in message.partition(value)[2]
    assert not message.endswith(".")
    assert "\n" not in message


def test_a_context_of_ours_is_not_refused() -> None:
    assert ask(dense(context=8192), max_model_len=8193, context_is_the_users=False) == ()


def test_every_broken_rule_is_told() -> None:
    assert len(ask(dense(heads=28, kv_heads=4), tensor_parallel=8, kv_cache_dtype="fp9", quantization="awq")) == 3


@pytest.mark.vllm
def test_tables_hold_what_vllm_says(forked: Callable[[Callable[[], Any]], Any]) -> None:
    methods, capabilities, dtypes = forked(_tables_of_vllm)
    assert methods <= METHODS
    assert dtypes <= CACHE_DTYPES
    ours = {name: LEAST_CAPABILITY.get(name) for name in capabilities}
    # "mxfp8" names a checkpoint's method and one that quantises while loading, which asks for less.
    assert ours == {**capabilities, "mxfp8": 75}


def _tables_of_vllm() -> tuple[set[str], dict[str, int], set[str]]:
    from typing import get_args

    from vllm.config.cache import CacheDType
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

    least = {name: get_quantization_config(name).get_min_capability() for name in QUANTIZATION_METHODS}
    return set(QUANTIZATION_METHODS), least, set(get_args(CacheDType))


SETTINGS_OF_VLLM: list[dict[str, Any]] = [
    {},
    {"tensor_parallel_size": 2},
    {"tensor_parallel_size": 3},
    {"tensor_parallel_size": 4, "decode_context_parallel_size": 2},
    {"tensor_parallel_size": 4, "decode_context_parallel_size": 3},
    {"tensor_parallel_size": 4, "decode_context_parallel_size": 4},
    {"max_model_len": 32768},
    {"max_model_len": 32769},
    {"quantization": "awq"},
    {"quantization": "bitsandbytes"},
    {"quantization": "fp9"},
    {"enable_expert_parallel": True},
    {"kv_cache_dtype": "fp9"},
    {"kv_cache_dtype": "fp8"},
    {"max_num_batched_tokens": 100, "max_num_seqs": 101},
    {"max_num_batched_tokens": 100, "max_num_seqs": 100},
    {"max_num_batched_tokens": 1000, "enable_chunked_prefill": False, "max_num_seqs": 8, "max_model_len": 1001},
    {"max_num_batched_tokens": 1000, "enable_chunked_prefill": False, "max_num_seqs": 8, "max_model_len": 1000},
    {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
]
SETTINGS_OF_FP8: list[dict[str, Any]] = [
    {},
    {"quantization": "fp8"},
    {"quantization": "fp8_per_tensor"},
    {"dtype": "float32"},
]
OURS = {
    "tensor_parallel_size": "tensor_parallel",
    "decode_context_parallel_size": "decode_context_parallel",
    "enable_expert_parallel": "expert_parallel",
    "enable_chunked_prefill": "chunked_prefill",
}


@pytest.mark.vllm
def test_vllm_refuses_the_same(forked: Callable[[Callable[[], Any]], Any], tiny_model: Path, tmp_path: Path) -> None:
    quantised = shutil.copytree(tiny_model, tmp_path / "fp8")
    config = json.loads((tiny_model / "config.json").read_text())
    stored = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    asked = [(tiny_model, each) for each in SETTINGS_OF_VLLM] + [(quantised, each) for each in SETTINGS_OF_FP8]
    theirs = forked(lambda: [_is_refused_by_vllm(folder, settings) for folder, settings in asked])
    ours = [_is_refused_by_us(folder, settings) for folder, settings in asked]
    assert [each for each, our, their in zip(asked, ours, theirs, strict=True) if our != their] == []
    assert set(theirs) == {True, False}


def _is_refused_by_vllm(folder: Path, settings: dict[str, Any]) -> bool:
    from vllm.engine.arg_utils import EngineArgs

    try:
        EngineArgs(model=str(folder), **settings).create_engine_config()
    except (ValueError, NotImplementedError):
        return True
    return False


def _is_refused_by_us(folder: Path, settings: dict[str, Any]) -> bool:
    facts = model_facts(json.loads((folder / "config.json").read_text()))
    ours = {OURS.get(name, name): value for name, value in settings.items()}
    speculative = ours.pop("speculative_config", None)
    if speculative is not None:
        ours["speculation"] = mtp(speculative["num_speculative_tokens"])
    return bool(ask(facts, vllm=(0, 32), device="cpu", **ours))
