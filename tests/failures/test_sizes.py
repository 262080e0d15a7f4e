"""Figures with their units."""

from __future__ import annotations

import re

import pytest

from vllm_autofit.failures.sizes import SIZE, read_numbers, read_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5 GiB", 1.5 * 2**30),
        ("1.5GB", 1.5 * 2**30),
        ("16.50G", 16.5 * 2**30),
        ("524.00 MiB", 524 * 2**20),
        ("644.00 MB", 644 * 2**20),
        ("2 KiB", 2048),
        ("2 kB", 2048),
        ("2 TiB", 2**41),
        ("0 bytes", 0),
        ("512 B", 512),
        ("25216745472", 25216745472),
        ("-0.5 GiB", -(2**29)),
    ],
)
def test_units_are_powers_of_1024(text: str, size: float) -> None:
    assert re.fullmatch(SIZE, text)
    assert read_size(text) == size


def test_the_name_of_a_group_says_what_it_holds() -> None:
    patterns = (
        re.compile(r"(?P<free_gib>\d+) of (?P<total_size>\d+ MiB)"),
        re.compile(r"(?P<sequences>\d+) sequences"),
        re.compile(r"(?P<share>0\.\d+)"),
        re.compile(r"(?P<sequences>\d+)"),
    )
    numbers = read_numbers(patterns, "1 of 2048 MiB, 7 sequences, 0.9")
    assert numbers == {"free_bytes": 2**30, "total_bytes": 2**31, "sequences": 7, "share": 0.9}


def test_text_is_no_size() -> None:
    with pytest.raises(ValueError, match="lots"):
        read_size("lots")
