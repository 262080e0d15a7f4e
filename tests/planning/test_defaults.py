"""Every value that vLLM would fill in: by vLLM's own rules, and against vLLM's own code."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import GIB, cuda, host, request
from tests.conftest import Forked
from vllm_autofit.architecture import ModelFacts, Tower
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.planning.defaults import Usage, Version, deployment_of, parsed_version
from vllm_autofit.values import AUTO_CONTEXT, DeviceFacts, FieldValue

FACTS = ModelFacts("LlamaForCausalLM", "llama", hidden_size=64, vocabulary=1000, layers=(), context_tokens=32768)


def deployed(
    device: DeviceFacts | None = None,
    fields: dict[str, FieldValue] | None = None,
    facts: ModelFacts = FACTS,
    version: Version = (0, 32),
    usage: Usage = "server",
    **knobs: object,
) -> Deployment:
    return deployment_of(request(fields, knobs=knobs), facts, device or cuda(80), version=version, usage=usage)


@pytest.mark.parametrize(
    ("device", "usage", "version", "batched", "sequences"),
    [
        (cuda(24), "server", (0, 32), 2048, 256),
        (cuda(24), "llm", (0, 32), 8192, 256),
        (cuda(80), "server", (0, 11), 8192, 1024),
        (cuda(80), "llm", (0, 32), 16384, 1024),
        (replace(cuda(80), name="NVIDIA A100-SXM4-80GB"), "server", (0, 32), 2048, 256),
        (cuda(180), "server", (0, 27), 8192, 1024),
        (cuda(180), "server", (0, 28), 16384, 1024),
        (replace(cuda(119), compute_capability=(12, 1)), "server", (0, 32), 8192, 1024),
        (replace(cuda(119), compute_capability=(12, 1)), "server", (0, 33), 2048, 256),
        (host(), "server", (0, 32), 2048, 128),
        (host(), "llm", (0, 32), 4096, 256),
        (cuda(80), "engine", (0, 32), 2048, 128),
    ],
)
def test_batches_by_device_launch_and_version(
    device: DeviceFacts, usage: Usage, version: Version, batched: int, sequences: int
) -> None:
    found = deployed(device, usage=usage, version=version)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (batched, sequences)


@pytest.mark.parametrize(
    ("version", "knobs", "found"),
    [
        ((0, 12), {}, 4 * GIB),
        ((0, 13), {}, 16 * GIB),
        ((0, 19), {"VLLM_CPU_KVCACHE_SPACE": "1"}, GIB),
        ((0, 19), {"kv_cache_memory_bytes": GIB}, 16 * GIB),
        ((0, 20), {"kv_cache_memory_bytes": GIB}, GIB),
        ((0, 32), {"kv_cache_memory_bytes": GIB, "VLLM_CPU_KVCACHE_SPACE": "4"}, 4 * GIB),
        ((0, 20), {}, None),
    ],
)
def test_the_cpu_backends_kv_cache_had_a_size_of_its_own(
    version: Version, knobs: dict[str, Any], found: int | None
) -> None:
    assert deployed(host(total_gib=32), version=version, **knobs).kv_cache_memory_bytes == found


def test_before_0_20_a_worker_of_the_cpu_backend_takes_half_of_one_node() -> None:
    assert deployed(host(total_gib=32, memory_nodes=2), version=(0, 19)).kv_cache_memory_bytes == 8 * GIB


@pytest.mark.vllm
def test_batches_are_those_of_the_installed_vllm(forked: Forked) -> None:
    devices = [
        replace(cuda(total_gib), name=name)
        for total_gib in (8, 24, 69.9, 70, 80, 141, 160, 268)
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB")
    ]
    usages: dict[str, Usage] = {"LLM_CLASS": "llm", "OPENAI_API_SERVER": "server"}

    def ask() -> list[dict[str, tuple[int, int]]]:
        import vllm.engine.arg_utils as arg_utils

        module: Any = arg_utils
        answers = []
        for device in devices:
            module.current_platform = SimpleNamespace(
                get_device_total_memory=lambda device=device: device.total_bytes,
                get_device_name=lambda device=device: device.name,
                is_tpu=lambda: False,
                is_cpu=lambda: False,
            )
            tokens, sequences = arg_utils.EngineArgs.get_batch_defaults(1)
            answers.append({context.name: (tokens[context], sequences[context]) for context in tokens if context})
        return answers

    for device, theirs in zip(devices, forked(ask), strict=True):
        for context, usage in usages.items():
            ours = deployed(device, usage=usage)
            assert (ours.max_num_batched_tokens, ours.max_num_seqs) == theirs[context], device


def test_ranks_share_the_cpu_backends_batches() -> None:
    found = deployed(host(), tensor_parallel_size=2)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (4096, 256)


def test_a_short_context_bounds_the_batch_and_the_batch_the_sequences() -> None:
    found = deployed(fields={"max_model_len": 4, "max_num_seqs": 10})
    assert found.max_num_batched_tokens == 40
    found = deployed(max_num_batched_tokens=100)
    assert (found.max_num_batched_tokens, found.max_num_seqs) == (100, 100)


def test_without_chunked_prefill_a_whole_prompt_is_one_batch() -> None:
    assert deployed(enable_chunked_prefill=False).max_num_batched_tokens == 32768


@pytest.mark.parametrize(("asked", "context"), [(None, 32768), (AUTO_CONTEXT, 32768), (1000, 1000)])
def test_the_context_is_the_users_or_the_models(asked: int | None, context: int) -> None:
    assert deployed(fields={"max_model_len": asked}).max_model_len == context


@pytest.mark.parametrize(
    ("asked", "checkpoint", "capability", "dtype"),
    [
        ("auto", "bfloat16", (9, 0), "bfloat16"),
        ("auto", "bfloat16", (7, 5), "float16"),
        ("auto", "float32", (9, 0), "bfloat16"),
        ("half", "bfloat16", (9, 0), "float16"),
        ("float32", "bfloat16", (9, 0), "float32"),
        ("auto", "bfloat16", None, "bfloat16"),
    ],
)
def test_the_dtype_that_vllm_settles_on(
    asked: str, checkpoint: str, capability: tuple[int, int] | None, dtype: str
) -> None:
    device = replace(cuda(), compute_capability=capability)
    assert deployed(device, facts=replace(FACTS, dtype=checkpoint), dtype=asked).dtype == dtype


def test_what_the_user_set_is_kept() -> None:
    found = deployed(
        fields={"enforce_eager": True, "kv_cache_dtype": "fp8", "max_num_seqs": 7},
        tensor_parallel_size=2,
        pipeline_parallel_size=3,
        enable_lora=True,
        max_loras=4,
        max_lora_rank=64,
        cpu_offload_gb=1.5,
        kv_cache_memory_bytes=GIB,
        compilation_config={"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2]},
        speculative_config={"method": "mtp", "num_speculative_tokens": 3},
        limit_mm_per_prompt={"image": 2, "video": {"count": 0}},
        VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS="0",
        VLLM_USE_V2_MODEL_RUNNER="1",
    )
    assert (found.enforce_eager, found.kv_cache_dtype, found.max_num_seqs) == (True, "fp8", 7)
    assert (found.tensor_parallel, found.pipeline_parallel, found.world) == (2, 3, 6)
    assert (found.lora_adapters, found.lora_rank) == (4, 64)
    assert (found.cpu_offload_bytes, found.kv_cache_memory_bytes) == (3 * GIB // 2, GIB)
    assert (found.graph_mode, found.graph_sizes) == ("full_decode_only", (1, 2))
    assert found.speculation == Speculation("mtp", 3)
    assert found.items_per_prompt == {"image": 2, "video": 0}
    assert (found.estimate_graphs, found.second_runner) == (False, True)


@pytest.mark.parametrize(
    ("asked", "method"),
    [
        ({"model": "some/EAGLE-LLaMA3"}, "eagle"),
        ({"model": "some/EAGLE3-LLaMA3.1"}, "eagle3"),
        ({"model": "some/Llama-1B"}, "draft_model"),
        ({"model": "some/EAGLE3-LLaMA3.1", "method": "draft_model"}, "draft_model"),
        ({"model": "[ngram]"}, "ngram"),
        ({"method": "deepseek_mtp"}, "mtp"),
    ],
)
def test_a_way_of_drafting_is_told_by_the_drafts_name(asked: dict[str, object], method: str) -> None:
    found = deployed(speculative_config={"num_speculative_tokens": 2, **asked}).speculation
    assert found is not None
    assert found.method == method


@pytest.mark.parametrize(
    ("level", "mode"), [(0, "none"), ("O0", "none"), (1, "piecewise"), ("1", "piecewise"), ("O2", None), (3, None)]
)
def test_the_level_of_optimisation_says_what_is_captured(level: int | str, mode: str | None) -> None:
    assert deployed(optimization_level=level).graph_mode == mode
    asked = deployed(optimization_level=level, compilation_config={"cudagraph_mode": "FULL"})
    assert asked.graph_mode == "full"


@pytest.mark.parametrize("largest", [99_999_999_999, 2**62])
def test_no_graph_is_larger_than_a_batch(largest: int) -> None:
    sizes = deployed(max_cudagraph_capture_size=largest, max_num_batched_tokens=64).graph_sizes
    assert sizes == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    endless = deployed(max_cudagraph_capture_size=largest, max_num_batched_tokens=largest).graph_sizes
    assert endless is not None
    assert endless[-1] == 2**20


@pytest.mark.parametrize(("asked", "found"), [(1e308, 2**50), ("inf", 2**50), ("nan", 0), (-1, 0), ("much", 0)])
def test_sizes_that_no_machine_has(asked: object, found: int) -> None:
    made = deployed(host(), cpu_offload_gb=asked, kv_offloading_size=asked, VLLM_CPU_KVCACHE_SPACE=asked)
    assert (made.cpu_offload_bytes, made.kv_offload_bytes) == (found, found)
    assert made.kv_cache_memory_bytes == (found or None)


def test_room_for_what_api_servers_decode_is_kept_on_devices_for_models_with_images() -> None:
    seeing = replace(FACTS, towers=(Tower("image", 2, 64, 128, 4, 64),))
    assert deployed(facts=seeing, mm_ipc_gpu_memory_gb=1.5).frontend_reserve_bytes == 3 * GIB // 2
    assert deployed(host(), facts=seeing, mm_ipc_gpu_memory_gb=1.5).frontend_reserve_bytes == 0
    assert deployed(mm_ipc_gpu_memory_gb=1.5).frontend_reserve_bytes == 0


def test_the_cpu_backends_variable_is_nothing_to_a_gpu() -> None:
    assert deployed(cuda(), VLLM_CPU_KVCACHE_SPACE="4").kv_cache_memory_bytes is None


def test_a_deployment_can_be_remembered() -> None:
    assert len({deployed(), deployed(), deployed(limit_mm_per_prompt={"image": 1})}) == 2


@pytest.mark.parametrize(
    ("text", "version"),
    [("0.32.0+cpu", (0, 32)), ("v0.17.1rc1.dev88", (0, 17)), ("1.0", (1, 0)), ("unknown", None), ("", None)],
)
def test_versions_as_vllm_names_itself(text: str, version: Version | None) -> None:
    assert parsed_version(text) == version
