"""Every field of every known ``EngineArgs`` is named, once, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Forked
from vllm_autofit import FIELDS
from vllm_autofit.facts import knobs
from vllm_autofit.facts.knobs import IN_THE_KEY_ALREADY, MEMORY, NO_MEMORY, unknown_fields, without_memory
from vllm_autofit.facts.request import KNOBS, SPECULATION

KNOWN = json.loads((Path(__file__).parent.parent / "data" / "vllm_settings.json").read_text())
COUNTED = [name for names in MEMORY.values() for name in names.split()]
PASSED_OVER = [name for names in NO_MEMORY.values() for name in names.split()]
NAMED = [*IN_THE_KEY_ALREADY, *COUNTED, *PASSED_OVER]


@pytest.mark.vllm
def test_every_field_of_the_installed_vllm_is_named(forked: Forked) -> None:
    """Where this fails, vLLM has a new field: read what it does, name it in ``facts/knobs.py``, and note the version in
    ``tests/data/vllm_settings.json``."""

    def unknown() -> list[str]:
        from vllm.engine.arg_utils import AsyncEngineArgs

        return unknown_fields(AsyncEngineArgs)

    assert forked(unknown) == []


@pytest.mark.vllm
def test_what_is_noted_of_the_installed_vllm_is_what_it_has(forked: Forked) -> None:
    def installed() -> tuple[str, list[str]]:
        from vllm import __version__
        from vllm.engine.arg_utils import AsyncEngineArgs

        return __version__, [field.name for field in dataclasses.fields(AsyncEngineArgs)]

    version, fields = forked(installed)
    version = version.partition("+")[0]
    if version not in KNOWN["versions"]:
        pytest.skip(f"vLLM {version} is not among the versions whose sources were read")
    assert sorted(fields) == _fields_of(version)


@pytest.mark.parametrize("version", KNOWN["versions"])
def test_every_field_of_the_versions_that_were_read_is_named(version: str) -> None:
    fields = _fields_of(version)
    assert len(fields) > 100
    assert sorted(set(fields) - set(NAMED)) == []


def test_no_name_is_left_of_a_field_that_no_version_has() -> None:
    assert sorted(set(NAMED) - KNOWN["fields"].keys()) == []


def test_every_field_is_named_once() -> None:
    assert [name for name, times in Counter(NAMED).items() if times > 1] == []


def test_every_field_that_is_passed_over_is_so_for_a_reason_and_no_other_is() -> None:
    assert all(without_memory(name) for name in (*IN_THE_KEY_ALREADY, *PASSED_OVER))
    assert not any(without_memory(name) for name in COUNTED)
    assert all(reason.strip() and names.split() for reason, names in (*MEMORY.items(), *NO_MEMORY.items()))


def test_our_five_fields_are_no_knobs() -> None:
    assert set(FIELDS) < set(IN_THE_KEY_ALREADY)


def test_a_field_that_no_table_names_counts_and_is_listed() -> None:
    newer = dataclasses.make_dataclass("EngineArgs", [("dtype", str, "auto"), ("of_tomorrow", int, 0)])
    assert unknown_fields(newer) == ["of_tomorrow"]
    assert not without_memory("of_tomorrow")


def test_what_has_no_fields_has_no_unknown_ones() -> None:
    assert unknown_fields(object) == []


@pytest.mark.parametrize(
    "names",
    [KNOBS, SPECULATION, knobs.WEIGHTS, knobs.OPAQUE, knobs.ONLY_WHETHER_SET, knobs.PARTS_WITHOUT_MEMORY],
    ids=["KNOBS", "SPECULATION", "WEIGHTS", "OPAQUE", "ONLY_WHETHER_SET", "PARTS_WITHOUT_MEMORY"],
)
def test_what_is_said_about_knobs_is_about_knobs(names: tuple[str, ...]) -> None:
    assert sorted(set(names) - set(COUNTED)) == []


def test_what_planning_reads_is_not_hidden() -> None:
    assert sorted(set(KNOBS) & set(knobs.OPAQUE)) == ["hf_overrides"]


def test_the_token_for_the_hub_is_no_knob() -> None:
    assert without_memory("hf_token")


def _fields_of(version: str) -> list[str]:
    return [name for name, span in KNOWN["fields"].items() if version in versions(span)]


def versions(span: str) -> list[str]:
    """``"0.12.0 0.20.0"``: those of the known versions from the first to the last."""
    first, last = (KNOWN["versions"].index(version) for version in span.split())
    return KNOWN["versions"][first : last + 1]  # type: ignore[no-any-return]
