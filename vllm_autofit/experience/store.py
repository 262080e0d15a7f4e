"""The records of one user, and of read-only layers below: one JSON file per start (see experience/tree.py).

Several processes add to one record (engine cores, workers), so a change is read, made and written under a lock and put
in place by an atomic replace: a reader never sees half a record and needs no lock, and a crash leaves the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm_autofit.errors import MisplacedRecordError, NewerRecordError, RecordError, StoreError
from vllm_autofit.experience.files import LARGEST_EXPORT, make_folder, read_json, set_aside, write_json
from vllm_autofit.experience.locking import exclusive
from vllm_autofit.experience.record import Record, check, new_run_id, presentable
from vllm_autofit.experience.tree import Source, Tree, groups_of
from vllm_autofit.experience.upkeep import forget_old_of_key, join, remove_if_empty, sweep_when_due

# What only the command needs is imported where it is used: every engine core of a start imports this module.
if TYPE_CHECKING:
    from vllm_autofit.experience.exchange import Merged
    from vllm_autofit.experience.inspection import Finding

RELATED_KEYS = 8
RELATED_PER_KEY = 2


class Store:
    """The records of one user.

    Args:
        folder: the cache folder; made with permissions 0700 when first written to.
        layers: folders of the same layout, or exported files. They are only read; of two records of one start the one
            in ``folder`` counts, then that of the layer named first.
    """

    def __init__(self, folder: Path, layers: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.skipped: list[str] = []
        """What was set aside or passed over so far, as messages, each once."""
        self._own = Tree(folder)
        self.starts = self._own.starts
        self._layer_paths = layers

    def path(self, key: str, run_id: str) -> Path:
        """Where the record of one start lies."""
        return self._own.path(key, run_id)

    def new_run_id(self, key: str) -> str:
        """A name for a start that sorts after every other of its key, also when the clock went back."""
        try:
            return new_run_id(max(self._places(key), default=""))
        except StoreError:
            return new_run_id()

    # Writing

    def update(
        self, key: str, run_id: str, change: Callable[[Record | None], Record], groups: Iterable[str] = ()
    ) -> Path:
        """Write ``change(the record as it stands, or None)``.

        Args:
            key: what the record is filed under.
            run_id: the start.
            change: may alter what it is given.
            groups: under which related starts find it; those that the record names when left out.

        Raises:
            StoreError: the folder can't be written, or the lock can't be had.
            RecordError: what ``change`` returned is no record of this start.
            NewerRecordError: the record was written by a newer version of us; it is left alone.
        """
        path = self._own.path(key, run_id)
        with _as_store_error(path):
            with self._lock(key, run_id):
                before = self._own_or_set_aside(key, run_id)
                record = check(presentable(change(before)), str(path))
                if (record["key"], record["run_id"]) != (key, run_id):
                    raise MisplacedRecordError(str(path), f"{record['key']}/{record['run_id']}")
                write_json(path, record)
            for group in groups or groups_of(record):
                join(self._own, group, key)
            if before is None:
                forget_old_of_key(self._own, key, run_id)
                sweep_when_due(self._own)
        return path

    def forget(self, run_ids: Iterable[str]) -> int:
        """Remove some of the user's own records; says how many there were.

        Raises:
            StoreError: one can't be removed.
        """
        wanted = set(run_ids)
        removed = 0
        with _as_store_error(self.starts):
            for key in self._own.all_keys():
                for run_id in wanted & set(self._own.run_ids(key)):
                    self._own.path(key, run_id).unlink(missing_ok=True)
                    removed += 1
                remove_if_empty(self._own, key)
        return removed

    def _own_or_set_aside(self, key: str, run_id: str) -> Record | None:
        """The record as it stands, or None if there is none that can be read. The lock must be held."""
        try:
            return self._own.read(key, run_id)
        except FileNotFoundError:
            return None
        except NewerRecordError:
            raise
        except RecordError as error:
            self._skip(f"{error}; {set_aside(self._own.path(key, run_id))}")
            return None

    def _lock(self, key: str, run_id: str) -> AbstractContextManager[None]:
        """One of 256 locks, outside of the folders that come and go; different starts seldom share one."""
        make_folder(self.folder / "locks")
        return exclusive(self.folder / "locks" / hashlib.sha256(f"{key}/{run_id}".encode()).hexdigest()[:2])

    # Reading

    def records(self, key: str) -> Iterator[Record]:
        """The readable records of a key, newest first; what isn't readable is named in ``skipped``.

        Own files that are damaged are set aside. Those of layers, and those of a newer version, are left as they are.

        Raises:
            StoreError: the user's own folder exists but can't be read.
        """
        places = self._places(key)
        for run_id in sorted(places, reverse=True):
            record = self._read(places[run_id], key, run_id)
            if record is not None:
                yield record

    def related(self, group: str, limit: int = RELATED_KEYS) -> Iterator[Record]:
        """The newest records of the keys in a group: at most ``limit`` keys, the newest first, two records of each.

        Raises:
            StoreError: the user's own folder exists but can't be read.
        """
        keys = {key for source in self._sources for key in self._listed(source, source.members, group)}
        newest = {key: max(self._places(key), default="") for key in keys}
        for key in sorted(filter(newest.get, keys), key=newest.__getitem__, reverse=True)[:limit]:
            for number, record in enumerate(self.records(key), 1):
                yield record
                if number == RELATED_PER_KEY:
                    break

    def everything(self) -> Iterator[Record]:
        """The readable records of all keys, newest first.

        Raises:
            StoreError: the user's own folder exists but can't be read.
        """
        keys = {key for source in self._sources for key in self._listed(source, source.all_keys)}
        places = [(run_id, key, source) for key in keys for run_id, source in self._places(key).items()]
        for run_id, key, source in sorted(places, key=lambda place: place[:2], reverse=True):
            record = self._read(source, key, run_id)
            if record is not None:
                yield record

    def origin(self, record: Record) -> str:
        """``own``: a start of this user's; ``imported``: by ``merge``; ``layer``: it lies in a read-only layer."""
        if not self._own.path(record["key"], record["run_id"]).exists():
            return "layer"
        return "imported" if record.get("imported") else "own"

    @cached_property
    def _sources(self) -> list[Source]:
        """The user's own folder, then the layers that can be read."""
        return [self._own, *filter(None, map(self._layer, self._layer_paths))]

    def _layer(self, path: Path) -> Source | None:
        if path.is_dir():
            return Tree(path)
        from vllm_autofit.experience.exchange import ExportedLayer

        try:
            return ExportedLayer(read_json(path, LARGEST_EXPORT), str(path))
        except RecordError as error:
            self._skip(str(error))
        except OSError as error:
            self._skip(f"{path} can't be read ({error})")
        return None

    def _places(self, key: str) -> dict[str, Source]:
        """Where each start of a key is read."""
        places: dict[str, Source] = {}
        for source in self._sources:
            for run_id in self._listed(source, source.run_ids, key):
                places.setdefault(run_id, source)
        return places

    def _listed(self, source: Source, listing: Callable[..., list[str]], *arguments: str) -> list[str]:
        try:
            return listing(*arguments)
        except OSError as error:
            if source is self._own:
                raise StoreError(str(self.folder), str(error)) from error
            self._skip(f"a layer can't be read ({error})")
            return []

    def _read(self, source: Source, key: str, run_id: str) -> Record | None:
        try:
            record = source.read(key, run_id)
        except (NewerRecordError, MisplacedRecordError) as error:
            self._skip(str(error))
        except RecordError as error:
            if source is self._own:
                return self._read_again(key, run_id, error)
            self._skip(str(error))
        except FileNotFoundError:
            pass  # another process just forgot it
        except OSError as error:
            self._skip(f"{key}/{run_id} can't be read ({error})")
        else:
            return record if source is self._own else {**record, "imported": True}
        return None

    def _read_again(self, key: str, run_id: str, error: RecordError) -> Record | None:
        """Set a damaged record aside, unless another process just did and put a sound one in its place."""
        try:
            with self._lock(key, run_id):
                return self._own_or_set_aside(key, run_id)
        except (OSError, RecordError):
            self._skip(f"{error}; left where it is")
            return None

    def _skip(self, message: str) -> None:
        if message not in self.skipped:
            self.skipped.append(message)

    # Pins

    def pin(self, key: str, settings: Mapping[str, object], note: str = "") -> Path:
        """Make ``settings`` those of a key's starts from now on.

        Raises:
            PinError: naming the setting that can't be pinned.
            StoreError: the folder can't be written.
        """
        from vllm_autofit.experience.pins import new_pin

        return self._write_pin(new_pin(key, settings, note))

    def unpin(self, key: str) -> bool:
        """Remove the user's own pin of a key; says whether there was one.

        Raises:
            StoreError: it can't be removed.
        """
        path = self._own.pin_path(key)
        with _as_store_error(path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def pinned(self, key: str) -> dict[str, Any] | None:
        """The pin of a key, as ``pins.py`` describes it (``["settings"]`` holds the values), or None."""
        for source in self._sources:
            try:
                return source.read_pin(key)
            except FileNotFoundError:
                continue
            except RecordError as error:
                newer = isinstance(error, (NewerRecordError, MisplacedRecordError))
                aside = "" if newer or source is not self._own else f"; {set_aside(self._own.pin_path(key))}"
                self._skip(f"{error}{aside}")
            except OSError as error:
                self._skip(f"the pin of {key} can't be read ({error})")
        return None

    def pins(self) -> dict[str, dict[str, Any]]:
        """All pins, by key.

        Raises:
            StoreError: the user's own folder exists but can't be read.
        """
        keys = sorted({key for source in self._sources for key in self._listed(source, source.pinned_keys)})
        return {key: pin for key in keys if (pin := self.pinned(key)) is not None}

    def _write_pin(self, pin: dict[str, Any]) -> Path:
        path = self._own.pin_path(pin["key"])
        with _as_store_error(path):
            write_json(path, pin)
        return path

    # Sharing and care

    def export(self, records: Iterable[Record]) -> dict[str, Any]:
        """Some records, and the pins of their keys, as one document for ``merge``."""
        from vllm_autofit.experience.exchange import export_document

        chosen = list(records)
        pins = [self.pinned(key) for key in dict.fromkeys(record["key"] for record in chosen)]
        return export_document(chosen, [pin for pin in pins if pin is not None])

    def merge(self, records: Iterable[Record], pins: Iterable[dict[str, Any]]) -> Merged:
        """Add what exported documents hold.

        What is here already stays as it is, a pin too; but a record that served longer than the one here, or knows how
        its start ended, takes its place.

        Args:
            records: as ``exchange.checked`` returns them.
            pins: likewise.

        Raises:
            StoreError: the folder can't be written.
        """
        from vllm_autofit.experience.exchange import Merged, fullest

        given = list(records)
        done = [self._add(record) for record in fullest(given)]
        for pin in pins:
            if not self._own.pin_path(pin["key"]).exists():
                self._write_pin(pin)
        added, extended = done.count("added"), done.count("extended")
        return Merged(added, extended, len(given) - added - extended)

    def _add(self, record: Record) -> Literal["added", "extended"] | None:
        """What was done with a record that was checked: None where it stands here, or can't be read here."""
        from vllm_autofit.experience.exchange import continued

        key, run_id = record["key"], record["run_id"]
        path = self._own.path(key, run_id)
        with _as_store_error(path):
            with self._lock(key, run_id):
                try:
                    before = self._own_or_set_aside(key, run_id)
                except (NewerRecordError, OSError) as error:
                    self._skip(str(error))
                    return None
                wanted = continued(before, record)
                if wanted is None:
                    return None
                write_json(path, presentable(wanted))
            for group in groups_of(record):
                join(self._own, group, key)
        return "added" if before is None else "extended"

    def check(self, repair: bool = False) -> list[Finding]:
        """What is wrong with the user's own folder, and with ``repair`` what was done about it.

        Raises:
            StoreError: the folder exists but can't be read.
        """
        from vllm_autofit.experience.inspection import inspect

        with _as_store_error(self.folder):
            return inspect(self._own, self._lock, repair)


@contextlib.contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(str(path), str(error)) from error
