"""Read-only layers below the user's own records, and records that travel in one file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders import record
from vllm_autofit.errors import NewerRecordError, RecordError
from vllm_autofit.experience.exchange import FORMAT, checked
from vllm_autofit.experience.record import Record
from vllm_autofit.experience.store import RELATED_KEYS, RELATED_PER_KEY, Store
from vllm_autofit.experience.tree import MEMBERS_READ

KEY = "0123456789abcdef"
GROUP = "device-0123456789abcdef"


def run(second: int) -> str:
    return f"20261121T{120000 + second:06}Z-1-aaaa"


def put(store: Store, second: int = 0, key: str = KEY, **sections: Any) -> Path:
    sections.setdefault("identity", {"model": "m", "devices": [], "groups": {"device": GROUP}})
    return store.update(key, run(second), lambda _: record(run(second), key=key, **sections))


def seconds(records: Any) -> list[int]:
    return [int(each["run_id"][9:15]) - 120000 for each in records]


def snapshot(folder: Path) -> dict[str, tuple[float, bytes]]:
    return {str(each): (each.stat().st_mtime_ns, each.read_bytes()) for each in folder.rglob("*") if each.is_file()}


def as_folder(store: Store, place: Path) -> Path:
    return store.folder


def as_file(store: Store, place: Path) -> Path:
    place.write_text(json.dumps(store.export(store.everything())))
    return place


Layer = Callable[[Store, Path], Path]


@pytest.fixture(params=[as_folder, as_file])
def layer(request: pytest.FixtureRequest) -> Layer:
    chosen: Layer = request.param
    return chosen


@pytest.fixture
def team(tmp_path: Path) -> Store:
    return Store(tmp_path / "team")


def test_records_of_all_layers_come_newest_first_and_say_that_they_are_not_ours(
    tmp_path: Path, team: Store, layer: Layer
) -> None:
    for second in (1, 3):
        put(team, second)
    put(team, 4, "b" * 16)
    store = Store(tmp_path / "own", [layer(team, tmp_path / "team.json")])
    put(store, 2)
    found = list(store.records(KEY))
    assert seconds(found) == [3, 2, 1]
    assert [each.get("imported", False) for each in found] == [True, False, True]
    assert [store.origin(each) for each in found] == ["layer", "own", "layer"]
    assert seconds(store.everything()) == [4, 3, 2, 1]
    assert store.skipped == []


def test_nothing_is_written_into_a_layer(tmp_path: Path, team: Store, layer: Layer) -> None:
    put(team, 1)
    put(team, 2).write_text("damage")
    path = team.folder
    if layer is as_file:
        path = tmp_path / "team.json"
        path.write_text(json.dumps({FORMAT: 1, "records": [record(run(1)), {"run_id": run(2), "key": KEY}]}))
    before = snapshot(tmp_path)
    store = Store(tmp_path / "own", [path])
    assert seconds(store.records(KEY)) == seconds(store.everything()) == [1]
    assert seconds(store.related(GROUP)) == ([1] if layer is as_folder else [])
    assert store.pinned(KEY) is None
    assert snapshot(tmp_path) == before
    (message,) = store.skipped
    assert str(path) in message
    assert "kept as" not in message


def test_ones_own_record_of_a_start_counts_then_that_of_the_first_layer(tmp_path: Path, team: Store) -> None:
    other = Store(tmp_path / "other")
    for second in (1, 2):
        put(team, second, plan={"by": "team"})
        put(other, second, plan={"by": "other"})
    put(other, 3, plan={"by": "other"})
    store = Store(tmp_path / "own", [team.folder, other.folder])
    put(store, 1, plan={"by": "me"})
    assert [each["plan"]["by"] for each in store.records(KEY)] == ["other", "team", "me"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"vllm_autofit_export": 99, "records": []}', '{"a"'])
def test_a_layer_that_is_none_is_one_message_and_the_rest_is_used(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    store = Store(tmp_path / "own", [tmp_path / "bad.json", tmp_path / "missing"])
    put(store, 1)
    assert seconds(store.records(KEY)) == seconds(store.everything()) == [1]
    assert list(store.related("none")) == []
    assert store.pinned(KEY) is None
    assert len(store.skipped) == 2
    assert (tmp_path / "bad.json").read_text() == content


def test_ones_own_pin_counts_then_that_of_a_layer(tmp_path: Path, team: Store, layer: Layer) -> None:
    put(team)
    team.pin(KEY, {"max_num_seqs": 8}, "from the team")
    store = Store(tmp_path / "own", [layer(team, tmp_path / "team.json")])
    assert (store.pinned(KEY) or {})["note"] == "from the team"
    store.pin(KEY, {"max_num_seqs": 9}, "mine")
    assert (store.pinned(KEY) or {})["note"] == store.pins()[KEY]["note"] == "mine"
    assert not Store(tmp_path / "none", [team.folder]).unpin(KEY)


# Related starts


def test_related_starts_are_the_newest_of_the_newest_keys(tmp_path: Path, team: Store, layer: Layer) -> None:
    for number in range(RELATED_KEYS + 2):
        for second in range(RELATED_PER_KEY + 1):
            put(team, 10 * number + second, f"{number:016}")
    put(team, 500, "unrelated", identity={"devices": []})
    store = Store(tmp_path / "own", [layer(team, tmp_path / "team.json")])
    put(store, 55)
    put(store, 11, f"{0:016}")
    expected = [second for number in range(9, 5, -1) for second in (10 * number + 2, 10 * number + 1)]
    assert seconds(store.related(GROUP, 5)) == [*expected, 55]
    assert len(list(store.related(GROUP))) == (RELATED_KEYS - 1) * RELATED_PER_KEY + 1
    assert list(store.related("device-none")) == []


def test_a_start_can_be_put_in_groups_that_its_record_does_not_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.update(KEY, run(1), lambda _: record(run(1)), groups=["model-a", "device-b"])
    assert seconds(store.related("model-a")) == seconds(store.related("device-b")) == [1]
    assert (tmp_path / "groups" / "model-a" / KEY).stat().st_mode & 0o777 == 0o600


def test_a_group_keeps_the_keys_that_were_used_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(MEMBERS_READ + 3):
        put(store, number, f"{number:016}")
    assert len(list((tmp_path / "groups" / GROUP).iterdir())) <= MEMBERS_READ + 1
    assert seconds(store.related(GROUP, 3)) == [MEMBERS_READ + 2, MEMBERS_READ + 1, MEMBERS_READ]


def test_a_key_whose_starts_are_forgotten_is_related_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, 1)
    put(store, 2, "b" * 16)
    store.forget([run(2)])
    assert seconds(store.related(GROUP)) == [1]


# Export and import


def test_a_second_machine_starts_with_what_the_first_knew(tmp_path: Path, team: Store) -> None:
    for second in (1, 2, 3):
        put(team, second)
    team.pin(KEY, {"max_num_seqs": 8})
    document = json.loads(json.dumps(team.export(team.everything())))
    second_machine = Store(tmp_path / "second")
    put(second_machine, 2, plan={"by": "me"})

    assert second_machine.merge(*checked(document, "export")) == (2, 0, 1)
    found = list(second_machine.records(KEY))
    assert seconds(found) == [3, 2, 1]
    assert [second_machine.origin(each) for each in found] == ["imported", "own", "imported"]
    assert [{**each, "imported": None} for each in found if "imported" in each] == [
        {**each, "imported": None} for each in team.records(KEY) if each["run_id"] != run(2)
    ]
    assert (second_machine.pinned(KEY) or {})["settings"] == {"max_num_seqs": 8}
    assert seconds(second_machine.related(GROUP)) == [3, 2]
    assert second_machine.merge(*checked(document, "export")) == (0, 0, 3)


def test_importing_does_not_replace_a_pin(tmp_path: Path, team: Store) -> None:
    put(team)
    team.pin(KEY, {"max_num_seqs": 8})
    store = Store(tmp_path / "own")
    store.pin(KEY, {"max_num_seqs": 9})
    store.merge(*checked(team.export(team.everything()), "export"))
    assert (store.pinned(KEY) or {})["settings"] == {"max_num_seqs": 9}


def test_of_several_copies_of_a_start_the_one_that_served_longest_stays(tmp_path: Path) -> None:
    short, long = (
        record(run(1), engines=[{"serving": {"requests": 1, "seconds": seconds_served}}]) for seconds_served in (10, 20)
    )
    store = Store(tmp_path)
    assert store.merge([short, long, short], []) == (1, 0, 2)
    (found,) = store.records(KEY)
    assert found == {**long, "imported": True}


def test_what_a_newer_version_wrote_is_left_as_it_is_and_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = put(store, 1)
    path.write_text(newer := json.dumps({**json.loads(path.read_text()), "schema": 99}))
    assert store.merge([record(run(1))], []) == (0, 0, 1)
    assert path.read_text() == newer
    assert len(store.skipped) == 1


def test_a_damaged_record_is_set_aside_for_a_sound_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = put(store, 1)
    path.write_text("{")
    assert store.merge([record(run(1))], []) == (1, 0, 0)
    assert [each["run_id"] for each in store.records(KEY)] == [run(1)]
    assert path.with_suffix(".damaged").read_text() == "{"


WRONG: dict[str, tuple[object, str]] = {
    "no object": ([], "the document is .* no export"),
    "another object": ({"records": []}, "no export"),
    "another version": ({FORMAT: 0, "records": []}, f"{FORMAT} is 0"),
    "no list": ({FORMAT: 1, "records": {}}, "no list"),
    "pins that are no list": ({FORMAT: 1, "records": [], "pins": {}}, "no list"),
    "an entry": ({FORMAT: 1, "records": [record(), {}]}, r"the document, record 2 .*schema is None"),
    "an impossible figure": ({FORMAT: 1, "records": [record(plan={"own_bytes": -1})]}, "record 1 .*own_bytes is -1"),
    "a name that leads elsewhere": ({FORMAT: 1, "records": [record(key="../../x")]}, "can't name a file"),
    "a pin": ({FORMAT: 1, "records": [record()], "pins": [{}]}, "pin 1"),
}


@pytest.mark.parametrize(("document", "problem"), WRONG.values(), ids=WRONG.keys())
def test_a_document_with_anything_wrong_is_refused_whole(document: object, problem: str) -> None:
    with pytest.raises(RecordError, match=problem):
        checked(document, "the document")


def test_a_document_of_a_newer_version_is_told_from_a_wrong_one() -> None:
    newer: list[Any] = [{FORMAT: 2}, {FORMAT: 1, "records": [{**record(), "schema": 99}]}]
    for document in newer:
        with pytest.raises(NewerRecordError):
            checked(document, "the document")


def test_secrets_do_not_travel(team: Store) -> None:
    put(team)
    found: Record = {**next(team.records(KEY)), "plan": {"note": "hf_AbCdEfGhIjKlMnOpQrStUvWx"}}
    assert "AbCd" not in json.dumps(team.export([found]))
