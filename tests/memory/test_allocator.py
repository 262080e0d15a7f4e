"""Blocks of torch's CUDA allocator: by hand, and as published starts printed them."""

from __future__ import annotations

import pytest

from vllm_autofit.architecture import Attention, Dense, Layer, ModelFacts, Tensor
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.allocator import allocated_bytes
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.weights import rank_weights
from vllm_autofit.units import MIB


@pytest.mark.parametrize(
    ("requests", "allocated"),
    [
        ([], 0),
        ([0], 0),
        ([1], 512),
        ([512, 513], 1536),
        ([MIB], MIB),
        ([int(31.5 * MIB)], 32 * MIB),  # half a MiB would remain: not split
        ([int(24.5 * MIB)], int(24.5 * MIB)),  # 1.5 MiB of the 26 remain
        ([25 * MIB], 26 * MIB),  # exactly 1 MiB is not enough to split
        ([10 * MIB], 10 * MIB),
        ([int(9.5 * MIB)] * 2, 20 * MIB),  # both of one segment, whose last MiB nobody else gets
        ([6 * MIB] * 3, 18 * MIB),  # two in one segment, the third in the next
        ([int(24.5 * MIB), int(1.25 * MIB)], 26 * MIB),  # the second takes what was split off the first
        ([int(1.25 * MIB), int(24.5 * MIB)], int(25.75 * MIB)),
        ([14 * MIB, 4 * MIB, 12 * MIB], 30 * MIB),
    ],
)
def test_blocks(requests: list[int], allocated: int) -> None:
    assert allocated_bytes(requests) == allocated


def weights(facts: ModelFacts, **deployment: int) -> float:
    """GiB, to four decimals as vLLM prints them."""
    launch = Deployment(**deployment)  # type: ignore[arg-type]
    return rank_weights(facts, tensors_from_facts(facts), launch, exact=True).bytes / 2**30


def dense(
    layers: int, hidden: int, width: int, heads: tuple[int, int, int], vocabulary: int, **more: object
) -> ModelFacts:
    count, kv_heads, size = heads
    bias = bool(more.pop("bias", False))
    layer = Layer(Attention(count, kv_heads, size, size, bias=bias, query_key_norm=not bias), Dense(width))
    raw = {"max_position_embeddings": more.pop("positions")}
    return ModelFacts("A", "a", hidden, vocabulary, (layer,) * layers, rotary_size=size, raw=raw, **more)  # type: ignore[arg-type]


QWEN2_7B = dense(28, 3584, 18944, (28, 4, 128), 152064, positions=32768, bias=True)
QWEN3_32B = dense(64, 5120, 25600, (64, 8, 128), 151936, positions=40960)


@pytest.mark.parametrize(
    ("facts", "ranks", "printed", "digits"),
    [(QWEN2_7B, 1, 14.2487, 4), (QWEN2_7B, 2, 7.1217, 3), (QWEN3_32B, 1, 61.03, 2), (QWEN3_32B, 2, 30.59, 2)],
)
def test_as_published_starts_printed(facts: ModelFacts, ranks: int, printed: float, digits: int) -> None:
    assert weights(facts, tensor_parallel=ranks) == pytest.approx(printed, abs=0.6 * 10**-digits)


def test_only_cuda_has_this_allocator() -> None:
    plain = rank_weights(QWEN2_7B, tensors_from_facts(QWEN2_7B), Deployment(device="cpu"), exact=True).bytes
    padded = rank_weights(QWEN2_7B, tensors_from_facts(QWEN2_7B), Deployment(), exact=True).bytes
    assert padded - plain == pytest.approx(57 * MIB, abs=0.1 * MIB)  # 2 a layer, and half of one for embedding and head


def padding(*names: str, shape: tuple[int, int] = (768, 1024)) -> int:
    """Of matrices of 1.5 MiB each, beside what the attention's scales take."""
    facts = ModelFacts("A", "a", 1024, 1000, (Layer(Attention(8, 8, 128, 128), Dense(768)),))
    tensors = [Tensor(name, shape, "BF16", 2 * shape[0] * shape[1]) for name in names]
    return sum(
        sign * rank_weights(facts, held, Deployment(), exact=True).bytes for sign, held in ((1, tensors), (-1, []))
    ) - sum(tensor.bytes for tensor in tensors)


def test_parts_of_one_parameter_are_one_block() -> None:
    """17 experts' gates and ups are one tensor of 51 MiB, their downs another of 25.5."""
    experts = [
        f"model.layers.0.mlp.experts.{index}.{name}_proj.weight" for index in range(17) for name in ("gate", "up")
    ]
    assert padding(*experts) == MIB
    assert padding(*[name for name in experts if "gate" in name]) == MIB // 2
    joint = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    assert padding(*joint, shape=(3584, 1024)) == MIB  # 7 MiB each: 21 together
    assert padding(*joint[:2], "model.layers.0.self_attn.o_proj.weight", shape=(3584, 1024)) == 0  # 14, and 7 of 20
