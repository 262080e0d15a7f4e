"""Sizes of FP4 experts as kernels want them, and as published starts of gpt-oss printed them."""

from __future__ import annotations

import pytest

from vllm_autofit.architecture import Attention, Experts, Layer, ModelFacts, Quantization, Tensor
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.fp4_experts import Kernel, loaded_share, mxfp4_kernel, nvfp4_kernel
from vllm_autofit.memory.sharding import cut, role
from vllm_autofit.memory.weights import rank_weights

HOPPER = Deployment(compute_capability=(9, 0))
EARLIER_HOPPER = Deployment(vllm=(0, 24), compute_capability=(9, 0))


def gpt_oss(layers: int, experts: int) -> ModelFacts:
    attention = Attention(64, 8, 64, 64, bias=True, output_bias=True, sinks=True)
    layer = Layer(attention, Experts(experts, 4, 2880, bias=True, router_bias=True))
    scheme = Quantization("mxfp4", 4, 32, scale_bits=8, experts_only=True)
    rope = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
    raw = {"max_position_embeddings": 131072, "rope_scaling": rope}
    return ModelFacts(
        "GptOssForCausalLM", "gpt_oss", 2880, 201088, (layer,) * layers, rotary_size=64, quantization=scheme, raw=raw
    )


@pytest.mark.parametrize(
    ("facts", "version", "printed"),
    [
        (gpt_oss(24, 32), (0, 11), 13.47),
        (gpt_oss(36, 128), (0, 11), 64.38),
        (gpt_oss(36, 128), (0, 14), 64.38),
        (gpt_oss(36, 128), (0, 10), 65.9651),
    ],
)
def test_as_published_starts_on_hopper_printed(facts: ModelFacts, version: tuple[int, int], printed: float) -> None:
    launch = Deployment(vllm=version, compute_capability=(9, 0))
    found = rank_weights(facts, tensors_from_facts(facts), launch, exact=True).bytes / 2**30
    assert found == pytest.approx(printed, abs=0.025)


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        (Deployment(device="cpu"), Kernel(32, 32)),
        (Deployment(device="rocm"), Kernel(256, 256)),
        (Deployment(), Kernel(128, 256)),
        (Deployment(compute_capability=(8, 0)), Kernel(128, 256)),
        (Deployment(compute_capability=(12, 0)), Kernel(128, 256)),
        (Deployment(vllm=(0, 24), compute_capability=(10, 0)), Kernel(256, 256, wide_bias=True)),
        (Deployment(compute_capability=(10, 3)), Kernel(128, 256, wide_bias=True)),
        (Deployment(compute_capability=(9, 0)), Kernel(64, 1, wide_bias=True, swizzled_scales=True)),
    ],
)
def test_the_kernel_follows_from_the_device(launch: Deployment, expected: Kernel) -> None:
    assert mxfp4_kernel(launch) == expected


@pytest.mark.parametrize(
    ("name", "launch", "share"),
    [
        ("gate_up_proj_blocks", Deployment(), 2944 / 2880 * 3072 / 2880),
        ("gate_up_proj_blocks", Deployment(tensor_parallel=4), 768 / 720 * 3072 / 2880),
        ("gate_up_proj_blocks", Deployment(tensor_parallel=4, expert_parallel=True), 2944 / 2880 * 3072 / 2880),
        ("gate_up_proj_bias", Deployment(), 2944 / 2880),
        ("down_proj_bias", Deployment(), 3072 / 2880),
        ("down_proj_bias", HOPPER, 2.0),
        ("down_proj_blocks", HOPPER, 1.0),
        ("down_proj_scales", HOPPER, 3072 / 2880),
        ("gate_up_proj_scales", EARLIER_HOPPER, 5888 / 5760 + 1),
    ],
)
def test_what_is_loaded_of_an_expert(name: str, launch: Deployment, share: float) -> None:
    facts = gpt_oss(1, 32)
    before, _number, between, after = cut(f"model.layers.0.mlp.experts.{name}")
    one = Tensor(f"model.layers.0.mlp.experts.{name}", (32, 5760, 90), "U8", 32 * 5760 * 90)
    what = role(before, between, after, 3)
    assert loaded_share(one, what, facts.layers[0], facts, launch) == pytest.approx(share)


def test_other_tensors_stay_as_they_are() -> None:
    facts = gpt_oss(1, 32)
    one = Tensor("model.layers.0.self_attn.o_proj.weight", (2880, 4096), "BF16", 2880 * 4096 * 2)
    what = role("model.layers", "self_attn.o_proj.weight", "", 2)
    assert loaded_share(one, what, facts.layers[0], facts, Deployment()) == 1


@pytest.mark.parametrize(
    ("gated", "launch", "expected"),
    [
        (False, Deployment(), Kernel(128, 1)),
        (True, Deployment(compute_capability=(12, 0)), Kernel(64, 1)),
        (True, Deployment(compute_capability=(10, 0)), Kernel(64, 256)),
    ],
)
def test_nvfp4_kernels(gated: bool, launch: Deployment, expected: Kernel) -> None:
    assert nvfp4_kernel(gated, launch) == expected


@pytest.mark.parametrize(
    ("dtype", "ranks", "share"),
    [("U8", 1, 1920 / 1856), ("U8", 2, 1024 / 928), ("F8_E4M3", 2, 1024 / 928), ("BF16", 2, 1)],
)
def test_nvfp4_experts_are_filled_up(dtype: str, ranks: int, share: float) -> None:
    layer = Layer(None, Experts(128, 6, 1856, gated=False))
    scheme = Quantization("modelopt_fp4", 4, 16, scale_bits=8)
    facts = ModelFacts("NemotronHForCausalLM", "nemotron_h", 2688, 131072, (layer,), quantization=scheme)
    one = Tensor("backbone.layers.0.mixer.experts.0.up_proj.weight", (1856, 1344), dtype, 1856 * 1344)
    what = role("backbone.layers", "mixer.experts", "up_proj.weight", 2)
    assert loaded_share(one, what, layer, facts, Deployment(tensor_parallel=ranks)) == pytest.approx(share)
