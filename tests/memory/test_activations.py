"""The profile run's peak: against published starts, and against the sampler that vLLM really runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, MIB
from vllm_autofit.architecture import Attention, Dense, Experts, Layer, ModelFacts, Tower
from vllm_autofit.deployment import Deployment, Speculation
from vllm_autofit.memory.activations import (
    LOGIT_BYTES_HOST,
    activation_peak,
    compiling_bytes,
    encoder_bytes,
    expert_workspace_bytes,
    forward_bytes,
    host_peak_bytes,
    sampler_bytes,
)

HOPPER = (9, 0)


def dense(hidden: int, vocabulary: int, width: int, heads: int = 32, kv_heads: int = 8) -> ModelFacts:
    """A dense model of one layer: the peak is that of the widest, however many there are."""
    layer = Layer(mixer=Attention(heads, kv_heads, 128, 128), ffn=Dense(width))
    return ModelFacts("Qwen3ForCausalLM", "qwen3", hidden, vocabulary, (layer,))


def large(vllm: tuple[int, int], **changes: Any) -> Deployment:
    """A server on an H100, with vLLM's defaults there."""
    settings = {"max_num_seqs": 1024, "max_num_batched_tokens": 8192, "compute_capability": HOPPER, **changes}
    return Deployment(vllm=vllm, device_name="NVIDIA H100 80GB HBM3", **settings)


@pytest.mark.parametrize(
    ("vllm", "hidden", "vocabulary", "width", "published_gib"),
    [
        ((0, 11), 4096, 128256, 14336, 4.76),  # Llama-3.1-8B
        ((0, 11), 1024, 151936, 3072, 5.56),  # Qwen3-0.6B
        ((0, 16), 5120, 151936, 17408, 5.64),  # Qwen3-14B
        ((0, 17), 5120, 151936, 17408, 2.23),
        ((0, 18), 5120, 151936, 17408, 2.23),
    ],
)
def test_published_peaks_of_dense_models_on_an_h100(
    vllm: tuple[int, int], hidden: int, vocabulary: int, width: int, published_gib: float
) -> None:
    peak = activation_peak(dense(hidden, vocabulary, width), large(vllm))
    assert peak.bytes / GIB == pytest.approx(published_gib, rel=0.01)
    assert "sampler" in peak.why


def test_published_peak_where_the_forward_pass_is_the_larger() -> None:
    """Qwen2.5-7B with 8192 tokens on a 24 GiB device, version not printed: 1.09 GiB."""
    facts = dense(3584, 152064, 18944, heads=28, kv_heads=4)
    settings = Deployment(vllm=(0, 19), max_num_seqs=256, max_num_batched_tokens=8192)
    assert forward_bytes(facts, settings) / GIB == pytest.approx(1.09, rel=0.02)
    assert forward_bytes(facts, settings) > sampler_bytes(facts, settings)


@pytest.mark.parametrize(("more_tokens", "more_mib"), [(1024, 62), (3072, 185), (7168, 431)])
def test_published_growth_with_batched_tokens_on_the_second_runner(more_tokens: int, more_mib: int) -> None:
    """Qwen2-VL-2B on vLLM 0.28: 2610, 2672, 2795 and 3041 MiB at 1024, 2048, 4096 and 8192 tokens."""
    facts = dense(1536, 151936, 8960, heads=12, kv_heads=2)

    def at(tokens: int) -> int:
        return activation_peak(facts, Deployment(vllm=(0, 28), max_num_seqs=1, max_num_batched_tokens=tokens)).bytes

    assert (at(1024 + more_tokens) - at(1024)) / MIB == pytest.approx(more_mib, abs=1)


def test_the_second_runner_keeps_counters_that_vllm_counts_since_0_27() -> None:
    facts = dense(4096, 128256, 14336)
    grown = activation_peak(facts, large((0, 27))).bytes - activation_peak(facts, large((0, 26))).bytes
    assert grown == 1024 * 128256 * 4 + 1024 * 128256 // 8


