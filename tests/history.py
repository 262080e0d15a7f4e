"""Records for the tests of ``vllm-autofit history``, and what all of them ask of a command."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from tests.builders import record
from vllm_autofit.cli.main import EXIT_BAD_INPUT, EXIT_OK, main
from vllm_autofit.experience.record import Record
from vllm_autofit.experience.store import Store

KEY, OTHER_KEY = "0123456789abcdef", "fedcba9876543210"
OLD, NEW, OTHER = "20200101T120000Z-1-aaaa", "20261121T120000Z-1-bbbb", "20261120T120000Z-1-cccc"

Captured = pytest.CaptureFixture[str]


def settings(**values: Any) -> dict[str, Any]:
    """What a start was given, by us unless said otherwise: ``name=(value, chosen_by)``."""
    given = {"gpu_memory_utilization": (0.9, "estimate"), "max_model_len": (-1, "estimate"), **values}
    return {name: {"value": value, "chosen_by": chosen_by} for name, (value, chosen_by) in given.items()}


def start(run_id: str = NEW, key: str = KEY, model: str = "org/one", **sections: Any) -> Record:
    """A start that came up."""
    ordinary: dict[str, Any] = {
        "started_at": f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T12:00:00+00:00",
        "identity": {"model": model, "devices": []},
        "settings": settings(enforce_eager=(False, "vllm"), max_num_seqs=(None, "vllm")),
        "engines": [{"max_model_len": 4096, "max_num_seqs": 256, "kv_cache": {"tokens": 8192}}],
        "outcome": {"state": "ended", "ended": {"how": "clean"}},
    }
    return record(run_id, key=key, **{**ordinary, **sections})


def put(store: Store, *records: Record) -> None:
    for each in records:
        store.update(each["key"], each["run_id"], lambda _, each=each: each)  # type: ignore[misc]


def run_ids(store: Store) -> list[str]:
    return [each["run_id"] for each in Store(store.folder).everything()]


def as_json(capsys: Captured, *words: str) -> Any:
    """What a command answers with ``--format json``."""
    assert main(["history", *words, "--format", "json"]) == EXIT_OK
    return json.loads(capsys.readouterr().out)


def refused(capsys: Captured, *words: str) -> str:
    """The one line with which a command is refused."""
    assert main(["history", *words]) == EXIT_BAD_INPUT
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vllm-autofit: ")
    assert output.err.count("\n") == 1
    return output.err


class Terminal(io.StringIO):
    """Somebody who answers."""

    def isatty(self) -> bool:
        return True
