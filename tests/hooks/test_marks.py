"""Marked values are equal to the originals in every way that vLLM looks at them, and keep their mark on every road."""

from __future__ import annotations

import argparse
import copy
import json
import pickle
from typing import Any

import pytest

from vllm_autofit.hooks.marks import Mark, mark, unmark

VALUES = [0.92, 0.9, True, False, 256, "auto", "fp8"]


@pytest.mark.parametrize("value", VALUES)
def test_a_marked_value_is_equal_prints_alike_and_loses_its_mark_on_demand(value: Any) -> None:
    marked = mark(value)
    assert isinstance(marked, Mark)
    assert marked == value
    assert hash(marked) == hash(value)
    assert repr(marked) == repr(value)
    assert str(marked) == str(value)
    assert f"{marked}" == f"{value}"
    assert bool(marked) == bool(value)
    assert type(unmark(marked)) is type(value)
    assert unmark(marked) == value


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("road", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_the_mark_survives_copies_and_pickles(value: Any, road: Any) -> None:
    assert isinstance(road(mark(value)), Mark)
    assert road(mark(value)) == value


@pytest.mark.parametrize(("value", "kind"), [(0.92, float), ("auto", str), (256, int)])
def test_the_mark_of_a_default_survives_argparse_and_typing_it_does_not(value: Any, kind: Any) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--field", type=kind, default=mark(value))
    assert isinstance(parser.parse_args([]).field, Mark)
    typed = parser.parse_args(["--field", str(value)]).field
    assert typed == value
    assert not isinstance(typed, Mark)


def test_none_and_plain_objects_stay_as_they_are() -> None:
    thing = object()
    assert mark(None) is None
    assert mark(thing) is thing
    assert unmark(thing) is thing


def test_numbers_and_text_go_into_json_as_they_are() -> None:
    assert json.dumps([mark(0.92), mark("auto"), mark(256)]) == '[0.92, "auto", 256]'