def blackwell(**changes: Any) -> Deployment:
    """A server with vLLM's defaults on a 96 GiB Blackwell."""
    settings = {"vllm": (0, 27), "max_num_seqs": 1024, "max_num_batched_tokens": 8192, **changes}
    return Deployment(compute_capability=(12, 0), **settings)


def test_published_first_start_of_a_pipeline() -> None:
    """Qwen3-32B on vLLM 0.27.1, two stages, nothing in the compile cache: 3.03 GiB beside weights and KV cache."""
    facts, settings = dense(5120, 151936, 25600, heads=64), blackwell(pipeline_parallel=2)
    kernels = 0.13 * GIB
    taken = activation_peak(facts, settings).bytes + compiling_bytes(facts, settings) + kernels
    assert taken / GIB == pytest.approx(3.03, abs=0.02)


def test_compiling_holds_a_copy_of_the_embedding_which_0_27_to_0_30_count_twice_on_one_rank() -> None:
    facts = dense(5120, 151936, 3072)  # a forward pass smaller than the embedding
    copy = 151936 * 5120 * 2

    def above_the_forward_pass(**changes: Any) -> int:
        settings = blackwell(max_num_batched_tokens=64, max_num_seqs=1, **changes)
        return compiling_bytes(facts, settings) + forward_bytes(facts, settings)

    assert above_the_forward_pass(vllm=(0, 26)) == copy
    assert above_the_forward_pass(vllm=(0, 27)) == above_the_forward_pass(vllm=(0, 30)) == 2 * copy
    assert above_the_forward_pass(vllm=(0, 27), tensor_parallel=2) == copy // 2


@pytest.mark.parametrize("changes", [{"enforce_eager": True}, {"vllm": (0, 14)}, {"device": "cpu"}])
def test_nothing_is_compiled_nothing_is_copied(changes: dict[str, Any]) -> None:
    assert compiling_bytes(dense(5120, 151936, 3072), blackwell(**changes)) == 0


def test_compiling_hides_behind_a_larger_forward_pass() -> None:
    """Qwen3-32B on two ranks: 8192 tokens take more than half of the embedding."""
    assert compiling_bytes(dense(5120, 151936, 25600, heads=64), blackwell(tensor_parallel=2)) == 0


def test_speculation_adds_logits_to_the_first_runner() -> None:
    facts = dense(4096, 128256, 14336)
    plain, drafting = large((0, 16)), large((0, 16), speculation=Speculation("ngram", 4))
    assert activation_peak(facts, drafting).bytes - activation_peak(facts, plain).bytes == 4 * 1024 * 128256


def test_a_pooling_model_samples_nothing() -> None:
    facts = ModelFacts("BertModel", "bert", 1024, 250000, dense(1024, 250000, 4096).layers, runner="pooling")
    generating = dense(1024, 250000, 4096)
    assert activation_peak(facts, large((0, 16))).bytes < activation_peak(generating, large((0, 16))).bytes / 10


def test_tensor_parallelism_narrows_the_layers_but_not_the_logits() -> None:
    facts = dense(5120, 151936, 25600, heads=64)
    one, two = large((0, 16)), large((0, 16), tensor_parallel=2)
    assert forward_bytes(facts, two) < forward_bytes(facts, one)
    assert sampler_bytes(facts, two) == sampler_bytes(facts, one)


def test_experts_take_a_workspace_that_is_kept_since_0_14() -> None:
    layer = Layer(mixer=Attention(32, 4, 128, 128), ffn=Experts(count=128, per_token=8, width=768))
    facts = ModelFacts("Qwen3MoeForCausalLM", "qwen3_moe", 2048, 151936, (layer,))
    kept = large((0, 16))
    workspace = expert_workspace_bytes(facts, kept)
    assert workspace == 8192 * 8 * (2048 + 2048) * 2
    assert activation_peak(facts, kept).bytes >= sampler_bytes(facts, kept) + workspace
    spread = large((0, 16), tensor_parallel=2, expert_parallel=True)
    assert expert_workspace_bytes(facts, spread) == workspace


