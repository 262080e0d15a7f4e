"""What a safetensors file says about itself: 8 bytes with a length, then a JSON header of that length.

Nothing that the header claims is believed before it is checked, and nothing is allocated by what it claims. The checks
are those of the safetensors library (0.7): the tensors tile the rest of the file without gaps or overlaps.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_autofit.architecture import Tensor
from vllm_autofit.errors import WeightsError

MAX_HEADER_BYTES = 25_000_000
"""The largest header that huggingface_hub reads (SAFETENSORS_MAX_HEADER_LENGTH); 46,000 tensors take 6 MB."""

MAX_ELEMENTS = 2**63
DTYPE_BITS = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element, by the names that safetensors 0.7 knows."""


def read_header(file: Path) -> tuple[Tensor, ...]:
    """The tensors of a safetensors file, in the order of its header; its weights are not read.

    Raises:
        WeightsError: it can't be read, or its header isn't one or doesn't match the file.
    """
    header, data_bytes = _header(file)
    return tensors_of(read_json(header, str(file)), str(file), data_bytes)


def tensors_of(header: object, place: str, data_bytes: int | None = None) -> tuple[Tensor, ...]:
    """The tensors of a parsed header.

    Args:
        header: name -> {dtype, shape, data_offsets}.
        place: the file's name, for errors.
        data_bytes: what the file holds after its header; None where that isn't known.

    Raises:
        WeightsError: an entry is not a tensor, or the tensors don't tile the file.
    """
    if not isinstance(header, Mapping):
        raise WeightsError(place, "its header is not a JSON object")
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    tensors, spans = [], []
    for name, entry in entries:
        tensor, begin = _tensor(name, entry, place)
        tensors.append(tensor)
        spans.append((begin, begin + tensor.bytes))
    spans.sort()
    end = 0
    for begin, after in spans:
        if begin != end:
            raise WeightsError(place, f"its tensors {'overlap' if begin < end else 'leave a gap'} at byte {begin}")
        end = after
    if data_bytes is not None and end != data_bytes:
        raise WeightsError(place, f"its header describes {end} bytes of tensors and the file holds {data_bytes}")
    return tuple(tensors)


def read_json(text: bytes, place: str) -> Any:
    """Parsed JSON.

    Raises:
        WeightsError: it is none, or it is nested without end.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(place, f"not JSON ({_short(error)})") from error


def open_regular(file: Path) -> tuple[int, int]:
    """A file descriptor to read from, and the file's size. Never waits: a pipe or a device is refused unopened.

    Raises:
        WeightsError: it is no file, or can't be opened.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise WeightsError(str(file), "it is not a regular file")
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        return handle, os.fstat(handle).st_size
    except (OSError, ValueError) as error:
        raise WeightsError(str(file), _short(error)) from error


def _header(file: Path) -> tuple[bytes, int]:
    handle, size = open_regular(file)
    with os.fdopen(handle, "rb") as stream:
        try:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8:
                raise WeightsError(str(file), f"it has {size} bytes, too few for a safetensors file")
            if length > size - 8:
                raise WeightsError(str(file), f"its header should have {length} bytes and the file has {size}")
            if length > MAX_HEADER_BYTES:
                raise WeightsError(str(file), f"its header has {length} bytes, more than {MAX_HEADER_BYTES}")
            header = stream.read(length)
        except OSError as error:
            raise WeightsError(str(file), _short(error)) from error
    if len(header) != length:
        raise WeightsError(str(file), "it ends inside of its header")
    return header, size - 8 - length


def _tensor(name: str, entry: object, place: str) -> tuple[Tensor, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        bits = DTYPE_BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(place, f"tensor {name[:80]!r} has no known dtype, shape and offsets") from error
    if type(shape) is not list:
        raise WeightsError(place, f"the shape of tensor {name[:80]!r} is not a list")
    elements = 1
    for size in shape:
        if type(size) is not int or not 0 <= size < MAX_ELEMENTS:
            raise WeightsError(place, f"tensor {name[:80]!r} has an impossible shape")
        elements *= size
        if elements >= MAX_ELEMENTS:
            raise WeightsError(place, f"tensor {name[:80]!r} has an impossible shape")
    if type(begin) is not int or type(end) is not int or begin < 0 or (end - begin) * 8 != elements * bits:
        raise WeightsError(place, f"the offsets of tensor {name[:80]!r} don't match its shape and dtype")
    return Tensor(name, tuple(shape), dtype, end - begin), begin


def _short(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:120] or type(error).__name__
