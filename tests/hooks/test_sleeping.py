"""A sleeping engine keeps its room: vLLM's executor here is a stand-in, the device one whose free memory is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.builders import GIB, cuda, request
from tests.hooks.test_lease import plan_of, settings_in
from vllm_autofit.claims.ledger import Ledger
from vllm_autofit.hooks import lease, runs, sleeping

DEVICE = cuda(uuid="GPU-1234")


class Executor:
    """What sleeps and wakes, on a device of which ``free`` bytes are free."""

    def __init__(self, run: dict[str, Any]) -> None:
        self.vllm_config = SimpleNamespace()
        runs.attach(self.vllm_config, run)
        self.free = 10 * GIB
        self.tags: set[str] = set()

    @property
    def is_sleeping(self) -> bool:
        return bool(self.tags)

    def sleep(self, level: int) -> str:
        assert level > 0
        self.free += 60 * GIB
        self.tags = {"weights", "kv_cache"}
        return "slept"

    def wake_up(self, tags: list[str] | None = None) -> str:
        woken = set(tags or self.tags)
        self.free -= 30 * GIB * len(woken)
        self.tags -= woken
        return "woke"


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Executor:
    turn = lease.take(settings_in(tmp_path), request(), [DEVICE], "some/model", 1)
    assert turn is not None
    run: dict[str, Any] = {"cache_dir": str(tmp_path), "run_id": "a"}
    lease.planned(turn, run, request(), [DEVICE], plan_of(DEVICE))
    lease.up(run)
    made = Executor(run)

    def free_bytes_of(place: dict[str, Any]) -> int:
        assert place == {"uuid": "1234", "device_index": None}
        return made.free

    monkeypatch.setattr(sleeping, "free_bytes_of", free_bytes_of)
    return made


def call(executor: Executor, name: str, *args: Any) -> Any:
    return sleeping.sleep_or_wake(getattr(executor, name), executor, args, {})


def asleep(folder: Path) -> int:
    (claim,) = Ledger(folder).claims()
    return claim.devices["1234"].asleep


def test_what_an_engine_gives_back_in_its_sleep_stays_claimed_until_it_wakes(
    executor: Executor, tmp_path: Path
) -> None:
    assert call(executor, "sleep", 1) == "slept"
    assert asleep(tmp_path) == 60 * GIB
    assert call(executor, "wake_up") == "woke"
    assert asleep(tmp_path) == 0


def test_what_wakes_first_is_claimed_no_more(executor: Executor, tmp_path: Path) -> None:
    call(executor, "sleep", 1)
    call(executor, "wake_up", ["weights"])
    assert asleep(tmp_path) == 30 * GIB
    call(executor, "wake_up", ["kv_cache"])
    assert asleep(tmp_path) == 0


def test_a_device_that_cannot_be_read_keeps_nobody_awake(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(place: dict[str, Any]) -> int:
        raise OSError("gone")

    monkeypatch.setattr(sleeping, "free_bytes_of", fail)
    assert call(executor, "sleep", 2) == "slept"
    assert asleep(tmp_path) == 0


def test_an_engine_without_a_claim_just_sleeps(tmp_path: Path) -> None:
    alone = Executor({"cache_dir": str(tmp_path), "run_id": "a"})
    assert call(alone, "sleep", 1) == "slept"
    assert not (tmp_path / "claims").exists()
