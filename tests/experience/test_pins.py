"""What can be pinned, and what a pin that someone edited by hand may say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vllm_autofit import FIELDS
from vllm_autofit.errors import NewerRecordError, PinError, RecordError, StoreError
from vllm_autofit.experience.pins import FORMAT, check_pin, check_settings
from vllm_autofit.experience.store import Store

KEY = "0123456789abcdef"
GOOD: dict[str, list[object]] = {
    "gpu_memory_utilization": [0.01, 0.9, 1, 1.0],
    "max_model_len": [1, 4096, -1, 2**40],
    "enforce_eager": [True, False],
    "kv_cache_dtype": ["auto", "fp8", "fp8_e4m3"],
    "max_num_seqs": [1, 256, 2**20],
}
BAD: dict[str, list[object]] = {
    "gpu_memory_utilization": [0, -0.1, 1.01, math.nan, math.inf, True, "0.9", None, [0.9]],
    "max_model_len": [0, -2, 2**40 + 1, 4096.0, True, "4096", None, -1.0],
    "enforce_eager": [0, 1, "true", None],
    "kv_cache_dtype": ["", "FP8", "fp8; rm", "x" * 33, 8, None, "\u00e9"],
    "max_num_seqs": [0, -1, 2**20 + 1, 1.0, True, None, "1"],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def test_every_field_that_we_may_fill_can_be_pinned_and_no_other() -> None:
    assert tuple(GOOD) == tuple(BAD) == FIELDS
    for name in ("tensor_parallel_size", "model", "__class__", ""):
        with pytest.raises(PinError, match="it is none of gpu_memory_utilization"):
            check_settings({name: 1})


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in GOOD for value in GOOD[field]])
def test_values_within_a_fields_range_can_be_pinned(store: Store, field: str, value: object) -> None:
    store.pin(KEY, {field: value})
    pin = Store(store.folder).pinned(KEY)
    assert pin is not None
    assert pin["settings"] == {field: value}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in BAD for value in BAD[field]])
def test_other_values_can_not(store: Store, field: str, value: object) -> None:
    with pytest.raises(PinError) as caught:
        store.pin(KEY, {"enforce_eager": True, field: value})
    assert caught.value.field == field
    assert not store.folder.exists()


def test_nothing_can_not_be_pinned(store: Store) -> None:
    with pytest.raises(PinError, match="name at least one of"):
        store.pin(KEY, {})


def test_a_pin_has_its_note_and_time_and_no_secret(store: Store) -> None:
    path = store.pin(KEY, {"max_num_seqs": 8}, "as of run x, HF_TOKEN=abcdef")
    assert path == store.folder / "pins" / f"{KEY}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    pin = store.pinned(KEY)
    assert pin is not None
    assert (pin["key"], pin["note"]) == (KEY, "as of run x, HF_TOKEN=***")
    assert pin["at"][:2] == "20"
    assert store.pins() == {KEY: pin}


def test_a_second_pin_replaces_the_first_and_unpinning_removes_it(store: Store) -> None:
    store.pin(KEY, {"max_num_seqs": 8})
    store.pin(KEY, {"enforce_eager": True})
    assert (store.pinned(KEY) or {})["settings"] == {"enforce_eager": True}
    assert store.unpin(KEY)
    assert store.pinned(KEY) is None
    assert not store.unpin(KEY)
    assert store.pins() == {}


def test_a_pin_that_can_not_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file" / "x").pin(KEY, {"max_num_seqs": 8})


SOUND: dict[str, Any] = {FORMAT: 1, "key": KEY, "settings": {"max_num_seqs": 8}, "note": "", "at": ""}
DAMAGE: dict[str, object] = {
    "no object": [],
    "another format": {**SOUND, FORMAT: None},
    "true is no version": {**SOUND, FORMAT: True},
    "no key": {**SOUND, "key": None},
    "a key that leads elsewhere": {**SOUND, "key": "../x"},
    "settings that are a list": {**SOUND, "settings": ["max_num_seqs"]},
    "no settings": {**SOUND, "settings": {}},
    "a setting of vLLM's that is not ours": {**SOUND, "settings": {"trust_remote_code": True}},
    "more than the whole device": {**SOUND, "settings": {"gpu_memory_utilization": 7}},
}


@pytest.mark.parametrize("document", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_pin_is_set_aside_named_and_not_used(store: Store, document: object) -> None:
    with pytest.raises(RecordError):
        check_pin(document, "x.json")
    path = store.pin(KEY, {"max_num_seqs": 8})
    path.write_text(json.dumps(document))
    assert store.pinned(KEY) is None
    (message,) = store.skipped
    assert str(path) in message
    assert message.endswith(f"kept as {KEY}.damaged")
    assert json.loads(path.with_suffix(".damaged").read_text()) == document


def test_a_pin_of_a_newer_version_or_another_key_is_left_alone(store: Store) -> None:
    path = store.pin(KEY, {"max_num_seqs": 8})
    for document in ({FORMAT: 2}, {**SOUND, "key": "another"}):
        path.write_text(json.dumps(document))
        assert store.pinned(KEY) is None
        assert json.loads(path.read_text()) == document
    assert len(store.skipped) == 2
    with pytest.raises(NewerRecordError):
        check_pin({FORMAT: 2}, "x.json")
