"""The store on a real file system, with real processes that write at the same time or are killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from filelock import FileLock

from tests.builders import record, start_python
from vllm_autofit.errors import MisplacedRecordError, NewerRecordError, RecordError, StoreError
from vllm_autofit.experience import locking
from vllm_autofit.experience.record import SCHEMA, Record
from vllm_autofit.experience.store import Store
from vllm_autofit.experience.upkeep import KEPT_PER_KEY

KEY = "0123456789abcdef"
RUN = "20261121T120000Z-1-aaaa"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def put(store: Store, run_id: str = RUN, key: str = KEY) -> Path:
    """Write an ordinary record."""
    return store.update(key, run_id, lambda _: record(run_id, key=key))


def run_ids(records: Iterator[Record]) -> list[str]:
    return [each["run_id"] for each in records]


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


# One process


def test_a_start_is_one_json_file_under_its_key(store: Store) -> None:
    path = put(store)
    assert path == store.folder / "starts" / KEY / f"{RUN}.json"
    assert json.loads(path.read_text()) == record(RUN)
    assert list(store.records(KEY)) == [record(RUN)]


def test_a_change_starts_from_the_record_as_it_stands(store: Store) -> None:
    seen: list[Record | None] = []

    def change(before: Record | None) -> Record:
        seen.append(before)
        return record(state="failed" if before else "serving")

    store.update(KEY, RUN, change)
    store.update(KEY, RUN, change)
    assert seen == [None, record(state="serving")]
    assert list(store.records(KEY)) == [record(state="failed")]


def test_a_change_that_raises_leaves_the_record_before_and_nothing_else(store: Store) -> None:
    path = put(store)

    def change(_: Record | None) -> Record:
        raise LookupError("changed my mind")

    with pytest.raises(LookupError):
        store.update(KEY, RUN, change)
    put(store, "20261121T120001Z-1-bbbb")
    assert run_ids(store.records(KEY)) == ["20261121T120001Z-1-bbbb", RUN]
    assert {each.suffix for each in path.parent.iterdir()} <= {".json", ""}


def test_only_the_user_can_read_a_record(store: Store) -> None:
    before = os.umask(0o022)
    try:
        path = put(store)
    finally:
        os.umask(before)
    everything = [store.folder, *store.folder.rglob("*")]
    assert {mode(each) for each in everything if each.is_dir()} == {"0o700"}
    assert {mode(each) for each in everything if each.is_file()} == {"0o600"}
    assert path in everything


def test_records_of_a_key_come_newest_first(store: Store) -> None:
    for second in (2, 0, 1):
        put(store, f"20261121T12000{second}Z-1-aaaa")
    assert [run_id[14] for run_id in run_ids(store.records(KEY))] == ["2", "1", "0"]


def test_everything_is_the_records_of_all_keys_newest_first(store: Store) -> None:
    for second, key in ((0, "a" * 16), (2, "a" * 16), (1, "b" * 16), (3, "b" * 16)):
        put(store, f"20261121T12000{second}Z-1-aaaa", key)
    assert [run_id[14] for run_id in run_ids(store.everything())] == ["3", "2", "1", "0"]
    assert len(list(store.records("a" * 16))) == 2


def test_only_the_newest_records_of_a_key_are_kept(store: Store) -> None:
    put(store, "20000101T000000Z-1-aaaa", "another")
    for number in range(KEPT_PER_KEY + 3):
        put(store, f"20261121T{number:06}Z-1-aaaa")
    kept = run_ids(store.records(KEY))
    assert kept == [f"20261121T{number:06}Z-1-aaaa" for number in range(KEPT_PER_KEY + 2, 2, -1)]
    assert run_ids(store.records("another")) == ["20000101T000000Z-1-aaaa"]


def test_reading_before_anything_was_written_finds_nothing_and_makes_no_folder(store: Store) -> None:
    assert list(store.records(KEY)) == []
    assert list(store.everything()) == []
    assert not store.folder.exists()


def test_files_that_are_not_records_are_left_alone(store: Store) -> None:
    folder = put(store).parent
    for name in ("notes.txt", f"{RUN}x.tmp", "old.damaged"):
        (folder / name).write_text("not JSON")
    assert run_ids(store.records(KEY)) == [RUN]
    assert store.skipped == []
    assert {each.name for each in folder.iterdir()} >= {"notes.txt", f"{RUN}x.tmp", "old.damaged"}


def test_a_file_beside_the_folders_of_keys_is_left_alone(store: Store) -> None:
    put(store)
    (store.starts / ".DS_Store").write_text("")
    assert run_ids(store.everything()) == [RUN]


def test_a_record_that_another_process_forgets_while_we_read_is_passed_over(store: Store) -> None:
    old, new = "20261121T120000Z-1-aaaa", "20261121T120001Z-1-aaaa"
    put(store, new)
    forgotten = put(store, old)
    reading = store.records(KEY)
    assert next(reading)["run_id"] == new
    forgotten.unlink()
    assert list(reading) == []


IMPORTS = """
import os, signal, sys, time
from pathlib import Path
from tests.builders import record
from vllm_autofit.experience.store import Store

