"""Units, numbers as people type them, and how large a number may be that still means something."""

from __future__ import annotations

import re

MIB = 2**20
GIB = 2**30

MOST_BYTES = 2**50
MOST_TOKENS = 2**40
MOST_SEQUENCES = 2**20
"""In one batch: of captured batches too."""
MOST_RANKS = 4096
"""Of one deployment, all nodes together."""

_UNITS = {"": GIB, "b": 1, "k": 2**10, "m": MIB, "g": GIB, "t": 2**40}


def tokens(text: str, most: int = MOST_TOKENS) -> int:
    """Tokens as vLLM's own command line writes them: ``8192``, ``8k`` and ``25.6k`` (x 1000), ``8K`` (x 1024).

    Raises:
        ValueError: not a number of tokens from 1 to ``most``.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)|(\d+(?:\.\d+)?)([kmgt])", text)
    if match is None:
        raise ValueError(text)
    if match[1] is not None:
        count: float = int(match[1]) * 1024 ** " KMGT".index(match[2] or " ")
    else:
        count = float(match[3]) * 1000 ** " kmgt".index(match[4])
    if not 1 <= count <= most:
        raise ValueError(text)
    return int(count)


def size(text: str) -> int:
    """Bytes, at most 2^50. Units are powers of 1024 whether written GiB, GB or G; a bare number is GiB, as on screen.

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?", text.lower())
    if match is None or (match[3] == "ib" and not match[2]):
        raise ValueError(text)
    unit = match[2] or ("b" if match[3] == "b" else "")
    count = float(match[1]) * _UNITS[unit]
    if count > MOST_BYTES:
        raise ValueError(text)
    return int(count)


def share(text: str) -> tuple[float, bool]:
    """A part of a device: a bare number up to 1 is a fraction of it (then True), everything else a size in bytes.

    Raises:
        ValueError: neither, or nothing.
    """
    is_fraction = re.fullmatch(r"0?\.\d+|[01](\.\d*)?", text) is not None and float(text) <= 1
    amount = float(text) if is_fraction else float(size(text))
    if amount <= 0:
        raise ValueError(text)
    return amount, is_fraction
