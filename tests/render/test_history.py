"""The starts that are remembered, as a table and as a document."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from tests.builders import GIB, record
from vllm_autofit.experience.grade import GRADES, Grade
from vllm_autofit.render.history import FAMILIES, Start, ago, history_document, history_table
from vllm_autofit.render.table import text_width

RUN = "20261121T120000Z-1-aaaa"
EARLIER = "20261120T120000Z-1-bbbb"
KEY = "0123456789abcdef"
NOW = datetime.datetime(2026, 11, 21, 15, 0, tzinfo=datetime.timezone.utc)
PIN = {"key": KEY, "settings": {"gpu_memory_utilization": 0.9, "enforce_eager": True}, "note": "by hand", "at": "now"}


def served(origin: str = "own", grade: Grade = "proven", **sections: Any) -> Start:
    """A start that came up on two devices and answered requests."""
    devices = [{"index": index, "name": "NVIDIA L4", "total_bytes": 24 * GIB} for index in range(2)]
    engine = {
        "max_model_len": 40960,
        "kv_cache": {"tokens": 16000},
        "serving": {"requests": 12, "seconds": 34.5},
    }
    ordinary: dict[str, Any] = {
        "identity": {"model": "/models/Qwen3-0.6B", "vllm": "0.32.0", "devices": devices},
        "settings": {
            "gpu_memory_utilization": {"value": 0.85, "chosen_by": "record"},
            "max_model_len": {"value": -1, "chosen_by": "estimate"},
            "enforce_eager": {"value": True, "chosen_by": "user"},
            "kv_cache_dtype": {"value": "fp8", "chosen_by": "estimate"},
            "max_num_seqs": {"value": 256, "chosen_by": "vllm"},
        },
        "engines": [engine],
    }
    return Start(record(RUN, **{**ordinary, **sections}), grade, origin)


def failed(grade: Grade = "won't fit") -> Start:
    failure = {"phase": "no_kv_memory", "type": "ValueError", "message": "No room"}
    return Start(record(EARLIER, outcome={"state": "failed", "failure": failure}), grade, "own")


def rows(*starts: Start, width: int | None = None, pins: dict[str, Any] | None = None) -> list[str]:
    return history_table(starts, pins or {}, NOW, width).splitlines()


# The table


def test_starts_are_divided_by_what_came_of_them() -> None:
    heading, *lines = rows(served(), failed())
    assert heading.split() == ["start", "grade", "model", "device", "settings", "KV", "tokens", "when"]
    assert [line.split("  ")[0] for line in lines] == ["", "Known to work", RUN, "", "Won't fit", EARLIER]


def test_every_grade_has_its_place() -> None:
    assert sorted(grade for _, grades in FAMILIES.values() for grade in grades) == sorted(GRADES)


def test_a_row_says_with_what_and_how_well() -> None:
    assert [cell.strip() for cell in rows(served())[-1].split("  ") if cell] == [
        RUN,
        "proven",
        "Qwen3-0.6B",
        "2 x NVIDIA L4",
        "util 0.85, ctx 40960, eager, kv fp8",
        "16,000",
        "3 h ago",
    ]


def test_a_row_of_a_failed_start_names_the_phase() -> None:
    cells = [cell.strip() for cell in rows(failed())[-1].split("  ") if cell]
    assert cells == [EARLIER, "won't fit (no_kv_memory)", "model", "-", "-", "-", "3 h ago"]


def test_devices_that_differ_are_all_named() -> None:
    devices = [{"index": 0, "name": "A"}, {"index": 1, "name": "B"}, {"index": 2}]
    assert "3 x A + B + device 2" in rows(served(identity={"model": "m", "devices": devices}))[-1]


def test_the_tokens_of_several_engines_are_added_up() -> None:
    engines = [{"kv_cache": {"tokens": 16000}}, {"kv_cache": {"tokens": 500}}, {"kv_cache": None}]
    assert "16,500" in rows(served(engines=engines))[-1]


def test_where_a_start_comes_from_is_said_only_where_it_matters() -> None:
    assert "from" not in rows(served())[0]
    heading, *_, row = rows(served(origin="layer"))
    assert heading.endswith("from")
    assert row.endswith("layer")


def test_what_is_pinned_stands_below() -> None:
    *_, heading, row = rows(served(), pins={KEY: PIN})
    assert heading.split() == ["pinned", "key", "model", "settings", "note"]
    assert row.split("  ") == [KEY, "Qwen3-0.6B", "util 0.9, eager", "by hand"]
    assert rows(pins={KEY: PIN})[1].split("  ")[1].strip() == "-"


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40, 20, 5])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    start = served(
        origin="imported", identity={"model": "名前の長いモデル" * 5, "devices": [{"index": 0, "name": "x" * 90}]}
    )
    lines = rows(start, failed(), width=width, pins={KEY: PIN})
    assert max(map(text_width, lines)) <= width
    assert len(rows(start, width=width)) == 4


def test_what_is_cut_last_is_the_start_its_grade_and_its_model() -> None:
    heading, *_ = rows(served(origin="layer"), width=44)
    assert heading.split() == ["start", "grade", "model"]
    heading, *_ = rows(served(origin="layer"), width=80)
    assert heading.split() == ["start", "grade", "model", "settings", "KV", "tokens", "from"]


@pytest.mark.parametrize(
    ("started_at", "expected"),
    [
        ("2026-11-21T14:59:30+00:00", "just now"),
        ("2026-11-21T15:00:30+00:00", "just now"),
        ("2026-11-21T14:15:00+00:00", "45 min ago"),
        ("2026-11-20T12:00:00", "27 h ago"),
        ("2026-11-01T12:00:00+00:00", "20 d ago"),
        ("2031-01-01T00:00:00+00:00", "2031-01-01"),
        ("yesterday", "-"),
        (None, "-"),
    ],
)
def test_how_long_ago(started_at: object, expected: str) -> None:
    assert ago(started_at, NOW) == expected


# The document


def test_a_document_has_a_summary_of_every_start() -> None:
    document = history_document([served(), failed()], {KEY: PIN}, "/cache")
    assert json.loads(json.dumps(document)) == document
    assert document["folder"] == "/cache"
    assert document["pins"] == [PIN]
    first, second = document["starts"]
    assert first == {
        "run_id": RUN,
        "key": KEY,
        "started_at": "2026-11-21T12:00:00+00:00",
        "grade": "proven",
        "family": "works",
        "origin": "own",
        "model": "/models/Qwen3-0.6B",
        "vllm": "0.32.0",
        "devices": [{"name": "NVIDIA L4", "total_bytes": 24 * GIB}] * 2,
        "settings": {
            "gpu_memory_utilization": 0.85,
            "max_model_len": -1,
            "enforce_eager": True,
            "kv_cache_dtype": "fp8",
            "max_num_seqs": 256,
        },
        "chosen_by": {
            "gpu_memory_utilization": "record",
            "max_model_len": "estimate",
            "enforce_eager": "user",
            "kv_cache_dtype": "estimate",
            "max_num_seqs": "vllm",
        },
        "max_model_len": 40960,
        "kv_cache_tokens": 16000,
        "requests": 12,
        "seconds_served": 34.5,
        "failure": None,
    }
    assert second["failure"] == {"phase": "no_kv_memory", "type": "ValueError", "message": "No room"}
    assert (second["kv_cache_tokens"], second["requests"], second["max_model_len"]) == (None, None, None)
