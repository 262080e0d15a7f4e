"""Rows of text as a table that is never wider than the terminal, whatever stands in them."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
ELLIPSIS = "…"


@dataclass(frozen=True)
class Column:
    """One column.

    ``least`` is how narrow it may become before others are left out; ``rank`` says which: the highest goes first.
    """

    title: str
    least: int = 1
    rank: int = 0
    right: bool = False


def table(columns: Sequence[Column], sections: Sequence[tuple[str, Sequence[Sequence[str]]]], width: int | None) -> str:
    """A heading, then each section's title and rows, with the columns lined up throughout.

    Args:
        columns: of every row.
        sections: title and rows; a section without a title is rows alone, one without rows is left out.
        width: of the terminal; None where there is none, and nothing is cut.
    """
    rows = [[printable(cell) for cell in row] for _, section in sections for row in section]
    titles = [column.title for column in columns]
    natural = [max(map(text_width, cells)) for cells in zip(titles, *rows, strict=True)]
    kept = _fitting(columns, natural, width)

    def line(cells: Sequence[str]) -> str:
        parts = [_padded(clipped(cells[place], size), size, columns[place].right) for place, size in kept.items()]
        return GAP.join(parts).rstrip()

    lines, remaining = [line(titles)], iter(rows)
    for title, section in sections:
        if section and title:
            lines += ["", printable(title) if width is None else clipped(printable(title), width)]
        lines += [line(next(remaining)) for _ in section]
    return "\n".join(lines)


def wrapped(text: str, indent: str, width: int | None) -> list[str]:
    """A paragraph in lines of at most ``width``; whole where there is no terminal."""
    text = printable(text)
    if width is None:
        return [indent + text]
    room = max(1, width - len(indent))
    return [indent + each for each in textwrap.wrap(text, room, break_on_hyphens=False)]


def printable(text: str) -> str:
    """``text`` without what a terminal would act upon: a record's content may come from elsewhere."""
    return (
        text
        if text.isprintable()
        else "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    )


def clipped(text: str, width: int) -> str:
    """``text``, or its beginning and an ellipsis, in at most ``width`` places."""
    if text_width(text) <= width:
        return text
    kept, left = "", width - 1
    for each in text:
        left -= text_width(each)
        if left < 0:
            break
        kept += each
    return kept + ELLIPSIS


def text_width(text: str) -> int:
    """Places that a text takes in a terminal: two for each wide character, none for one that combines."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "WF") for each in text)


def _fitting(columns: Sequence[Column], natural: Sequence[int], width: int | None) -> dict[int, int]:
    """Which columns there is room for, by their place, and how wide each is."""
    places = [place for place, column in enumerate(columns)]
    if width is None:
        return {place: natural[place] for place in places}
    while len(places) > 1 and _total([min(natural[place], columns[place].least) for place in places]) > width:
        places.remove(max(places, key=lambda place: columns[place].rank))
    sizes = {place: natural[place] for place in places}
    while _total(list(sizes.values())) > width:
        able = [place for place in places if sizes[place] > columns[place].least] or places
        widest = max(able, key=lambda place: sizes[place])
        sizes[widest] -= 1
    return sizes


def _total(sizes: Sequence[int]) -> int:
    return sum(sizes) + len(GAP) * (len(sizes) - 1)


def _padded(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - text_width(text))
    return blanks + text if right else text + blanks