def tower(modality: Any = "image", tokens: int | None = 16384) -> Tower:
    """Of the size of Qwen3-VL's."""
    return Tower(modality, 27, 1152, 4304, 16, 2048, patch_size=16, merge=2, tokens_per_item=tokens)


def test_the_encoder_runs_as_many_items_as_its_budget_holds() -> None:
    facts = ModelFacts("A", "a", 2048, 151936, (), towers=(tower(),))
    one = encoder_bytes(facts, large((0, 16), max_model_len=262144))
    four = encoder_bytes(facts, large((0, 16), max_model_len=262144, max_num_batched_tokens=65536))
    assert one[1] == 16384 * 2048 * 2
    assert four == (4 * one[0], 4 * one[1])


@pytest.mark.parametrize(
    "changes", [{"text_only": True}, {"items_per_prompt": {"image": 0}}], ids=["text only", "no images"]
)
def test_an_encoder_that_gets_nothing_takes_nothing(changes: dict[str, Any]) -> None:
    facts = ModelFacts("A", "a", 2048, 151936, (), towers=(tower(),))
    assert encoder_bytes(facts, large((0, 16), **changes)) == (0, 0)


def test_an_encoder_whose_items_have_no_known_size_is_left_out() -> None:
    facts = ModelFacts("A", "a", 2048, 151936, (), towers=(tower(tokens=None),))
    assert encoder_bytes(facts, large((0, 16))) == (0, 0)


def test_on_the_cpu_backend_the_peak_is_not_taken_off() -> None:
    facts = dense(1024, 151936, 3072)
    settings = Deployment(device="cpu", max_num_seqs=128, max_num_batched_tokens=2048)
    assert activation_peak(facts, settings).bytes == 0
    assert host_peak_bytes(facts, settings) >= 128 * 151936 * LOGIT_BYTES_HOST


versions = st.tuples(st.just(0), st.integers(9, 33))


@given(versions, st.integers(1, 2048), st.integers(1, 65536), st.sampled_from([1, 2, 8]))
def test_more_sequences_or_tokens_never_take_less(vllm: tuple[int, int], seqs: int, tokens: int, ranks: int) -> None:
    facts = dense(4096, 128256, 14336)

    def peak(seqs: int, tokens: int) -> int:
        settings = Deployment(vllm=vllm, max_num_seqs=seqs, max_num_batched_tokens=tokens, tensor_parallel=ranks)
        return activation_peak(facts, settings).bytes

    assert 0 < peak(seqs, tokens) <= min(peak(seqs + 1, tokens), peak(seqs, tokens + 1))


@pytest.mark.vllm
def test_bytes_per_logit_of_the_torch_sampler_are_those_that_are_alive(forked: Callable[..., Any]) -> None:
    assert forked(_alive_per_logit) == pytest.approx(LOGIT_BYTES_HOST, rel=0.01)


def _alive_per_logit() -> float:
    """The most bytes alive at once, for each logit, while vLLM's own function masks by top-k and top-p."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    class Alive(TorchDispatchMode):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.sizes: dict[int, int] = {}
            self.most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
                if storage is not None and storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
            self.most = max(self.most, sum(self.sizes.values()))
            return result

    rows, vocabulary = 16, 32000
    alive = Alive()
    with alive:
        computed = torch.zeros(rows, vocabulary, dtype=torch.bfloat16)
        logits = computed.to(torch.float32)
        top_k, top_p = torch.full((rows,), vocabulary - 1), torch.full((rows,), 0.9)
        apply_top_k_top_p_pytorch(logits, top_k, top_p)
    return alive.most / (rows * vocabulary)
