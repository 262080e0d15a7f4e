"""How a quantised checkpoint stores one matrix: which tensors, of which shapes and dtypes.

Layouts as their writers and vLLM's loaders have them (vLLM 0.32.0, ``model_executor/layers/quantization``): AutoAWQ,
GPTQ, compressed-tensors, ModelOpt, bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, prod
from typing import NamedTuple

from vllm_autofit.architecture import Quantization

DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""torch's names to safetensors'."""

ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "U8": 1}

BITSANDBYTES_STATE_BYTES = 89
"""JSON that each nf4 matrix of a bitsandbytes checkpoint carries as a tensor: block size, dtype, shape, offset."""


class Part(NamedTuple):
    """One tensor of a stored matrix."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


def stored(rows: int, columns: int, scheme: Quantization | None, dtype: str) -> tuple[Part, ...]:
    """The tensors that hold a matrix.

    Args:
        rows: outputs.
        columns: inputs.
        scheme: None or 16 bits and more: as it is.
        dtype: of what isn't quantised, as safetensors names it.
    """
    if scheme is None or scheme.weight_bits >= 16:
        return (Part("weight", (rows, columns), dtype),)
    matrix = _Quantised(rows, columns, scheme, dtype)
    layout = _LAYOUTS.get(scheme.method) or _by_bits(scheme)
    return tuple(layout(matrix))


class _Quantised(NamedTuple):
    rows: int
    columns: int
    scheme: Quantization
    dtype: str

    @property
    def groups(self) -> int:
        """Scales along the inputs of one output."""
        size = self.scheme.group_size
        return ceil(self.columns / size) if size is not None and size > 0 else 1

    @property
    def scale_dtype(self) -> str:
        return {8: "F8_E4M3", 32: "F32"}.get(self.scheme.scale_bits, self.dtype)

    def words(self, values: int) -> int:
        """32-bit words that hold so many values."""
        return ceil(values * self.scheme.weight_bits / 32)


def _by_bits(scheme: Quantization) -> Layout:
    if scheme.weight_bits == 8:
        return _eight_bits
    return _four_bit_floats if scheme.weight_bits == 4 and scheme.scale_bits == 8 else _packed


def _awq(matrix: _Quantised) -> Iterator[Part]:
    packed_rows = matrix.words(matrix.rows)
    yield Part("qweight", (matrix.columns, packed_rows), "I32")
    yield Part("qzeros", (matrix.groups, packed_rows), "I32")
    yield Part("scales", (matrix.groups, matrix.rows), matrix.dtype)


def _gptq(matrix: _Quantised) -> Iterator[Part]:
    yield from _auto_round(matrix)
    yield Part("g_idx", (matrix.columns,), "I32")


def _auto_round(matrix: _Quantised) -> Iterator[Part]:
    """GPTQ's packing; ``qzeros`` are there even where the quantisation is symmetric."""
    yield Part("qweight", (matrix.words(matrix.columns), matrix.rows), "I32")
    yield Part("qzeros", (matrix.groups, matrix.words(matrix.rows)), "I32")
    yield Part("scales", (matrix.groups, matrix.rows), matrix.dtype)


def _packed(matrix: _Quantised) -> Iterator[Part]:
    """compressed-tensors' ``pack-quantized``."""
    yield Part("weight_packed", (matrix.rows, matrix.words(matrix.columns)), "I32")
    yield Part("weight_scale", (matrix.rows, matrix.groups), matrix.scale_dtype)
    if matrix.scheme.zero_points:
        yield Part("weight_zero_point", (matrix.words(matrix.rows), matrix.groups), "I32")
    yield Part("weight_shape", (2,), "I64")


def _eight_bits(matrix: _Quantised) -> Iterator[Part]:
    """fp8 (and int8: the same bytes). One scale per block, group or output channel, or for the whole tensor."""
    scheme = matrix.scheme
    yield Part("weight", (matrix.rows, matrix.columns), "F8_E4M3")
    if scheme.block is not None:
        height, width = scheme.block
        yield Part("weight_scale_inv", (ceil(matrix.rows / height), ceil(matrix.columns / width)), "F32")
    elif scheme.group_size is not None:
        yield Part("weight_scale", (matrix.rows, matrix.groups), matrix.scale_dtype)
    else:
        yield Part("weight_scale", (1,), "F32")
        yield Part("input_scale", (1,), "F32")


def _four_bit_floats(matrix: _Quantised) -> Iterator[Part]:
    """nvfp4 (groups of 16 and two scales for the whole tensor) and mxfp4 (groups of 32)."""
    yield Part("weight_packed", (matrix.rows, ceil(matrix.columns / 2)), "U8")
    if matrix.scheme.group_size == 16:
        yield Part("weight_scale", (matrix.rows, matrix.groups), "F8_E4M3")
        yield Part("weight_global_scale", (1,), "F32")
        yield Part("input_global_scale", (1,), "F32")
    else:
        yield Part("weight_scale", (matrix.rows, matrix.groups), "F8_E8M0")


def _bitsandbytes(matrix: _Quantised) -> Iterator[Part]:
    if matrix.scheme.weight_bits == 8:
        yield Part("weight", (matrix.rows, matrix.columns), "I8")
        yield Part("SCB", (matrix.rows,), "F32")
        return
    elements = matrix.rows * matrix.columns
    blocks = ceil(elements / (matrix.scheme.group_size or 64))
    yield Part("weight", (ceil(elements / 2), 1), "U8")
    if matrix.scheme.scale_bits == 8:  # double quantisation
        yield Part("weight.absmax", (blocks,), "U8")
        yield Part("weight.nested_absmax", (ceil(blocks / 256),), "F32")
        yield Part("weight.nested_quant_map", (256,), "F32")
    else:
        yield Part("weight.absmax", (blocks,), "F32")
    yield Part("weight.quant_map", (16,), "F32")
    yield Part("weight.quant_state.bitsandbytes__nf4", (BITSANDBYTES_STATE_BYTES,), "U8")


def _gguf(matrix: _Quantised) -> Iterator[Part]:
    """``weight_bits`` counts the scales within a block."""
    yield Part("qweight", (ceil(matrix.rows * matrix.columns * matrix.scheme.weight_bits / 8),), "U8")


Layout = Callable[[_Quantised], Iterator[Part]]

_LAYOUTS: dict[str, Layout] = {
    "awq": _awq,
    "gptq": _gptq,
    "auto-round": _auto_round,
    "inc": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "gguf": _gguf,
}
"""Methods with a layout of their own; the others store what the bits of weight and scale say."""
