"""What a record must hold to be used, and what ``check`` says of one that doesn't."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, record
from vllm_autofit.errors import NewerRecordError, RecordError
from vllm_autofit.experience.lessons import lessons_from
from vllm_autofit.experience.record import (
    DEEPEST,
    LARGEST_BYTES,
    SCHEMA,
    STATES,
    TEXT_LIMIT,
    Record,
    check,
    new_run_id,
    now,
    presentable,
    redact,
)


def deep(levels: int) -> Any:
    """A list in a list in a list."""
    return [deep(levels - 1)] if levels else []


def nest(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists and objects of ``children``."""
    return st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)


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


@pytest.mark.parametrize("schema", [None, 0, -1, True, 1.0, "1", [1], [[[[[[[[[1]]]]]]]]]])
def test_a_schema_that_never_was_is_damage(schema: object) -> None:
    with pytest.raises(RecordError, match=rf"its schema is .*, this version reads 1 to {SCHEMA}") as caught:
        check({**record(), "schema": schema}, "x.json")
    assert not isinstance(caught.value, NewerRecordError)


def test_a_newer_schema_is_told_from_damage_whatever_else_is_different() -> None:
    with pytest.raises(NewerRecordError, match=f"its schema is {SCHEMA + 1}, this version reads up to {SCHEMA}"):
        check({"schema": SCHEMA + 1, "free_bytes": -1}, "x.json")


def test_an_older_record_lacks_only_what_may_be_missing() -> None:
    old = {**record(), "schema": 1}
    assert check(old, "x.json") == record()
    assert old["schema"] == 1


@pytest.mark.parametrize("name", ["run_id", "key"])
@pytest.mark.parametrize("value", ["", "..", "../x", "a/b", "a\0b", ".hidden", "x" * 101, "a b", "-x"])
def test_names_never_lead_out_of_the_folder(name: str, value: str) -> None:
    with pytest.raises(RecordError, match=name):
        check({**record(), name: value}, "x.json")


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


@pytest.mark.parametrize("value", [-1.5, 2**53, -(2**53), 1e300, "text", None, True])
def test_figures_that_are_not_bytes_may_be_any_number_that_json_can_hold(value: object) -> None:
    assert check(record(settings={"cpu_offload_gb": {"value": value}}), "x.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 2**53 + 1, -(2**60), 10**400])
def test_numbers_that_json_can_not_hold_are_damage(value: float) -> None:
    with pytest.raises(RecordError, match="value is "):
        check(record(settings={"x": {"value": value}}), "x.json")


COUNTS: dict[str, Callable[[object], dict[str, Any]]] = {
    "tokens": lambda count: {"engines": [{"kv_cache": {"tokens": count}}]},
    "blocks": lambda count: {"engines": [{"kv_cache": {"blocks": count}}]},
    "requests": lambda count: {"engines": [{"serving": {"requests": count}}]},
    "preemptions": lambda count: {"engines": [{"serving": {"preemptions": count}}]},
    "pid": lambda count: {"outcome": {"state": "serving", "pid": count}},
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole_and_not_below_zero(name: str) -> None:
    assert check(record(**COUNTS[name](7)), "x.json")
    for wrong in (-1, 1.5, True, "7", 2**53 + 1):
        with pytest.raises(RecordError, match=name):
            check(record(**COUNTS[name](wrong)), "x.json")


def test_a_record_may_be_as_deep_as_our_own_and_its_settings_but_not_deeper() -> None:
    assert check(record(settings={"hf_overrides": {"value": deep(20)}}), "x.json")
    with pytest.raises(RecordError, match="nested too deeply"):
        check(record(settings={"hf_overrides": {"value": deep(DEEPEST)}}), "x.json")


def test_texts_that_are_too_long_or_would_be_obeyed_by_a_terminal_are_mended_not_damage() -> None:
    found = check(record(identity={"model": "\x1b]0;owned\x07" + "x" * 10_000, "\udc80": "\u202e"}), "x.json")
    assert len(found["identity"]["model"]) == TEXT_LIMIT
    assert "\x1b" not in str(found)
    assert str(found).encode()


# The door out


def test_what_is_written_is_fit_to_be_read_whatever_it_was() -> None:
    class Word(str):
        pass

    odd = record(
        settings={"x": {"value": Path("/a/b")}, "y": {"value": {3, 1}}, "z": {"value": float("nan")}},
        plan={"own_bytes": -5, "free_bytes": "many", "deep": deep(100), "big": 2**80, "word": Word("w"), 5: (1, 2)},
    )
    found = check(json.loads(json.dumps(presentable(odd))), "x.json")
    assert found["settings"]["x"] == {"value": "/a/b"}
    assert found["settings"]["z"] == {"value": None}
    assert (found["plan"]["own_bytes"], found["plan"]["free_bytes"], found["plan"]["big"]) == (None, None, None)
    assert type(presentable(odd)["plan"]["word"]) is str
    assert found["plan"]["5"] == [1, 2]


def test_what_is_fit_already_is_written_as_it_is() -> None:
    assert presentable(record()) == record()


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), nest, max_leaves=8)
)
def test_whatever_is_written_can_be_read(anything: object) -> None:
    document = record(plan={"x": anything, "x_bytes": anything})
    assert check(json.loads(json.dumps(presentable(document), allow_nan=False)), "x.json")["run_id"]


SECRETS = {
    "a Hugging Face token": ("cannot read with hf_AbCdEfGhIjKlMnOpQrStUvWx: 401", "hf_AbCd"),
    "a token in a header": ("Authorization: Bearer abc.def-123456", "abc.def"),
    "credentials in a header": ("Authorization: Basic dXNlcjpwYXNz", "dXNl"),
    "a token in an address": ("GET https://host/m?token=abcdef&x=1", "abcdef"),
    "a password in an address": ("s3://user:pass@bucket/m", "pass"),
    "a signed address": ("https://b.s3.amazonaws.com/m?X-Amz-Signature=0a1b2c3d4e", "0a1b2c"),
    "a variable": ("HF_TOKEN=abcdef python", "abcdef"),
    "an argument": ("--api-key=abcdef --port 1", "abcdef"),
    "a Python call": ("login(password='hunter22')", "hunter22"),
    "a GitHub token": ("ghp_abcdefghijklmnopqrst", "abcdefgh"),
    "an AWS key": ("AKIAABCDEFGHIJKLMNOP", "ABCDEFGH"),
    "a JSON web token": ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_def", "eyJ"),
}


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS.keys())
def test_secrets_are_not_written(text: str, secret: str) -> None:
    for place in ({"message": text}, {"phase": [text]}, {text: 1}):
        written = json.dumps(presentable(place))
        assert secret not in written
        assert json.dumps(presentable(presentable(place))) == written
        assert "***" in written


@pytest.mark.parametrize("name", ["token", "hf_token", "password", "api_key", "API-KEY", "client_secret"])
def test_what_is_named_as_a_secret_is_not_written(name: str) -> None:
    assert presentable({"outer": {name: "x"}}) == {"outer": {name: "***"}}


HARMLESS = (
    "max_num_batched_tokens=8192 is larger than max_model_len=4096; tokens: 16384",
    "deepseek-ai/DeepSeek-V3",
    "/models/hf_home/task-something-that-is-long",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "hf_transfer is not installed",
    "line one\n\tline two",
)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


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