folder, key, run_id = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
store = Store(folder)
"""

FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    store.update(key, run_id, lambda before: record(run_id, engines=[{"number": 1}] * 1000))
except Exception as error:
    print(type(error).__name__)
"""


def test_a_disk_that_is_full_is_an_error_and_leaves_the_record_before_and_nothing_else(store: Store) -> None:
    path = put(store)
    writer = start_python(IMPORTS + FULL_DISK, store.folder, KEY, RUN)
    assert writer.communicate(timeout=60) == ("StoreError\n", "")
    assert list(store.records(KEY)) == [record(RUN)]
    assert {each.name for each in path.parent.iterdir()} == {path.name}


# Damage

WHOLE = json.dumps(record()).encode()
DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n",
    "garbage": b"not JSON at all",
    "binary": bytes(range(256)) * 16,
    "zeros after a power cut": bytes(4096),
    "truncated": WHOLE[: len(WHOLE) // 2],
    "two documents": WHOLE + WHOLE,
    "a list": b"[]",
    "null": b"null",
    "an object of another kind": b"{}",
    "no schema": json.dumps({**record(), "schema": None}).encode(),
    "a schema that never was": json.dumps({**record(), "schema": 0}).encode(),
    "infinite": json.dumps(record(settings={"x": {"value": float("inf")}})).encode(),
    "a figure that overflows": json.dumps(record(settings={"x": {"value": "N"}})).replace('"N"', "1e999").encode(),
    "larger than any record": json.dumps(record(plan={"x": ["y" * 1000] * 1100})).encode(),
    "a name that leads elsewhere": json.dumps(record(RUN, key="../../etc")).encode(),
    "no outcome": json.dumps({name: each for name, each in record().items() if name != "outcome"}).encode(),
    "negative bytes": json.dumps(record(engines=[{"ranks": [{"weights_bytes": -1}]}])).encode(),
    "more bytes than there are": json.dumps(record(plan={"budget": {"free_bytes": 2**60}})).encode(),
    "bytes that are no number": json.dumps(record(plan={"budget": {"free_bytes": float("nan")}})).encode(),
    "a number of 5000 digits": json.dumps(record(plan={"x": "N"})).replace('"N"', "9" * 5000).encode(),
    "a list 100000 deep": b"[" * 100_000 + b"]" * 100_000,
    "an object 100000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a section 100000 deep": json.dumps(record(plan={"x": "N"})).encode().replace(b'"N"', b"[" * 10**5 + b"]" * 10**5),
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_is_set_aside_and_named_once_and_the_others_are_read(store: Store, content: bytes) -> None:
    put(store, "20261121T120000Z-1-aaaa")
    damaged = put(store, "20261121T120001Z-1-aaaa")
    put(store, "20261121T120002Z-1-aaaa")
    damaged.write_bytes(content)
    assert run_ids(store.records(KEY)) == ["20261121T120002Z-1-aaaa", "20261121T120000Z-1-aaaa"]
    (message,) = store.skipped
    assert str(damaged) in message
    assert "is not a readable record (" in message
    assert message.endswith("; kept as 20261121T120001Z-1-aaaa.damaged")
    assert damaged.with_suffix(".damaged").read_bytes() == content
    assert not damaged.exists()

    again = Store(store.folder)
    assert len(list(again.records(KEY))) == 2
    assert again.skipped == []


def test_a_section_deeper_than_python_recurses_is_damage(store: Store) -> None:
    path = put(store)
    path.write_text(json.dumps(record(plan={"x": "N"})).replace('"N"', '{"a":' * 1100 + "1" + "}" * 1100))
    assert list(store.records(KEY)) == []
    assert len(store.skipped) == 1


def test_a_record_that_is_damaged_twice_is_kept_twice(store: Store) -> None:
    for content in ("first damage", "second damage"):
        put(store).write_text(content)
        assert list(store.records(KEY)) == []
    kept = [path.read_text() for path in (store.starts / KEY).iterdir() if ".damaged" in path.name]
    assert sorted(kept) == ["first damage", "second damage"]


def test_reading_everything_sets_damage_aside_too(store: Store) -> None:
    put(store, key="a" * 16).write_text("")
    put(store, key="b" * 16).write_text("")
    assert list(store.everything()) == []
    assert list(store.everything()) == []
    assert len(store.skipped) == 2


def test_a_damaged_record_is_never_written_over(store: Store) -> None:
    path = put(store)
    path.write_text("damage")
    put(store)
    assert path.with_suffix(".damaged").read_text() == "damage"
    assert list(store.records(KEY)) == [record(RUN)]


PLANTED = {
    "a folder": lambda path: path.mkdir(),
    "a pipe that nobody writes to": lambda path: os.mkfifo(path),
    "a device that never ends": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED.keys())
def test_what_is_no_file_is_damage_and_neither_waited_for_nor_read(store: Store, plant: Callable[[Path], None]) -> None:
    put(store)
    plant(store.path(KEY, "20261121T120001Z-1-aaaa"))
    assert run_ids(store.records(KEY)) == [RUN]
    assert "it is no regular file" in store.skipped[0]
    assert store.path(KEY, "20261121T120001Z-1-aaaa").with_suffix(".damaged").exists()


def test_a_record_that_was_mended_while_we_looked_is_used(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store)
    path.write_text("half a rec")
    real_lock = store._lock

    def lock(key: str, run_id: str) -> AbstractContextManager[None]:
        path.write_text(json.dumps(record(RUN)))
        return real_lock(key, run_id)

    monkeypatch.setattr(store, "_lock", lock)
    assert list(store.records(KEY)) == [record(RUN)]
    assert store.skipped == []


def test_a_record_under_another_start_or_key_is_passed_over_and_left(store: Store) -> None:
    path = put(store)
    copy = store.path(KEY, "20261121T120001Z-1-aaaa")
    copy.write_bytes(path.read_bytes())
    assert run_ids(store.records(KEY)) == [RUN]
    (message,) = store.skipped
    assert f"{KEY}/{RUN}" in message
    assert copy.read_bytes() == path.read_bytes()


def test_a_record_is_not_filed_under_another_start_or_key(store: Store) -> None:
    put(store)
    for wrong in (record("another"), record(RUN, key="another")):
        with pytest.raises(MisplacedRecordError):
            store.update(KEY, RUN, lambda _, wrong=wrong: wrong)  # type: ignore[misc]
    assert list(store.records(KEY)) == [record(RUN)]


def test_what_is_no_record_is_not_written(store: Store) -> None:
    put(store)
    with pytest.raises(RecordError, match="its outcome is"):
        store.update(KEY, RUN, lambda _: record(RUN, state="happy"))
    with pytest.raises(RecordError, match="more than"):
        store.update(KEY, RUN, lambda _: record(RUN, plan={"x": ["y" * 1000] * 1100}))
    assert list(store.records(KEY)) == [record(RUN)]
    assert len(list(store.path(KEY, RUN).parent.iterdir())) == 1


# Other schemas


def test_a_record_of_a_newer_version_is_passed_over_and_never_touched(store: Store) -> None:
    put(store)
    newer = store.path(KEY, "20261121T120001Z-1-aaaa")
    newer.write_text(json.dumps({"schema": SCHEMA + 1, "run_id": newer.stem, "all": "else is different"}))
    before = newer.read_bytes()
    assert run_ids(store.records(KEY)) == run_ids(store.everything()) == [RUN]
    (message,) = store.skipped
    assert str(newer) in message
    assert "a newer version wrote it" in message
    with pytest.raises(NewerRecordError):
        put(store, newer.stem)
    assert newer.read_bytes() == before
    assert {each.name for each in newer.parent.iterdir()} == {newer.name, f"{RUN}.json"}


def test_an_older_record_is_read_as_if_it_were_new_and_rewritten_with_the_next_change(store: Store) -> None:
    path = put(store)
    path.write_text(json.dumps({**record(RUN), "schema": 1}))
    before = path.read_bytes()
    assert list(store.records(KEY)) == [record(RUN)]
    assert path.read_bytes() == before
    store.update(KEY, RUN, lambda found: found or {})
    assert json.loads(path.read_text()) == record(RUN)


# The clock


def test_after_the_clock_went_back_new_starts_still_sort_last(store: Store) -> None:
    ahead = "29991231T235959Z-1-aaaa"
    put(store, ahead)
    first = store.new_run_id(KEY)
    put(store, first)
    second = store.new_run_id(KEY)
    put(store, second)
    assert run_ids(store.records(KEY)) == [second, first, ahead]
    assert first.startswith("30000101T000000Z-")


def test_a_start_has_the_time_in_its_name_where_the_clock_did_not_go_back(store: Store) -> None:
    put(store, "20200101T000000Z-1-aaaa")
    assert abs(float(store.new_run_id(KEY)[:8]) - float(time.strftime("%Y%m%d", time.gmtime()))) <= 1


def test_no_name_is_too_odd_to_follow(store: Store) -> None:
    for odd in ("99991231T235959Z-1-aaaa", "zzzz", "20269999T999999Z-1-aaaa"):
        put(store, odd)
    assert store.new_run_id(KEY)


def test_a_new_start_stays_even_if_its_name_is_the_oldest(store: Store) -> None:
    for number in range(KEPT_PER_KEY):
        put(store, f"20261121T{number:06}Z-1-aaaa")
    old = "20000101T000000Z-1-aaaa"
    put(store, old)
    assert old in run_ids(store.records(KEY))


def test_a_folder_that_can_not_be_read_still_gives_a_name(no_folder: Store) -> None:
    assert no_folder.new_run_id(KEY)


# Forgetting


def test_forgotten_starts_are_gone_and_the_others_stay(store: Store) -> None:
    kept, gone, elsewhere = (f"20261121T12000{second}Z-1-aaaa" for second in (0, 1, 2))
    for run_id in (kept, gone):
        put(store, run_id)
    put(store, elsewhere, "b" * 16)
    assert store.forget([gone, elsewhere, "never was"]) == 2
    assert run_ids(store.everything()) == [kept]
    assert [each.name for each in store.starts.iterdir()] == [KEY]
    assert store.forget([gone]) == 0


# A folder that can't be used


@pytest.fixture
def no_folder(tmp_path: Path) -> Store:
    """A store below a regular file, where not even root can make a folder."""
    (tmp_path / "file").write_text("here first")
    return Store(tmp_path / "file" / "cache")


def test_a_folder_that_can_not_be_made_is_an_error_with_the_path_the_reason_and_the_remedy(no_folder: Store) -> None:
    with pytest.raises(StoreError) as caught:
        put(no_folder)
    assert caught.value.path == str(no_folder.path(KEY, RUN))
    assert "Not a directory" in caught.value.reason
    assert caught.value.reason in str(caught.value)
    assert "VLLM_AUTOFIT_CACHE_DIR" in str(caught.value)


def test_a_folder_that_can_not_be_read_is_an_error(no_folder: Store) -> None:
    with pytest.raises(StoreError, match="Not a directory"):
        list(no_folder.records(KEY))
    with pytest.raises(StoreError, match="Not a directory"):
        list(no_folder.everything())


def test_a_cache_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("here first")
    with pytest.raises(StoreError):
        put(Store(file))
    assert file.read_text() == "here first"


def test_a_lock_that_is_held_too_long_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(store)
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0.1)
    (lock,) = (store.folder / "locks").iterdir()
    with FileLock(lock), pytest.raises(StoreError, match="lock"):
        put(store)
    assert list(store.records(KEY)) == [record(RUN)], "reading needs no lock"
    assert path.exists()


