"""``vllm-autofit history export`` and ``import``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.history import KEY, NEW, OLD, OTHER, Captured, as_json, put, refused, run_ids, start
from vllm_autofit.cli.main import EXIT_OK, main
from vllm_autofit.experience.files import LARGEST_EXPORT
from vllm_autofit.experience.record import Record
from vllm_autofit.experience.store import Store

FORMAT = "vllm_autofit_export"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
    """Go to another machine, with a store of its own."""

    def go() -> Store:
        monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path / "elsewhere"))
        return Store(tmp_path / "elsewhere")

    return go


@pytest.fixture
def exported(starts: Store, tmp_path: Path, capsys: Captured) -> Path:
    """The file of three starts and a pin."""
    starts.pin(KEY, {"enforce_eager": True}, "by hand")
    file = tmp_path / "export.json"
    assert main(["history", "export", "--output", str(file)]) == EXIT_OK
    assert capsys.readouterr().err == "vllm-autofit: wrote 3 records.\n"
    return file


def only(store: Store, run_id: str) -> Record:
    return next(each for each in Store(store.folder).everything() if each["run_id"] == run_id)


def serving(seconds: float, state: str = "serving") -> dict[str, Any]:
    outcome = {"state": state, **({"ended": {"how": "clean"}} if state == "ended" else {})}
    return {"engines": [{"serving": {"requests": 1, "seconds": seconds}}], "outcome": outcome}


def test_a_fleets_second_machine_knows_what_the_first_one_does(
    exported: Path, elsewhere: Callable[[], Store], capsys: Captured
) -> None:
    store = elsewhere()
    assert as_json(capsys, "import", str(exported)) == {"schema": 1, "added": 3, "extended": 0, "already_there": 0}
    listed = as_json(capsys)
    assert [(each["run_id"], each["origin"]) for each in listed["starts"]] == [
        (NEW, "imported"),
        (OTHER, "imported"),
        (OLD, "imported"),
    ]
    assert listed["pins"][0]["settings"] == {"enforce_eager": True}
    assert only(store, NEW) == {**start(NEW), "imported": True}


def test_the_same_record_twice_is_once(exported: Path, elsewhere: Callable[[], Store], capsys: Captured) -> None:
    store = elsewhere()
    put(store, start(NEW))
    assert main(["history", "import", str(exported), str(exported)]) == EXIT_OK
    assert capsys.readouterr().out == "Added 2 records, extended 0; 4 were there already.\n"
    assert run_ids(store) == [NEW, OTHER, OLD]
    assert "imported" not in only(store, NEW)


def test_only_what_is_named_is_exported_and_it_goes_to_stdout(starts: Store, capsys: Captured) -> None:
    assert main(["history", "export", "one", "--older-than", "52w"]) == EXIT_OK
    output = capsys.readouterr()
    assert [each["run_id"] for each in json.loads(output.out)["records"]] == [OLD]
    assert output.err == "vllm-autofit: wrote 1 record.\n"


def test_no_secret_leaves(store: Store, capsys: Captured) -> None:
    path = store.path(KEY, NEW)
    put(store, start(NEW))
    failure = {"message": "401 for https://user:hunter22@hub/?token=abcdefgh with hf_abcdefghijklmnopqrstuv"}
    path.write_text(json.dumps(start(NEW, outcome={"state": "failed", "failure": failure})))  # by hand, not through us
    assert main(["history", "export"]) == EXIT_OK
    text = capsys.readouterr().out
    assert all(secret not in text for secret in ("hunter22", "abcdefgh"))
    assert "401 for" in text


@pytest.mark.parametrize("file", ["missing/folder/file", "."])
def test_an_output_that_can_not_be_written_is_refused(
    file: str, starts: Store, tmp_path: Path, capsys: Captured
) -> None:
    assert "it can't be written" in refused(capsys, "export", "-o", str(tmp_path / file))


def test_nothing_to_export_is_refused(store: Store, capsys: Captured) -> None:
    assert f"no such start is remembered in {store.folder}" in refused(capsys, "export")


def test_more_than_an_import_reads_is_refused(starts: Store, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_autofit.cli.history.sharing.LARGEST_EXPORT", 1000)
    message = refused(capsys, "export")
    assert "`import` reads 1,000" in message
    assert "Choose some" in message


# Records of the same start that went on


@pytest.mark.parametrize(
    ("here", "there", "kept"),
    [
        (serving(10), serving(20), 20),
        (serving(20), serving(10), 20),
        (serving(10), serving(10, "ended"), "ended"),
        (serving(10, "ended"), serving(10), "ended"),
        (serving(20, "ended"), serving(10, "ended"), 20),
    ],
)
def test_the_record_that_knows_more_stays(
    here: dict[str, Any],
    there: dict[str, Any],
    kept: object,
    store: Store,
    elsewhere: Callable[[], Store],
    tmp_path: Path,
) -> None:
    put(store, start(NEW, **there))
    file = str(tmp_path / "export.json")
    assert main(["history", "export", "-o", file]) == EXIT_OK
    other = elsewhere()
    put(other, start(NEW, **here))
    assert main(["history", "import", file]) == EXIT_OK
    assert main(["history", "import", file]) == EXIT_OK
    found = only(other, NEW)
    assert kept in (found["engines"][0]["serving"]["seconds"], found["outcome"]["state"])
    assert "imported" not in found


def test_an_imported_record_that_goes_on_stays_imported(
    store: Store, elsewhere: Callable[[], Store], tmp_path: Path, capsys: Captured
) -> None:
    files = []
    for seconds in (10, 30, 20):
        put(store, start(NEW, **serving(seconds)))
        files.append(str(tmp_path / f"{seconds}.json"))
        assert main(["history", "export", "-o", files[-1]]) == EXIT_OK
    other = elsewhere()
    assert main(["history", "import", files[0]]) == EXIT_OK
    capsys.readouterr()
    assert as_json(capsys, "import", *files) == {"schema": 1, "added": 0, "extended": 1, "already_there": 2}
    found = only(other, NEW)
    assert found["engines"][0]["serving"]["seconds"] == 30
    assert found["imported"] is True


def test_a_start_whose_process_is_gone_is_exported_as_killed(store: Store, capsys: Captured) -> None:
    gone = {"pid": 2**22 + 1, "pid_started": 1, "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    put(store, start(NEW, outcome={"state": "serving", "at": "2026-11-21T13:00:00+00:00", **gone}))
    assert main(["history", "export"]) == EXIT_OK
    (found,) = json.loads(capsys.readouterr().out)["records"]
    assert found["outcome"]["ended"] == {"how": "killed", "at": "2026-11-21T13:00:00+00:00"}


# Files that are none


def broken(change: Callable[[Record], object]) -> Callable[[dict[str, Any]], None]:
    """A change of the last record of an export."""
    return lambda document: (change(document["records"][-1]), None)[1]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda document: document.pop(FORMAT), "no export"),
    "a newer format": (lambda document: document.update({FORMAT: 2}), "Update vllm-autofit"),
    "no list": (lambda document: document.update(records={}), "no list"),
    "no record": (lambda document: document["records"].append(None), "record 4: it holds no JSON object"),
    "another folder": (broken(lambda record: record.update(key="../../x")), "record 3: its key"),
    "another file": (broken(lambda record: record.update(run_id="/etc/x")), "record 3: its run_id"),
    "a newer record": (broken(lambda record: record.update(schema=99)), "Update vllm-autofit"),
    "an impossible size": (broken(lambda record: record["identity"].update(own_bytes=2**60)), "own_bytes is"),
    "a wrong type": (broken(lambda record: record.update(engines={})), "'engines' is not a list"),
    "depth": (broken(lambda record: record["plan"].update(x=nested(100))), "nested too deeply"),
    "another field": (
        lambda document: document["pins"][0]["settings"].update(tensor_parallel_size=2),
        "tensor_parallel_size",
    ),
    "an unsafe value": (
        lambda document: document["pins"][0]["settings"].update(gpu_memory_utilization=7),
        "above 0 and at most 1",
    ),
}


def nested(levels: int) -> object:
    return [] if levels == 0 else [nested(levels - 1)]


@pytest.mark.parametrize("name", HOSTILE)
def test_one_bad_entry_refuses_all_files_and_nothing_is_added(
    name: str, exported: Path, elsewhere: Callable[[], Store], tmp_path: Path, capsys: Captured
) -> None:
    change, said = HOSTILE[name]
    document = json.loads(exported.read_text())
    change(document)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(document))
    store = elsewhere()
    message = refused(capsys, "import", str(exported), str(bad))
    assert str(bad) in message
    assert said in message
    assert "Nothing is added." in message
    assert not store.starts.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "can't decode"),
        (b"[" * 100_000, "JSON array"),
        (b"9" * 100_000, "100000 digits"),
        (b'{"vllm_autofit_export": 1, "records": [NaN]}', "NaN is not a number"),
        (b"\0" * (LARGEST_EXPORT + 1), "larger than"),
    ],
    ids=["empty", "binary", "depth", "digits", "NaN", "size"],
)
def test_a_file_that_is_no_export_is_refused(
    content: bytes, said: str, store: Store, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    message = refused(capsys, "import", str(file))
    assert said in message
    assert "Name a file that `history export` wrote" in message
    assert not store.starts.exists()


def test_a_file_that_is_not_there_is_refused(store: Store, tmp_path: Path, capsys: Captured) -> None:
    assert "it can't be read (No such file" in refused(capsys, "import", str(tmp_path / "missing"))


def test_a_pipe_or_a_folder_is_refused_at_once(store: Store, tmp_path: Path, capsys: Captured) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        assert "Name a file that" in refused(capsys, "import", str(tmp_path / name))
