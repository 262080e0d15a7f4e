"""Figures in a message -> numbers with fixed units.

A pattern's named groups say what they hold: ``free_gib`` is a figure in GiB and becomes ``free_bytes``, ``free_size``
is a figure with its unit, and any other name is a plain number. Units are powers of 1024 however they are written:
PyTorch, vLLM, Ray and the kernel print 2^30 bytes as GiB or GB and 2^10 bytes as kB.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

N = r"-?\d+(?:\.\d+)?"
"""A figure."""
SIZE = rf"{N}\s?(?:[kKMGT]i?B|[kKMGT]|bytes|B)?\b"
"""A figure with its unit. Without one it is in bytes."""

_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}
_SUFFIXES = {"kb": 1, "mib": 2, "gib": 3}


def read_size(text: str) -> int:
    """``1.5 GiB`` -> bytes, to the nearest.

    Raises:
        ValueError: not a size.
    """
    figure = re.match(N, text)
    if figure is None:
        raise ValueError(text)
    return _scaled(figure[0], _POWERS.get(text[figure.end() :].strip()[:1].lower(), 0))


def read_numbers(patterns: Iterable[re.Pattern[str]], text: str) -> dict[str, float]:
    """The named groups of ``patterns`` in ``text``; the first pattern that has a name gives it."""
    numbers: dict[str, float] = {}
    for pattern in patterns:
        match = pattern.search(text)
        for group, figure in (match.groupdict() if match else {}).items():
            if figure is not None:
                name, value = _number(group, figure)
                numbers.setdefault(name, value)
    return numbers


def _number(group: str, figure: str) -> tuple[str, float]:
    name, _, unit = group.rpartition("_")
    if unit == "size":
        return f"{name}_bytes", read_size(figure)
    if unit in _SUFFIXES:
        return f"{name}_bytes", _scaled(figure, _SUFFIXES[unit])
    value = float(figure)
    return group, int(value) if value.is_integer() and "." not in figure else value


def _scaled(figure: str, power: int) -> int:
    return round(float(figure) * (1 << 10 * power))
