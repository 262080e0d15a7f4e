"""Where records lie: a folder, the user's own or a read-only one, or the file of an export.

starts/<key>/<run_id>.json      one record per start
groups/<group>/<key>            empty; says that the starts of <key> are related to those of others
pins/<key>.json                 what the user pinned
locks/<two digits>              the user's own only: one process at a time per start
.swept                          the user's own only: when it was last swept
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from vllm_autofit.errors import MisplacedRecordError
from vllm_autofit.experience.files import names_in, read_json
from vllm_autofit.experience.record import Record, check, is_name

MEMBERS_READ = 32
"""Keys of a group that are looked at, the last ones used: a lookup must stay a matter of milliseconds."""


class Source(Protocol):
    """Where records can be read. Each method raises OSError where the file system does, and RecordError for what a
    file holds."""

    def all_keys(self) -> list[str]:
        """Every key with a record."""

    def run_ids(self, key: str) -> list[str]:
        """The starts of a key, in no order."""

    def members(self, group: str) -> list[str]:
        """The keys of a group, at most ``MEMBERS_READ``."""

    def read(self, key: str, run_id: str) -> Record:
        """One record."""

    def pinned_keys(self) -> list[str]:
        """Every key with a pin."""

    def read_pin(self, key: str) -> dict[str, Any]:
        """One pin."""


class Tree:
    """A folder of records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = folder / "starts"
        self.groups = folder / "groups"
        self.pins = folder / "pins"

    def path(self, key: str, run_id: str) -> Path:
        """Where the record of one start lies."""
        return self.starts / key / f"{run_id}.json"

    def pin_path(self, key: str) -> Path:
        """Where the pin of a key lies."""
        return self.pins / f"{key}.json"

    def all_keys(self) -> list[str]:
        """Every key that has a folder."""
        return [name for name in names_in(self.starts) if is_name(name) and (self.starts / name).is_dir()]

    def run_ids(self, key: str) -> list[str]:
        """The starts of a key, in no order."""
        return _documents(self.starts / key)

    def members(self, group: str) -> list[str]:
        """The keys of a group; of too many, those that were used last."""
        folder = self.groups / group
        names = [name for name in names_in(folder) if is_name(name)]
        if len(names) > MEMBERS_READ:
            names = sorted(names, key=lambda name: _used(folder / name), reverse=True)[:MEMBERS_READ]
        return names

    def read(self, key: str, run_id: str) -> Record:
        """One record.

        Raises:
            RecordError: it is none, or that of another start.
            OSError: it can't be read.
        """
        path = self.path(key, run_id)
        record = check(read_json(path), str(path))
        if (record["key"], record["run_id"]) != (key, run_id):
            raise MisplacedRecordError(str(path), f"{record['key']}/{record['run_id']}")
        return record

    def pinned_keys(self) -> list[str]:
        """Every key with a pin."""
        return _documents(self.pins)

    def read_pin(self, key: str) -> dict[str, Any]:
        """The pin of a key.

        Raises:
            RecordError: it is none, or that of another key.
            OSError: it can't be read.
        """
        path = self.pin_path(key)
        document = read_json(path)
        # Imported here: few keys have a pin, and few processes ask.
        from vllm_autofit.experience.pins import check_pin

        pin = check_pin(document, str(path))
        if pin["key"] != key:
            raise MisplacedRecordError(str(path), str(pin["key"]))
        return pin


def groups_of(record: object) -> list[str]:
    """The groups that a record names; it need not have been checked."""
    node = record
    for name in ("identity", "groups"):
        node = node.get(name) if isinstance(node, dict) else None
    return [group for group in node.values() if is_name(group)] if isinstance(node, dict) else []


def _documents(folder: Path) -> list[str]:
    names = (name[: -len(".json")] for name in names_in(folder) if name.endswith(".json"))
    return [name for name in names if is_name(name)]


def _used(marker: Path) -> float:
    try:
        return marker.stat().st_mtime
    except OSError:
        return 0.0
