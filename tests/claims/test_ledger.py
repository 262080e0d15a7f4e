"""The ledger on disk: real files, real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from tests.builders import GIB, start_python
from vllm_autofit.claims import ledger as module
from vllm_autofit.claims.claim import START_SECONDS, Claim, Part
from vllm_autofit.claims.ledger import FORGOTTEN_SECONDS, OTHER_BOOTS_SECONDS, Ledger
from vllm_autofit.errors import StoreError
from vllm_autofit.experience.ending import this_process

ENTER = """
import sys, time
from pathlib import Path
from tests.claims.test_ledger import entry
from vllm_autofit.claims.ledger import Ledger
Ledger(Path(sys.argv[1])).change(lambda claims: [*claims, entry(sys.argv[2])])
print("entered", flush=True)
if sys.argv[3:]:
    time.sleep(300)
"""


def entry(name: str = "a", **changes: object) -> Claim:
    made = Claim(
        name,
        this_process(),
        "me",
        "some/model",
        "2026-11-21T12:00:00+00:00",
        "starting",
        time.monotonic(),
        1,
        {"cpu:0": Part(bytes=GIB)},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def enter(folder: Path, claim: Claim) -> None:
    Ledger(folder).change(lambda claims: [*claims, claim])


def names(folder: Path) -> list[str]:
    return [claim.id for claim in Ledger(folder).claims()]


def test_a_folder_without_a_ledger_has_no_claims_and_gets_none_by_reading(tmp_path: Path) -> None:
    assert names(tmp_path / "cache") == []
    assert not (tmp_path / "cache").exists()


def test_a_claim_is_read_as_it_was_entered(tmp_path: Path) -> None:
    made = entry(devices={"cpu:0": Part(1, 2, 3), "gpu": Part(4)})
    enter(tmp_path, made)
    assert Ledger(tmp_path).claims() == [made]


def test_a_change_to_nothing_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    enter(tmp_path, entry())
    before = Ledger(tmp_path).path.stat().st_mtime_ns
    Ledger(tmp_path).change(lambda claims: None)
    assert Ledger(tmp_path).path.stat().st_mtime_ns == before


def test_the_claim_of_a_process_that_ended_is_gone_by_itself_and_from_the_file_with_the_next_change(
    tmp_path: Path,
) -> None:
    with start_python(ENTER, tmp_path, "dead") as process:
        assert process.wait() == 0, process.stderr and process.stderr.read()
    assert "dead" in Ledger(tmp_path).path.read_text()
    assert names(tmp_path) == []
    enter(tmp_path, entry("mine"))
    assert "dead" not in Ledger(tmp_path).path.read_text()


def test_the_claim_of_a_killed_process_is_gone(tmp_path: Path) -> None:
    with start_python(ENTER, tmp_path, "killed", "stay") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "entered\n"
        assert names(tmp_path) == ["killed"]
        process.kill()
        process.wait()
    assert names(tmp_path) == []


def test_a_number_that_another_process_has_by_now_is_not_taken_for_the_one_that_claimed(tmp_path: Path) -> None:
    enter(tmp_path, entry("reused", process={**this_process(), "pid_started": 1}))
    assert names(tmp_path) == []


def test_processes_that_enter_at_once_lose_no_claim(tmp_path: Path) -> None:
    processes = [start_python(ENTER, tmp_path, f"p{number}", "stay") for number in range(6)]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "entered\n"
        assert sorted(names(tmp_path)) == [f"p{number}" for number in range(6)]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_claim_whose_process_cannot_be_seen_counts_while_it_is_young(tmp_path: Path) -> None:
    elsewhere = {**this_process(), "host": "another", "pid_space": "pid:[1]"}
    enter(tmp_path, entry("young", process=elsewhere))
    enter(tmp_path, entry("old", process=elsewhere, changed=time.monotonic() - START_SECONDS - 1))
    enter(tmp_path, entry("ancient", process=elsewhere, changed=time.monotonic() - FORGOTTEN_SECONDS - 1))
    assert names(tmp_path) == ["young"]
    enter(tmp_path, entry("mine"))
    kept = [each["id"] for each in json.loads(Ledger(tmp_path).path.read_text())["claims"]]
    assert sorted(kept) == ["mine", "old", "young"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"claims": 3}', '{"claims": [3, {}]}', "null"])
def test_a_damaged_ledger_counts_as_empty_and_is_written_anew(tmp_path: Path, content: str) -> None:
    path = Ledger(tmp_path).path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert names(tmp_path) == []
    enter(tmp_path, entry())
    assert names(tmp_path) == ["a"]


def test_one_damaged_claim_does_not_spoil_the_others(tmp_path: Path) -> None:
    enter(tmp_path, entry())
    path = Ledger(tmp_path).path
    document = json.loads(path.read_text())
    path.write_text(json.dumps({"claims": [{"id": "damaged"}, *document["claims"]]}))
    assert names(tmp_path) == ["a"]


def test_ledgers_of_boots_long_ago_are_removed(tmp_path: Path) -> None:
    folder = Ledger(tmp_path).path.parent
    folder.mkdir(parents=True)
    for name, age in (("long-ago.json", OTHER_BOOTS_SECONDS + 60), ("lately.json", 60)):
        (folder / name).write_text("{}")
        os.utime(folder / name, (time.time() - age,) * 2)
    enter(tmp_path, entry())
    assert sorted(each.name for each in folder.glob("*.json")) == sorted(["lately.json", Ledger(tmp_path).path.name])


def test_only_the_user_can_read_it(tmp_path: Path) -> None:
    enter(tmp_path / "cache", entry())
    path = Ledger(tmp_path / "cache").path
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_is_a_store_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("in the way")
    with pytest.raises(StoreError, match="VLLM_AUTOFIT_CACHE_DIR") as caught:
        enter(tmp_path, entry())
    assert str(tmp_path / "claims") in str(caught.value)


def test_a_file_system_whose_locks_do_not_work_keeps_the_ledger_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_autofit.experience.locking.locks_work", lambda path: False)
    enter(tmp_path, entry("a"))
    enter(tmp_path, entry("b"))
    assert names(tmp_path) == ["a", "b"]


def test_an_error_in_a_change_leaves_the_ledger_and_its_lock_free(tmp_path: Path) -> None:
    enter(tmp_path, entry())

    def fail(claims: list[Claim]) -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        Ledger(tmp_path).change(fail)
    enter(tmp_path, entry("b"))
    assert names(tmp_path) == ["a", "b"]
    assert module.FOLDER == "claims"
