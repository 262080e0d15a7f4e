"""CUDA graphs: sizes as vLLM's own, pieces, and from which version they cost KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vllm_autofit.architecture import Attention, Dense, Layer, ModelFacts
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.memory.cuda_graphs import (
    capture_sizes,
    captured_pieces,
    cuda_graph_bytes,
    graph_mode,
    graphs_come_off,
)


def model(layers: int = 32, **changes: Any) -> ModelFacts:
    """A dense model."""
    return ModelFacts("A", "a", 4096, 128256, (Layer(Attention(32, 8, 128, 128), Dense(14336)),) * layers, **changes)


@pytest.mark.parametrize("changes", [{"enforce_eager": True}, {"device": "cpu"}, {"graph_mode": "none"}])
def test_nothing_is_captured(changes: dict[str, Any]) -> None:
    assert cuda_graph_bytes(model(), Deployment(**changes)).bytes == 0


def test_a_rank_captures_a_piece_per_layer_and_size_and_each_decode_size_whole() -> None:
    settings = Deployment(max_num_seqs=256, max_num_batched_tokens=2048)
    sizes = capture_sizes(settings)
    assert len(sizes) == 51
    assert captured_pieces(model(32), settings) == 51 * 33 + 35


def test_modes_take_only_their_own_graphs() -> None:
    def pieces(mode: Any) -> int:
        return captured_pieces(model(32), Deployment(max_num_seqs=8, graph_mode=mode))

    assert pieces("full_and_piecewise") == pieces("piecewise") + pieces("full_decode_only")
    assert pieces("full") == len(capture_sizes(Deployment(max_num_seqs=8)))


def test_encoder_decoders_capture_decode_batches_only_and_pooling_models_pieces() -> None:
    assert graph_mode(model(encoder_layers=(Layer(),)), Deployment()) == "full_decode_only"
    assert graph_mode(model(runner="pooling"), Deployment()) == "piecewise"


def test_one_size_is_one_size() -> None:
    assert captured_pieces(model(10), Deployment(graph_sizes=(1,))) == 11 + 1


def test_a_pipeline_stage_captures_its_own_layers() -> None:
    assert captured_pieces(model(32), Deployment(pipeline_parallel=4)) < captured_pieces(model(32), Deployment()) / 3


@pytest.mark.parametrize(("vllm", "expected"), [((0, 19), False), ((0, 20), True), ((0, 33), True)])
def test_the_estimate_is_taken_off_since_0_20(vllm: tuple[int, int], expected: bool) -> None:
    assert graphs_come_off(model(2), Deployment(vllm=vllm)) is expected


def test_where_small_batches_matter_most_each_has_its_graph() -> None:
    sizes = capture_sizes(Deployment(max_num_seqs=32, interactive=True))
    assert sizes == (*range(1, 33), 40, 48, 56, 64)


def test_drafted_tokens_raise_the_largest_size_since_0_13() -> None:
    def largest(vllm: tuple[int, int]) -> int:
        return capture_sizes(Deployment(vllm=vllm, max_num_seqs=16, speculation=Speculation("eagle", 3)))[-1]

    assert (largest((0, 12)), largest((0, 16))) == (32, 128)


def test_older_versions_space_large_sizes_by_eight() -> None:
    assert len(capture_sizes(Deployment(vllm=(0, 11), max_num_seqs=256))) == 3 + 64


@pytest.mark.parametrize(
    ("vllm", "layers", "changes", "published_gib"),
    [
        ((0, 13), 48, {"max_num_seqs": 1024}, 0.66),  # Qwen3-VL-30B
        ((0, 15), 32, {}, 0.55),  # Llama 8B
        ((0, 19), 80, {"tensor_parallel": 4}, 2.62),  # Qwen2.5-72B
        (
            (0, 19),
            27,
            {"tensor_parallel": 8, "graph_sizes": (2, 1)},
            0.47,
        ),  # DeepSeek-Coder-V2-Lite, version not printed
    ],
)
def test_published_graphs(vllm: tuple[int, int], layers: int, changes: dict[str, Any], published_gib: float) -> None:
    settings = Deployment(vllm=vllm, **{"max_num_batched_tokens": 8192, **changes})
    assert cuda_graph_bytes(model(layers), settings).bytes / 2**30 == pytest.approx(published_gib, rel=0.3)


SETTINGS = [
    (seqs, tokens, drafted)
    for seqs, tokens in [(1, 2048), (5, 2048), (16, 2048), (256, 8192), (1024, 8192), (300, 100)]
    for drafted in (0, 3)
]
"""Sequences, batched tokens, drafted tokens."""


@pytest.mark.vllm
def test_sizes_are_those_of_vllm(forked: Callable[..., Any]) -> None:
    ours = []
    for seqs, tokens, drafted in SETTINGS:
        speculation = Speculation("eagle", drafted) if drafted else None
        launch = Deployment(max_num_seqs=seqs, max_num_batched_tokens=tokens, speculation=speculation)
        ours.append([list(capture_sizes(each)) for each in (launch, replace(launch, interactive=True))])
    assert ours == forked(
        lambda: [
            [_sizes_of_vllm(seqs, tokens, 1 + drafted, mode) for mode in ("balanced", "interactivity")]
            for seqs, tokens, drafted in SETTINGS
        ]
    )


def _sizes_of_vllm(seqs: int, tokens: int, decode_tokens: int, mode: str) -> list[int]:
    """What vLLM's own function makes of these settings, on a device that captures graphs."""
    from types import SimpleNamespace

    from vllm.config import CUDAGraphMode, VllmConfig

    compilation = SimpleNamespace(
        cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE,
        max_cudagraph_capture_size=None,
        cudagraph_capture_sizes=None,
        pass_config=SimpleNamespace(enable_sp=False),
        post_init_cudagraph_sizes=lambda: None,
    )
    config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=False),
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(max_num_seqs=seqs, max_num_batched_tokens=tokens),
        parallel_config=SimpleNamespace(tensor_parallel_size=1, use_sequence_parallel_moe=False),
        speculative_config=None,
        uniform_decode_query_len=decode_tokens,
        performance_mode=mode,
        lora_config=None,
    )
    VllmConfig._set_cudagraph_sizes(config)
    return list(compilation.cudagraph_capture_sizes)


@pytest.mark.parametrize(
    ("name", "vllm", "asked", "expected"),
    [
        ("Qwen3ForCausalLM", (0, 19), None, False),
        ("Qwen3ForCausalLM", (0, 19), True, True),  # the first runner, and its user turned it on
        ("Qwen3ForCausalLM", (0, 20), None, True),
        ("Qwen3ForCausalLM", (0, 20), False, False),
        ("Qwen3ForCausalLM", (0, 27), None, False),  # the second runner says 0
        ("Qwen3ForCausalLM", (0, 27), True, False),
        ("Qwen3ForCausalLM", (0, 29), None, True),
    ],
)
def test_the_second_runner_has_an_estimate_to_take_off_since_0_29(
    name: str, vllm: tuple[int, int], asked: bool | None, expected: bool
) -> None:
    facts = ModelFacts(name, "a", 4096, 128256, model().layers)
    assert graphs_come_off(facts, Deployment(vllm=vllm, estimate_graphs=asked)) is expected
