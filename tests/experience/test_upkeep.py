"""What is forgotten by itself, and when."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest

from tests.builders import record
from vllm_autofit.experience import upkeep
from vllm_autofit.experience.store import Store
from vllm_autofit.experience.upkeep import DAY, KEPT_DAYS

GROUPS = {"device": "device-a"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def put(store: Store, run_id: str, key: str = "a" * 16) -> Path:
    return store.update(key, run_id, lambda _: record(run_id, key=key, identity={"devices": [], "groups": GROUPS}))


def run_id(days_ago: float, now: float | None = None) -> str:
    moment = datetime.datetime.fromtimestamp((now or time.time()) - days_ago * DAY, datetime.timezone.utc)
    return moment.strftime("%Y%m%dT%H%M%SZ-1-aaaa")


def swept(store: Store, days_ago: float) -> None:
    """As if the last sweep had been then."""
    marker = store.folder / ".swept"
    marker.touch()
    os.utime(marker, (time.time() - days_ago * DAY,) * 2)


def names(store: Store) -> set[str]:
    return {path.stem for path in store.starts.rglob("*.json")}


def test_what_is_older_than_is_kept_goes_with_the_next_sweep(store: Store) -> None:
    old, young, new = run_id(KEPT_DAYS + 3), run_id(KEPT_DAYS - 3), run_id(0)
    put(store, old, "b" * 16)
    put(store, young)
    swept(store, 1.1)
    put(store, new)
    assert names(store) == {young, new}
    assert not (store.starts / ("b" * 16)).exists()
    assert not (store.folder / "groups" / "device-a" / ("b" * 16)).exists()


def test_there_is_one_sweep_a_day(store: Store) -> None:
    old = run_id(KEPT_DAYS + 3)
    put(store, old)
    put(store, run_id(0.1))
    swept(store, 0.9)
    put(store, run_id(0))
    assert old in names(store)


def test_a_name_that_does_not_say_when_is_not_too_old(store: Store) -> None:
    put(store, "somebodys-own-name")
    swept(store, 2)
    put(store, run_id(0))
    assert "somebodys-own-name" in names(store)


def test_a_clock_that_jumps_ahead_for_a_start_forgets_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, run_id(1))
    future = time.time() + 3650 * DAY
    monkeypatch.setattr(time, "time", lambda: future)
    put(store, run_id(0, future))
    assert len(names(store)) == 2


def test_a_clock_that_jumped_back_does_not_stop_the_sweeps(store: Store) -> None:
    put(store, run_id(KEPT_DAYS + 5))
    swept(store, -3650)
    put(store, run_id(0))
    assert len(names(store)) == 1
    assert abs((store.folder / ".swept").stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("limit", ["KEPT_RECORDS", "KEPT_BYTES"])
def test_the_newest_of_too_many_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    size = put(store, run_id(5)).stat().st_size
    for days in (4, 3, 2):
        put(store, run_id(days), f"key-{days}")
    monkeypatch.setattr(upkeep, limit, 3 if limit == "KEPT_RECORDS" else 3.5 * size)
    swept(store, 2)
    new = run_id(0)
    put(store, new, "another")
    assert len(names(store)) == 3
    assert new in names(store)


def test_leftovers_of_killed_writers_go_when_nobody_can_be_writing_them(store: Store) -> None:
    folder = put(store, run_id(1)).parent
    old, young = folder / "x.tmp", folder / "y.tmp"
    for path in (old, young):
        path.write_text("half a rec")
    os.utime(old, (time.time() - 2 * DAY,) * 2)
    swept(store, 3)
    put(store, run_id(0))
    assert (old.exists(), young.exists()) == (False, True)


def test_what_is_set_aside_stays(store: Store) -> None:
    damaged = put(store, run_id(KEPT_DAYS + 9)).with_suffix(".damaged")
    damaged.write_text("damage")
    swept(store, 3)
    put(store, run_id(0), "another")
    assert damaged.read_text() == "damage"