# Several processes

ADD_ENGINES = (
    IMPORTS
    + """
name, count = sys.argv[4], int(sys.argv[5])

def add(number):
    def change(before):
        before = before or record(run_id)
        before["engines"].append({"by": name, "number": number})
        return before
    store.update(key, run_id, change)

print("ready", flush=True)
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(count):
    add(number)
"""
)


def test_processes_that_add_to_one_record_at_the_same_time_lose_nothing(store: Store) -> None:
    store.folder.mkdir()
    writers, additions = 5, 25
    processes = [
        start_python(ADD_ENGINES, store.folder, KEY, RUN, f"writer {number}", additions) for number in range(writers)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (store.folder / "go").touch()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")

    (only,) = store.records(KEY)
    added = [(engine["by"], engine["number"]) for engine in only["engines"]]
    assert sorted(added) == sorted((f"writer {n}", m) for n in range(writers) for m in range(additions))
    for number in range(writers):
        assert [m for name, m in added if name == f"writer {number}"] == list(range(additions))


WRITE_FOREVER = (
    IMPORTS
    + """
number = 0
while True:
    number += 1
    store.update(key, run_id, lambda _: record(run_id, engines=[{"number": number}] * 5_000))
"""
)


def test_a_writer_that_is_killed_at_any_moment_leaves_a_whole_record_and_no_lock(store: Store) -> None:
    path = store.path(KEY, RUN)
    for attempt in range(8):
        path.unlink(missing_ok=True)
        writer = start_python(WRITE_FOREVER, store.folder, KEY, RUN)
        try:
            wait_for(path)
            time.sleep(attempt * 0.0037)
        finally:
            writer.send_signal(signal.SIGKILL)
            _, errors = writer.communicate(timeout=60)
        assert (writer.returncode, errors) == (-signal.SIGKILL, "")
        (left,) = store.records(KEY)
        assert store.skipped == []
        assert left["engines"] == [left["engines"][0]] * 5_000
        put(store)
        assert list(store.records(KEY)) == [record(RUN)]


def test_a_reader_never_sees_half_a_record(store: Store) -> None:
    path = store.path(KEY, RUN)
    writer = start_python(WRITE_FOREVER, store.folder, KEY, RUN)
    try:
        wait_for(path)
        seen = set()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            (left,) = store.records(KEY)
            assert left["engines"] == [left["engines"][0]] * 5_000
            seen.add(left["engines"][0]["number"])
    finally:
        writer.kill()
        writer.communicate(timeout=60)
    assert len(seen) > 1


DIE_IN_CHANGE = (
    IMPORTS
    + """
store.update(key, run_id, lambda before: os.kill(os.getpid(), signal.SIGKILL))
"""
)
DIE_BEFORE_REPLACING = (
    IMPORTS
    + """
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
store.update(key, run_id, lambda before: record(run_id, state="failed"))
"""
)


@pytest.mark.parametrize("script", [DIE_IN_CHANGE, DIE_BEFORE_REPLACING], ids=["in the change", "before replacing"])
def test_a_writer_that_dies_half_way_leaves_the_record_before(store: Store, script: str) -> None:
    put(store)
    writer = start_python(script, store.folder, KEY, RUN)
    _, errors = writer.communicate(timeout=60)
    assert (writer.returncode, errors) == (-signal.SIGKILL, "")
    assert list(store.records(KEY)) == [record(RUN)]
    store.update(KEY, RUN, lambda _: record(RUN, state="failed"))
    assert list(store.records(KEY)) == [record(RUN, state="failed")]


def wait_for(path: Path) -> None:
    """Until another process has made a file."""
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name} was written"
        time.sleep(0.001)
