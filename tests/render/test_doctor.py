"""What the doctor found, on screens of any width and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from vllm_autofit.doctor.examination import Examination
from vllm_autofit.doctor.verdict import Verdict
from vllm_autofit.facts.holders import Holder
from vllm_autofit.render.doctor import doctor_account, doctor_document
from vllm_autofit.render.table import text_width
from vllm_autofit.units import GIB
from vllm_autofit.values import DeviceFacts

HOLDERS = (
    Holder(11, 20 * GIB, "me", 59, "VLLM::Worker", engine=True),
    Holder(12, GIB // 2, "me", 7200, "VLLM::EngineCore", engine=True, orphaned=True),
    Holder(13, GIB, "me", 200_000, "python", shared=True),
    Holder(14, None),
)
DEVICE = {
    **asdict(DeviceFacts("cuda", 0, "H100", 80 * GIB, 10 * GIB)),
    "holders": [asdict(holder) for holder in HOLDERS],
}
SEAM = {"seam": "x", "function": "vllm.x:X.y", "state": "holds", "detail": "", "without": "counting requests"}
FOUND = Examination(
    [Verdict("ok", "plugin", "loaded"), Verdict("problem", "cache", "it can't be written", "Did you mean X?")],
    "0.32.0",
    "cuda",
    [DEVICE],
    [SEAM],
)


def test_an_account() -> None:
    assert doctor_account(FOUND, None).splitlines() == [
        "ok       plugin  loaded.",
        "problem  cache   it can't be written.",
        "                 -> Did you mean X?",
        "",
        "process    GiB  user   age  command",
        "",
        "On H100 (device 0)",
        "     11  20.00  me    59 s  VLLM::Worker             engine",
        "     12   0.50  me     2 h  VLLM::EngineCore         orphan",
        "     13  ≤1.00  me     2 d  python",
        "     14      ?  ?        ?  can't be seen from here",
        "",
        "function of vLLM's  state  without it, no",
        "vllm.x:X.y          holds  counting requests",
        "",
        "1 problem.",
    ]


def test_where_all_is_well_there_are_no_empty_tables() -> None:
    found = Examination([Verdict("ok", "cache", "it can be written")], None, None, [], [])
    assert doctor_account(found, None).splitlines() == ["ok       cache  it can be written.", "", "All is well."]


@pytest.mark.parametrize("width", [40, 60, 100])
def test_it_fits_on_the_screen(width: int) -> None:
    assert max(map(text_width, doctor_account(FOUND, width).splitlines())) <= width


def test_a_document() -> None:
    document = json.loads(json.dumps(doctor_document(FOUND)))
    assert list(document) == ["verdict", "checks", "version", "vllm", "backend", "devices", "seams"]
    assert document["verdict"] == "problem"
    assert document["checks"][1] == {
        "level": "problem", "check": "cache", "says": "it can't be written", "do": "Did you mean X?",
    }  # fmt: skip
    assert document["devices"][0]["holders"][1]["orphaned"] is True
