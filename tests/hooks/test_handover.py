"""Several API servers: the launcher decides, its children follow, strangers are not believed."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from vllm_autofit.hooks import handover


def args(count: int, rank: int) -> SimpleNamespace:
    return SimpleNamespace(_api_process_count=count, _api_process_rank=rank)


@pytest.mark.parametrize(("count", "rank", "child"), [(1, 0, False), (2, -1, False), (2, 0, True), (2, 1, True)])
def test_who_is_a_child(count: int, rank: int, child: bool) -> None:
    assert handover.is_api_server_child(args(count, rank)) is child


def test_a_single_server_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(handover.VARIABLE, raising=False)
    handover.send(args(1, 0), {"gpu_memory_utilization": 0.5})
    assert handover.VARIABLE not in os.environ
    assert handover.receive() == {}


def test_a_child_gets_what_its_parent_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(handover.VARIABLE, "")
    handover.send(args(2, -1), {"gpu_memory_utilization": 0.5, "max_model_len": -1})
    child = os.fork()
    if child == 0:
        received = handover.receive()
        os._exit(0 if received == {"gpu_memory_utilization": 0.5, "max_model_len": -1} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert handover.receive() == {}, "the launcher itself is not its own child"


def test_only_our_five_fields_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"pid": os.getppid(), "filled": {"max_num_seqs": 4, "model": "another"}}
    monkeypatch.setenv(handover.VARIABLE, json.dumps(document))
    assert handover.receive() == {"max_num_seqs": 4}
