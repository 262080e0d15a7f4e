"""What is made of a look at the cache folder."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_autofit.doctor.asking import Answer
from vllm_autofit.doctor.cache import cache_verdicts

WELL: dict[str, Any] = {
    "settings": [], "folder": "/c", "exists": True, "error": "", "locks": True, "findings": {}, "unusable": [],
    "layers": [], "layers_skipped": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [("ok", "/c can be read and written")]),
        ({"exists": False}, [("ok", "/c will be made")]),
        ({"error": "Read-only file system"}, [("problem", "/c: Read-only file system; nothing is remembered")]),
        ({"locks": False}, [("ok", "/c"), ("note", "without locks")]),
        ({"findings": {"damaged": 2, "leftover": 1}}, [("ok", "/c"), ("note", "2 × damaged, 1 × leftover")]),
        ({"unusable": ["/c/starts"]}, [("ok", "/c"), ("problem", "all of /c: /c/starts")]),
        ({"layers": ["/l"]}, [("ok", "/c"), ("ok", "/l can be read")]),
        ({"layers": ["/l"], "layers_skipped": ["/l/x: bad"]}, [("ok", "/c"), ("problem", "/l/x: bad")]),
    ],
    ids=str,
)
def test_verdicts(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    found = cache_verdicts(Answer({**WELL, **changes}))
    assert [each.level for each in found] == [level for level, _ in expected]
    for verdict, (_, words) in zip(found, expected, strict=True):
        assert words in verdict.says


def test_a_folder_that_does_not_answer() -> None:
    (verdict,) = cache_verdicts(Answer(trouble="no answer within 10 s"))
    assert verdict.level == "problem"
