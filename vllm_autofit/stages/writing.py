"""Puts shares into the text of a file of stages. Every other character stays: comments, quotes, order, line ends.

PyYAML says where in the text a value stands, so that only this is replaced, or one line added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_autofit.errors import StageFileError
from vllm_autofit.stages.stage import SHARE, Stage, StageFile


def filled(file: StageFile, shares: Mapping[int, float]) -> str:
    """The text of ``file`` with these shares, by the number of the stage.

    Raises:
        StageFileError: a share can't be put where it belongs.
    """
    writer = _Writer(file)
    for stage in file.stages:
        if stage.id in shares:
            writer.put(stage, shares[stage.id])
    return writer.result()


class _Writer:
    def __init__(self, file: StageFile) -> None:
        import yaml

        self._file = file
        self._end = "\r\n" if "\r\n" in file.text else "\n"
        self._root = yaml.compose(file.text, Loader=yaml.SafeLoader)
        self._edits: dict[tuple[int, int], str] = {}
        self._new_entries: dict[tuple[str, ...], list[tuple[Stage, float]]] = {}

    def put(self, stage: Stage, share: float) -> None:
        """Note the edit that gives ``stage`` its share."""
        entries = self._entries(stage.place.section)
        entry = None if entries is None else next((e for e in entries.value if _says(e, stage.id)), None)
        if entry is None:
            self._new_entries.setdefault(stage.place.section, []).append((stage, share))
            return
        holder = entry if stage.place.inner is None else _value(entry, stage.place.inner)
        if holder is None:
            self._insert(entry, f"{stage.place.inner}:", f"  {SHARE}: {share}")
            return
        if not hasattr(holder, "flow_style") or not isinstance(holder.value, list):
            raise self._error(stage, f"`{stage.place.inner}` is empty", f"Remove it, or write `{SHARE}: 0.1` below it")
        there = _value(holder, SHARE)
        if there is None:
            self._insert(holder, f"{SHARE}: {share}")
        else:
            start, end = there.start_mark.index, there.end_mark.index
            self._note(start, end, str(share) if start < end else f" {share}", stage)

    def result(self) -> str:
        """The text with all edits made."""
        for section, wanted in self._new_entries.items():
            self._add_entries(section, wanted)
        text = self._file.text
        for (start, end), new in sorted(self._edits.items(), reverse=True):
            text = text[:start] + new + text[end:]
        return text

    def _entries(self, section: tuple[str, ...]) -> Any:
        node = self._root
        for key in section:
            node = None if node is None else _value(node, key)
        return node

    def _insert(self, mapping: Any, *lines: str) -> None:
        """Add lines to a mapping, below its first line that holds a plain value."""
        if mapping.flow_style:
            at, inside = mapping.end_mark.index - 1, "{" + lines[1].strip() + "}" if len(lines) > 1 else ""
            self._note(at, at, (", " if mapping.value else "") + " ".join(filter(None, (lines[0], inside))))
            return
        indent = " " * mapping.start_mark.column
        plain = next((value for key, value in mapping.value if _is_one_line(key, value)), None)
        if plain is None:
            at = mapping.start_mark.index
            self._note(at, at, "".join(f"{line}{self._end}{indent}" for line in lines))
            return
        at = self._line_end(plain.end_mark.index)
        self._note(at, at, "".join(f"{self._end}{indent}{line}" for line in lines))

    def _add_entries(self, section: tuple[str, ...], wanted: list[tuple[Stage, float]]) -> None:
        """Entries for stages that only a file below this one has."""
        if len(section) > 1:
            raise self._error(
                wanted[0][0],
                f"its share is inherited from `{'.'.join(section)}` of a file that this one is based on",
                f"Write `{SHARE}` for it in that section of this file",
            )
        entries = self._entries(section)
        if entries is not None and (not isinstance(entries.value, list) or not entries.value or entries.flow_style):
            raise self._error(
                wanted[0][0], f"`{section[0]}` has no line for it", f"Add `- stage_id: {wanted[0][0].id}`"
            )
        column = 2 if entries is None else entries.start_mark.column
        lines = [] if entries is not None else ["", f"{section[0]}:"]
        for stage, share in wanted:
            inner = [f"{stage.place.inner}:"] if stage.place.inner else []
            lines += [" " * column + f"- stage_id: {stage.id}"]
            lines += [" " * (column + 2) + line for line in inner]
            lines += [" " * (column + 2 + 2 * len(inner)) + f"{SHARE}: {share}"]
        last = self._root if entries is None else entries
        at = self._line_end(_last_index(last))
        self._note(at, at, "".join(self._end + line for line in lines))

    def _line_end(self, index: int) -> int:
        """Where the line ends that holds ``index``, its comment included."""
        found = re.compile(r"\r?\n").search(self._file.text, index)
        return len(self._file.text) if found is None else found.start()

    def _note(self, start: int, end: int, new: str, stage: Stage | None = None) -> None:
        if self._edits.get((start, end), new) != new and stage is not None:
            raise self._error(stage, "it shares its options with another stage by a YAML alias", "Write them out")
        if start == end and (start, end) in self._edits:
            new = self._edits[start, end] + new
        self._edits[start, end] = new

    def _error(self, stage: Stage, problem: str, remedy: str) -> StageFileError:
        return StageFileError(f"{self._file.path}, {stage.label}", problem, remedy)


def _value(mapping: Any, key: str) -> Any:
    """The node below ``key``; None where there is none."""
    if not isinstance(mapping.value, list) or not hasattr(mapping, "flow_style"):
        return None
    pairs = [pair for pair in mapping.value if isinstance(pair, tuple)]
    return next((value for name, value in reversed(pairs) if name.value == key), None)


def _says(entry: Any, number: int) -> bool:
    import yaml

    node = _value(entry, "stage_id")
    return node is not None and bool(yaml.safe_load(str(node.value)) == number)


def _is_one_line(key: Any, value: Any) -> bool:
    """Whether a pair is a scalar that ends on the line on which its key begins."""
    return isinstance(value.value, str) and value.style not in ("|", ">") and key.start_mark.line == value.end_mark.line


def _last_index(node: Any) -> int:
    """Where the last scalar, or the closing bracket, of a node ends: blocks end only at the next word."""
    if isinstance(node.value, str) or node.flow_style or not node.value:
        end: int = node.end_mark.index
        return end
    last = node.value[-1]
    return _last_index(last[1] if isinstance(last, tuple) else last)
