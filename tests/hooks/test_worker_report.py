"""What workers report, and where they are."""

from __future__ import annotations

import os
import platform
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_autofit.hooks.worker_report import Report, collect

pytest.importorskip("cloudpickle")

UUID = "0e1c2a4b-1111-2222-3333-444455556666"


def reported(*replies: Any) -> list[Report]:
    return collect(SimpleNamespace(collective_rpc=lambda function: list(replies)))


def reply(host: str, pid: int = 1) -> dict[str, Any]:
    place = {"host": host, "pid": pid, "uuid": UUID, "ordinal": 1}
    return {"rank": 0, "device_index": 1, "weights_bytes": 5, "place": place}


def test_a_worker_of_this_host_has_a_place_and_no_node() -> None:
    (apart, inside) = reported(reply(platform.node()), reply(platform.node(), os.getpid()))
    assert apart.figures == {"rank": 0, "device_index": 1, "weights_bytes": 5}
    assert apart.place == {"device_index": 1, "uuid": UUID, "ordinal": 1, "in_engine_core": False}
    assert inside.place is not None
    assert inside.place["in_engine_core"]


def test_a_worker_of_another_host_has_a_node_and_no_place() -> None:
    one, two, three = reported(reply("node1"), reply("node1"), reply("node2"))
    assert one.place is None
    assert one.figures["node"] == two.figures["node"] != three.figures["node"]
    assert "node1" not in str(one), "records may be shared"


def test_what_is_no_report_says_so() -> None:
    answers = reported(None, {"error": "RuntimeError: no"}, {"weights_bytes": -1})
    assert [each.place for each in answers] == [None] * 3
    assert [each.figures for each in answers] == [
        {"error": "a worker answered NoneType"},
        {"error": "RuntimeError: no"},
        {"weights_bytes": None},
    ]
