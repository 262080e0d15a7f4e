"""What ``check`` finds in a folder, and what it does about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import record
from vllm_autofit.errors import StoreError
from vllm_autofit.experience.record import SCHEMA
from vllm_autofit.experience.store import Store

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
RUN, ANOTHER = "20261121T120000Z-1-aaaa", "20261121T120001Z-1-aaaa"
GROUP = "device-a"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "cache")
    identity = {"devices": [], "groups": {"device": GROUP}}
    store.update(KEY, RUN, lambda _: record(RUN, identity=identity))
    store.pin(KEY, {"max_num_seqs": 8})
    return store


def test_a_sound_folder_has_no_findings(store: Store) -> None:
    assert store.check() == []
    assert store.check(repair=True) == []


def test_a_folder_that_is_not_there_has_none_either(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").check() == []
    assert not (tmp_path / "none").exists()


def test_a_folder_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "x").check()


def damage(store: Store) -> Path:
    path = store.path(KEY, ANOTHER)
    path.write_text("half a rec")
    return path


def wrong_key(store: Store) -> Path:
    path = store.path(KEY, ANOTHER)
    path.write_text(json.dumps(record(ANOTHER, key=OTHER)))
    return path


def wrong_name(store: Store) -> Path:
    path = store.path(KEY, "copy")
    path.write_text(json.dumps(record(ANOTHER)))
    return path


def copied(store: Store) -> Path:
    path = store.path(KEY, "copy")
    path.write_bytes(store.path(KEY, RUN).read_bytes())
    return path


def readable_by_others(store: Store) -> Path:
    path = store.path(KEY, RUN)
    path.chmod(0o644)
    return path


def writable_by_others(store: Store) -> Path:
    path = store.starts / KEY
    path.chmod(0o777)
    return path


def leftover(store: Store) -> Path:
    path = store.starts / KEY / "x.tmp"
    path.write_text("half a rec")
    return path


def dangling(store: Store) -> Path:
    path = store.folder / "groups" / GROUP / OTHER
    path.touch()
    return path


def missing(store: Store) -> Path:
    path = store.folder / "groups" / GROUP / KEY
    path.unlink()
    return path


def damaged_pin(store: Store) -> Path:
    path = store.folder / "pins" / f"{OTHER}.json"
    path.write_text("{}")
    return path


CASES: dict[str, tuple[Callable[[Store], Path], str]] = {
    "damaged": (damage, "damaged"),
    "under another key": (wrong_key, "wrong place"),
    "under another name": (wrong_name, "wrong place"),
    "a copy": (copied, "wrong place"),
    "readable by others": (readable_by_others, "permissions"),
    "writable by others": (writable_by_others, "permissions"),
    "leftover": (leftover, "leftover"),
    "dangling": (dangling, "dangling group marker"),
    "missing": (missing, "missing group marker"),
    "a damaged pin": (damaged_pin, "damaged"),
}


@pytest.mark.parametrize(("spoil", "problem"), CASES.values(), ids=CASES.keys())
def test_what_is_wrong_is_found_and_put_right_and_no_record_is_lost(
    store: Store, spoil: Callable[[Store], Path], problem: str
) -> None:
    path = spoil(store)
    for each in store.folder.rglob("*"):  # what the test made itself isn't what is looked for
        if each != path and each.is_file():
            each.chmod(0o600)
    if problem != "permissions" and path.exists():
        path.chmod(0o600)
    before = {each.read_bytes() for each in store.folder.rglob("*") if each.suffix in (".json", ".damaged")}

    (found,) = store.check()
    assert (found.problem, found.path, found.repaired) == (problem, str(path), False)
    assert found.detail
    (repaired,) = store.check(repair=True)
    assert (repaired.problem, repaired.path, repaired.repaired) == (problem, str(path), True)
    assert store.check() == []
    after = {each.read_bytes() for each in store.folder.rglob("*") if each.suffix in (".json", ".damaged")}
    assert after == before


def test_a_record_in_the_wrong_place_is_read_again_once_it_is_moved(store: Store) -> None:
    wrong_key(store)
    assert list(store.records(OTHER)) == []
    store.check(repair=True)
    assert [each["run_id"] for each in store.records(OTHER)] == [ANOTHER]


def test_a_newer_record_is_named_and_left(store: Store) -> None:
    path = store.path(KEY, ANOTHER)
    path.write_text(json.dumps({"schema": SCHEMA + 1}))
    path.chmod(0o600)
    for repair in (True, False):
        (found,) = store.check(repair)
        assert (found.problem, found.repaired) == ("newer schema", False)
    assert json.loads(path.read_text()) == {"schema": SCHEMA + 1}
