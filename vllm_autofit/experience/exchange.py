"""Many records and pins as one document: what ``history export`` writes and ``history import`` reads.

    vllm_autofit_export     1
    records                 a list of records, newest first
    pins                    a list of pins

Such a file is a read-only layer, too.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vllm_autofit.errors import NewerRecordError, RecordError
from vllm_autofit.experience.observed import seconds_served
from vllm_autofit.experience.pins import check_pin
from vllm_autofit.experience.record import STATES, Record, check, is_name, presentable
from vllm_autofit.experience.tree import MEMBERS_READ, groups_of

FORMAT = "vllm_autofit_export"
VERSION = 1


def export_document(records: Iterable[Record], pins: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The document of some records and pins."""
    return {FORMAT: VERSION, "records": [presentable(record) for record in records], "pins": list(pins)}


def entries(document: object, path: str) -> tuple[list[object], list[object]]:
    """The records and the pins of an exported document, as yet unchecked.

    Raises:
        NewerRecordError: a newer version of us wrote it.
        RecordError: it is no such document.
    """
    if not isinstance(document, dict) or FORMAT not in document:
        raise RecordError(path, "it is no export of vllm-autofit's records")
    version = document[FORMAT]
    if isinstance(version, int) and version > VERSION:
        raise NewerRecordError(path, version, VERSION)
    if version is not VERSION:
        raise RecordError(path, f"its {FORMAT} is {reprlib.repr(version)}, this version reads {VERSION}")
    records, pins = document.get("records"), document.get("pins", [])
    if not isinstance(records, list) or not isinstance(pins, list):
        raise RecordError(path, "its records or its pins are no list")
    return records, pins


def checked(document: object, path: str) -> tuple[list[Record], list[dict[str, Any]]]:
    """The records and pins of an exported document.

    Raises:
        RecordError: naming the first entry that is wrong, and what is wrong with it.
    """
    records, pins = entries(document, path)
    return (
        [check(each, f"{path}, record {number}") for number, each in enumerate(records, 1)],
        [check_pin(each, f"{path}, pin {number}") for number, each in enumerate(pins, 1)],
    )


class Merged(NamedTuple):
    """How many records ``Store.merge`` added, put in the place of one that knew less, and found there already."""

    added: int
    extended: int
    already_there: int


def fullest(records: Iterable[Record]) -> list[Record]:
    """Of several records of one start, the one that knows most of it."""
    best: dict[tuple[str, str], Record] = {}
    for record in records:
        name = record["key"], record["run_id"]
        if name not in best or _progress(best[name]) < _progress(record):
            best[name] = record
    return list(best.values())


def continued(before: Record | None, record: Record) -> Record | None:
    """``record``, of another machine's store, in the place of what is known here of its start.

    None unless it goes on from that. Whose start it was stays as it is known here.
    """
    if before is None:
        return {**record, "imported": True}
    if _progress(before) >= _progress(record):
        return None
    whose = {"imported": before["imported"]} if "imported" in before else {}
    return {name: value for name, value in record.items() if name != "imported"} | whose


def _progress(record: Record) -> tuple[float, int]:
    """How much a record knows of its start: seconds served, then whether it knows the end."""
    return seconds_served(record), STATES.index(record["outcome"]["state"])


class ExportedLayer:
    """The file of an export, read like a folder of records: an entry is checked when it is asked for.

    Args:
        document: what the file holds.
        path: the file.

    Raises:
        RecordError: it is no export.
    """

    def __init__(self, document: object, path: str) -> None:
        records, pins = entries(document, path)
        self._path = path
        self._pins = {key: pin for pin in pins if is_name(key := _text(pin, "key"))}
        self._records: dict[str, dict[str, object]] = {}
        self._members: dict[str, dict[str, None]] = {}
        for record in records:
            key, run_id = _text(record, "key"), _text(record, "run_id")
            if is_name(key) and is_name(run_id):
                self._records.setdefault(key, {})[run_id] = record
                for group in groups_of(record):
                    self._members.setdefault(group, {})[key] = None

    def all_keys(self) -> list[str]:
        """Every key with a record."""
        return list(self._records)

    def run_ids(self, key: str) -> list[str]:
        """The starts of a key."""
        return list(self._records.get(key, ()))

    def members(self, group: str) -> list[str]:
        """The keys of a group."""
        return list(self._members.get(group, ()))[:MEMBERS_READ]

    def read(self, key: str, run_id: str) -> Record:
        """One record.

        Raises:
            RecordError: it is none.
        """
        return check(self._records[key][run_id], f"{self._path}, {key}/{run_id}")

    def pinned_keys(self) -> list[str]:
        """Every key with a pin."""
        return list(self._pins)

    def read_pin(self, key: str) -> dict[str, Any]:
        """The pin of a key.

        Raises:
            FileNotFoundError: there is none.
            RecordError: it is none.
        """
        if key not in self._pins:
            raise FileNotFoundError(key)
        return check_pin(self._pins[key], f"{self._path}, pin of {key}")


def _text(entry: object, name: str) -> str:
    """A text in an entry that nobody has checked yet; empty where there is none."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, str) else ""
