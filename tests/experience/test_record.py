"""What a record must hold to be used, and what ``check`` says of one that doesn't."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.builders import GIB, record
from vllm_autofit.errors import RecordError
from vllm_autofit.experience.lessons import lessons_from
from vllm_autofit.experience.record import LARGEST_BYTES, SCHEMA, STATES, Record, check, new_run_id, now
from vllm_autofit.render.history import record_account, record_table

SECTIONS = ("run_id", "key", "started_at", "identity", "settings", "plan", "engines", "outcome")


@pytest.mark.parametrize("state", STATES)
def test_a_record_passes_as_it_is(state: str) -> None:
    document = record(state=state)
    before = repr(document)
    assert check(document, "x.json") is document
    assert repr(document) == before


def test_what_another_version_added_is_kept() -> None:
    document = record(invented_later={"nested": [1, 2]}, identity={"devices": [], "colour": "blue"})
    assert check(document, "x.json")["invented_later"] == {"nested": [1, 2]}


@pytest.mark.parametrize("document", [None, [], "text", 1, True])
def test_only_an_object_is_a_record(document: object) -> None:
    with pytest.raises(RecordError, match=r"^x\.json is not a readable record \(it holds no JSON object\)$"):
        check(document, "x.json")


@pytest.mark.parametrize("schema", [None, 0, 2, "1", [1]])
def test_another_schema_is_not_read(schema: object) -> None:
    with pytest.raises(RecordError, match=rf"its schema is .*, this version reads {SCHEMA}"):
        check({**record(), "schema": schema}, "x.json")


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("damage", ["missing", "null", "another type"])
def test_a_section_that_is_missing_or_of_another_type_is_named(name: str, damage: str) -> None:
    document = record()
    if damage == "missing":
        del document[name]
    else:
        document[name] = None if damage == "null" else 17
    with pytest.raises(RecordError, match=f"'{name}' is (missing|not a (str|dict|list))"):
        check(document, "x.json")


@pytest.mark.parametrize("outcome", [{}, {"state": None}, {"state": "happy"}, {"state": ["serving"]}])
def test_an_unknown_outcome_is_not_read(outcome: dict[str, Any]) -> None:
    with pytest.raises(RecordError, match=r"its outcome is|'state' is"):
        check(record(outcome=outcome), "x.json")


@pytest.mark.parametrize("value", [0, 1, 80 * GIB, LARGEST_BYTES, None])
def test_a_possible_number_of_bytes_or_null_is_read(value: int | None) -> None:
    assert check(record(engines=[{"ranks": [{"weights_bytes": value}]}]), "x.json")


@pytest.mark.parametrize("value", [-1, LARGEST_BYTES + 1, 10**400, 1.5, float("nan"), True, "12", "1 GiB"])
@pytest.mark.parametrize(
    "place",
    [
        lambda value: {"identity": {"devices": [{"index": 0, "free_bytes": value}]}},
        lambda value: {"engines": [{"ranks": [{}, {"before": {"free_bytes": value}}]}]},
        lambda value: {"plan": {"budget": {"free_bytes": value}}},
        lambda value: {"outcome": {"state": "failed", "failure": {"numbers": {"free_bytes": value}}}},
        lambda value: {"engines": [{"free_bytes": [1, value]}]},
        lambda value: {"invented_later": {"free_bytes": value}},
    ],
    ids=["devices", "ranks", "plan", "failure", "list", "unknown section"],
)
def test_an_impossible_number_of_bytes_is_named_wherever_it_stands(
    place: Callable[[object], dict[str, Any]], value: object
) -> None:
    with pytest.raises(RecordError, match="free_bytes is "):
        check({**record(), **place(value)}, "x.json")


def test_figures_that_are_not_bytes_may_be_anything() -> None:
    assert check(record(settings={"cpu_offload_gb": {"value": -1.5}}), "x.json")


def test_the_error_holds_the_file_and_the_reason() -> None:
    with pytest.raises(RecordError) as caught:
        check([], "/somewhere/x.json")
    assert caught.value.path == "/somewhere/x.json"
    assert caught.value.reason == "it holds no JSON object"


HALF_RIGHT: dict[str, dict[str, Any]] = {
    "devices are null": {"identity": {"devices": None}},
    "a device is a number": {"identity": {"devices": [0]}},
    "a device's index is a list": {"identity": {"devices": [{"index": [], "free_bytes": GIB}]}},
    "free bytes are an object": {
        "identity": {"devices": [{"index": 0, "free_bytes": {}}]},
        "engines": [{"ranks": [{"device_index": 0, "before": {"free_bytes": GIB}}]}],
    },
    "an engine is a number": {"engines": [0]},
    "ranks are null": {"engines": [{"ranks": None}]},
    "a rank is text": {"engines": [{"ranks": ["0"]}]},
    "a KV cache has tokens only": {"engines": [{"kv_cache": {"tokens": 1}}]},
    "a KV cache is a number": {"engines": [{"kv_cache": 1}]},
    "a failure is text": {"outcome": {"state": "failed", "failure": "it failed"}},
    "a setting is bare": {"settings": {"gpu_memory_utilization": 0.9}},
    "a decision lacks its parts": {"plan": {"decisions": [{}]}},
    "decisions are null": {"plan": {"decisions": None}},
}


@pytest.mark.parametrize("sections", HALF_RIGHT.values(), ids=HALF_RIGHT.keys())
def test_what_passes_can_be_used_without_further_looks(sections: dict[str, Any]) -> None:
    document: Record = record(**sections)
    try:
        check(document, "x.json")
    except RecordError:
        return
    lessons_from([document])
    record_table([document])
    record_account(document)


def test_run_ids_name_time_and_process_and_are_fit_for_a_file_name() -> None:
    run_id = new_run_id()
    assert re.fullmatch(rf"\d{{8}}T\d{{6}}Z-{os.getpid()}-[0-9a-f]{{4}}", run_id)
    stamp = datetime.datetime.strptime(run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=datetime.timezone.utc)
    assert abs(datetime.datetime.now(datetime.timezone.utc) - stamp) < datetime.timedelta(minutes=1)


def test_starts_of_one_process_within_a_second_have_different_run_ids() -> None:
    assert len({new_run_id() for _ in range(5)}) > 1


def test_now_is_utc_to_the_second() -> None:
    moment = datetime.datetime.fromisoformat(now())
    assert moment.utcoffset() == datetime.timedelta(0)
    assert moment.microsecond == 0
    assert abs(datetime.datetime.now(datetime.timezone.utc) - moment) < datetime.timedelta(minutes=1)
