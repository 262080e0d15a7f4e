"""Tables: columns that line up, and no line wider than the terminal, whatever stands in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_autofit.render.table import Column, clipped, printable, table, text_width, wrapped

COLUMNS = (Column("name", least=4, rank=0), Column("size", least=4, rank=1, right=True), Column("why", least=6, rank=2))
ROWS = [("first", "1", "because"), ("the second one", "1,234", "of a very long reason indeed")]


def test_columns_line_up_and_no_line_ends_in_blanks() -> None:
    assert table(COLUMNS, [("", ROWS)], None).splitlines() == [
        "name             size  why",
        "first               1  because",
        "the second one  1,234  of a very long reason indeed",
    ]


def test_sections_have_titles_and_share_their_columns() -> None:
    text = table(COLUMNS, [("Good", ROWS[:1]), ("Nothing here", []), ("Bad", ROWS[1:])], None)
    heading, blank, good, first, _, bad, second = text.splitlines()
    assert (blank, good, bad) == ("", "Good", "Bad")
    assert heading.index("why") == first.index("because") == second.index("of a")


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (40, "the second one  1,234  of a very long r…"),
        (30, "the secon…  1,234  of a very …"),
        (24, "the se…  1,234  of a ve…"),
        (17, "the secon…  1,234"),
        (9, "the seco…"),
        (1, "…"),
    ],
)
def test_a_narrow_terminal_cuts_cells_and_then_drops_columns(width: int, expected: str) -> None:
    assert table(COLUMNS, [("", ROWS)], width).splitlines()[-1] == expected


@given(
    rows=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60)), max_size=4),
    title=st.text(max_size=60),
    width=st.integers(1, 120),
)
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str, str]], title: str, width: int) -> None:
    text = table(COLUMNS, [(title, rows)], width)
    assert all(text_width(line) <= width for line in text.split("\n"))
    assert all(line.isprintable() for line in text.split("\n"))


def test_wide_characters_take_two_places_and_combining_ones_none() -> None:
    assert text_width("日本") == 4
    assert text_width("e\u0301") == 1
    assert clipped("日本語", 5) == "日本…"
    assert clipped("日本語", 4) == "日…"


def test_what_a_terminal_would_obey_is_replaced() -> None:
    assert printable("a\x1b[31mb\nc\u202ed") == "a�[31mb�c�d"
    assert printable("ü 日 x") == "ü 日 x"


def test_a_paragraph_is_wrapped_to_the_terminal_and_left_whole_without_one() -> None:
    assert wrapped("one two three", "  ", 9) == ["  one two", "  three"]
    assert wrapped("one two three", "  ", None) == ["  one two three"]
