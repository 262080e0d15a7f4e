"""Bytes of one quantised matrix, counted by hand from the formats' documentation."""

from __future__ import annotations

import pytest

from vllm_autofit.architecture import Quantization
from vllm_autofit.memory.checkpoint_storage import Part, stored

ROWS, COLUMNS = 512, 1280
"""Outputs and inputs; 655,360 weights."""


def parts(scheme: Quantization | None, dtype: str = "BF16") -> dict[str, tuple[tuple[int, ...], str, int]]:
    return {part.suffix: (part.shape, part.dtype, part.bytes) for part in stored(ROWS, COLUMNS, scheme, dtype)}


@pytest.mark.parametrize("scheme", [None, Quantization("none"), Quantization("compressed-tensors", weight_bits=16)])
def test_a_matrix_without_quantisation_is_stored_as_it_is(scheme: Quantization | None) -> None:
    assert parts(scheme, "F32") == {"weight": ((512, 1280), "F32", 655_360 * 4)}


def test_awq_packs_outputs_eight_to_a_word() -> None:
    assert parts(Quantization("awq", weight_bits=4, group_size=128, zero_points=True), "F16") == {
        "qweight": ((1280, 64), "I32", 327_680),
        "qzeros": ((10, 64), "I32", 2_560),
        "scales": ((10, 512), "F16", 10_240),
    }


def test_gptq_packs_inputs_and_keeps_the_order_of_groups() -> None:
    assert parts(Quantization("gptq", weight_bits=4, group_size=128), "F16") == {
        "qweight": ((160, 512), "I32", 327_680),
        "qzeros": ((10, 64), "I32", 2_560),
        "scales": ((10, 512), "F16", 10_240),
        "g_idx": ((1280,), "I32", 5_120),
    }


def test_gptq_with_one_group_for_all_inputs() -> None:
    found = parts(Quantization("gptq", weight_bits=8, group_size=-1), "F16")
    assert found["qweight"] == ((320, 512), "I32", 655_360)
    assert found["qzeros"] == ((1, 128), "I32", 512)
    assert found["scales"] == ((1, 512), "F16", 1_024)


def test_three_bits_fill_words_across_values() -> None:
    assert parts(Quantization("gptq", weight_bits=3, group_size=128))["qweight"] == ((120, 512), "I32", 245_760)


def test_auto_round_stores_no_order_of_groups() -> None:
    assert "g_idx" not in parts(Quantization("auto-round", weight_bits=4, group_size=128))


def test_fp8_with_one_scale() -> None:
    assert parts(Quantization("modelopt", weight_bits=8)) == {
        "weight": ((512, 1280), "F8_E4M3", 655_360),
        "weight_scale": ((1,), "F32", 4),
        "input_scale": ((1,), "F32", 4),
    }


def test_fp8_with_a_scale_per_output_channel() -> None:
    assert parts(Quantization("compressed-tensors", weight_bits=8, group_size=-1)) == {
        "weight": ((512, 1280), "F8_E4M3", 655_360),
        "weight_scale": ((512, 1), "BF16", 1_024),
    }


def test_fp8_in_blocks_keeps_a_scale_for_a_block_that_is_cut_off() -> None:
    scheme = Quantization("fp8", weight_bits=8, block=(128, 128))
    assert stored(576, 7168, scheme, "BF16")[1] == Part("weight_scale_inv", (5, 56), "F32")


def test_packed_integers_of_compressed_tensors() -> None:
    assert parts(Quantization("compressed-tensors", weight_bits=4, group_size=128)) == {
        "weight_packed": ((512, 160), "I32", 327_680),
        "weight_scale": ((512, 10), "BF16", 10_240),
        "weight_shape": ((2,), "I64", 16),
    }


def test_packed_integers_with_zero_points() -> None:
    found = parts(Quantization("compressed-tensors", weight_bits=4, group_size=32, zero_points=True))
    assert found["weight_scale"] == ((512, 40), "BF16", 40_960)
    assert found["weight_zero_point"] == ((64, 40), "I32", 10_240)


@pytest.mark.parametrize("method", ["modelopt_fp4", "compressed-tensors"])
def test_nvfp4_has_a_scale_per_16_weights_and_two_for_the_tensor(method: str) -> None:
    found = parts(Quantization(method, weight_bits=4, group_size=16, scale_bits=8))
    assert found["weight_packed"] == ((512, 640), "U8", 327_680)
    assert found["weight_scale"] == ((512, 80), "F8_E4M3", 40_960)
    assert sum(size for _, _, size in found.values()) == 327_680 + 40_960 + 8


def test_mxfp4_has_an_exponent_per_32_weights() -> None:
    assert parts(Quantization("mxfp4", weight_bits=4, group_size=32, scale_bits=8)) == {
        "weight_packed": ((512, 640), "U8", 327_680),
        "weight_scale": ((512, 40), "F8_E8M0", 20_480),
    }


def test_nf4_with_double_quantisation() -> None:
    found = parts(Quantization("bitsandbytes", weight_bits=4, group_size=64, scale_bits=8))
    assert found["weight"] == ((327_680, 1), "U8", 327_680)
    assert found["weight.absmax"] == ((10_240,), "U8", 10_240)
    assert found["weight.nested_absmax"] == ((40,), "F32", 160)


def test_nf4_without_double_quantisation() -> None:
    found = parts(Quantization("bitsandbytes", weight_bits=4, group_size=64, scale_bits=32))
    assert found["weight.absmax"] == ((10_240,), "F32", 40_960)
    assert "weight.nested_absmax" not in found


def test_int8_of_bitsandbytes_has_a_scale_per_output() -> None:
    assert parts(Quantization("bitsandbytes", weight_bits=8)) == {
        "weight": ((512, 1280), "I8", 655_360),
        "SCB": ((512,), "F32", 2_048),
    }


def test_gguf_counts_scales_within_the_bits() -> None:
    # Q4_K: 144 bytes for 256 weights
    assert parts(Quantization("gguf", weight_bits=4.5)) == {"qweight": ((368_640,), "U8", 368_640)}
