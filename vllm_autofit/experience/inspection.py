"""What can be wrong with a folder of records, and how it is put right. Nothing that was learned is ever deleted."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vllm_autofit.errors import MisplacedRecordError, NewerRecordError, RecordError
from vllm_autofit.experience.files import make_folder, names_in, set_aside
from vllm_autofit.experience.tree import MEMBERS_READ, Tree, groups_of
from vllm_autofit.experience.upkeep import dangling, join, leftovers

Problem = Literal[
    "damaged", "wrong place", "permissions", "leftover", "dangling group marker", "missing group marker", "newer schema"
]
Lock = Callable[[str, str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        problem: what kind of thing.
        path: the file or folder.
        detail: what exactly, as a sentence without its full stop.
        repaired: whether it was put right.
    """

    problem: Problem
    path: str
    detail: str
    repaired: bool = False


def inspect(tree: Tree, lock: Lock, repair: bool) -> list[Finding]:
    """Every finding, in the order of the folders.

    Args:
        tree: the user's own folder.
        lock: of a start, by key and run id.
        repair: put right what can be.

    Raises:
        OSError: a folder can't be read.
    """
    return [
        *_records(tree, lock, repair),
        *_pins(tree, repair),
        *_markers(tree, repair),
        *_leftovers(tree, repair),
        *_permissions(tree, repair),
    ]


def _records(tree: Tree, lock: Lock, repair: bool) -> Iterator[Finding]:
    for key in sorted(tree.all_keys()):
        for run_id in sorted(tree.run_ids(key)):
            with lock(key, run_id) if repair else contextlib.nullcontext():
                finding = _record(tree, key, run_id, repair)
            if finding:
                yield finding


def _record(tree: Tree, key: str, run_id: str, repair: bool) -> Finding | None:
    path = tree.path(key, run_id)
    try:
        tree.read(key, run_id)
    except FileNotFoundError:
        return None
    except NewerRecordError as error:
        return Finding("newer schema", str(path), error.reason)
    except MisplacedRecordError as error:
        return Finding(
            "wrong place", str(path), error.reason, repair and _move(path, tree.starts / f"{error.place}.json")
        )
    except RecordError as error:
        return Finding("damaged", str(path), error.reason, repair and set_aside(path).startswith("kept"))
    except OSError as error:
        return Finding("permissions", str(path), f"it can't be read ({error})", repair and _restrict(path))
    return None


def _move(path: Path, place: Path) -> bool:
    """To where it belongs, or aside if something is there already."""
    try:
        make_folder(place.parent)
        os.link(path, place)
        path.unlink()
    except FileExistsError:
        return set_aside(path).startswith("kept")
    except OSError:
        return False
    return True


def _pins(tree: Tree, repair: bool) -> Iterator[Finding]:
    for key in sorted(tree.pinned_keys()):
        path = tree.pin_path(key)
        try:
            tree.read_pin(key)
        except NewerRecordError as error:
            yield Finding("newer schema", str(path), error.reason)
        except RecordError as error:
            yield Finding("damaged", str(path), error.reason, repair and set_aside(path).startswith("kept"))


def _markers(tree: Tree, repair: bool) -> Iterator[Finding]:
    for path in dangling(tree):
        yield Finding("dangling group marker", str(path), "no start of its key is left", repair and _remove(path))
    for key in sorted(tree.all_keys()):
        for group in sorted(_groups(tree, key)):
            marker = tree.groups / group / key
            if marker.exists() or len(names_in(marker.parent)) >= MEMBERS_READ:
                continue
            if repair:
                join(tree, group, key)
            yield Finding("missing group marker", str(marker), "starts of its key name the group", repair)


def _groups(tree: Tree, key: str) -> set[str]:
    groups: set[str] = set()
    for run_id in tree.run_ids(key):
        with contextlib.suppress(RecordError, OSError):
            groups.update(groups_of(tree.read(key, run_id)))
    return groups


def _leftovers(tree: Tree, repair: bool) -> Iterator[Finding]:
    for path in leftovers(tree):
        yield Finding("leftover", str(path), "a process was killed while it wrote it", repair and _remove(path))


def _permissions(tree: Tree, repair: bool) -> Iterator[Finding]:
    if not tree.folder.exists():
        return
    for path in (tree.folder, *sorted(tree.folder.rglob("*"))):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue  # another process just forgot it
        if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) & 0o077:
            detail = f"others can use it ({stat.S_IMODE(mode):04o})"
            yield Finding("permissions", str(path), detail, repair and _restrict(path))


def _remove(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.unlink()
        return True
    return False


def _restrict(path: Path) -> bool:
    with contextlib.suppress(OSError):
        path.chmod(0o700 if path.is_dir() else 0o600)
        return True
    return False
