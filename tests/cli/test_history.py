"""``vllm-autofit history``: what it lists and shows, forgets and checks."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.history import (
    KEY,
    NEW,
    OLD,
    OTHER,
    OTHER_KEY,
    Captured,
    Terminal,
    as_json,
    put,
    refused,
    run_ids,
    start,
)
from vllm_autofit.cli.main import EXIT_BAD_INPUT, EXIT_OK, main
from vllm_autofit.experience.store import Store

# list


@pytest.mark.parametrize("words", [[], ["list"]], ids=["alone", "list"])
def test_it_lists_the_newest_first(words: list[str], starts: Store, capsys: Captured) -> None:
    assert main(["history", *words]) == EXIT_OK
    output = capsys.readouterr()
    assert [line.split()[0] for line in output.out.splitlines() if line] == ["start", "Known", NEW, OTHER, OLD]
    assert output.err == ""


@pytest.mark.parametrize("words", [["--format", "json"], ["--format", "json", "list"], ["list", "--format", "json"]])
def test_a_format_may_stand_before_or_after_the_action(words: list[str], starts: Store, capsys: Captured) -> None:
    assert main(["history", *words]) == EXIT_OK
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert [(each["run_id"], each["grade"], each["origin"]) for each in document["starts"]] == [
        (NEW, "came up", "own"),
        (OTHER, "came up", "own"),
        (OLD, "came up", "own"),
    ]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([OLD], [OLD]),
        ([OLD[:6]], [OLD]),
        ([KEY], [NEW, OLD]),
        (["fedc"], [OTHER]),
        (["org/one"], [NEW, OLD]),
        (["two", OLD], [OTHER, OLD]),
        (["--older-than", "52w"], [OLD]),
        (["org/two", "--older-than", "1h"], [OTHER]),
        (["--limit", "2"], [NEW, OTHER]),
    ],
    ids=" ".join,
)
def test_it_lists_what_is_named(
    words: list[str], found: list[str], store: Store, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, start(OLD), start(NEW), start(OTHER, OTHER_KEY, "org/two"))
    assert [each["run_id"] for each in as_json(capsys, "list", *words)["starts"]] == found


def test_what_a_limit_leaves_out_is_counted(starts: Store, capsys: Captured) -> None:
    assert main(["history", "list", "--limit", "1"]) == EXIT_OK
    assert capsys.readouterr().err == "vllm-autofit: 2 earlier ones are left out.\n"


@pytest.mark.parametrize("words", [["list", "2"], ["list", "nope"], ["show", "nope"], ["export", ""], ["pin", "202"]])
def test_a_name_that_nothing_has_is_refused(words: list[str], starts: Store, capsys: Captured) -> None:
    message = refused(capsys, *words)
    assert f"{words[-1]!r}: no start, key or model of that name" in message
    assert "`vllm-autofit history` lists" in message


@pytest.mark.parametrize("action", ["list", "show", "forget", "export", "pin", "unpin"])
def test_the_beginning_of_several_starts_is_refused(action: str, starts: Store, capsys: Captured) -> None:
    assert f"2 starts or keys begin so. Name one: {NEW}, {OTHER}." in refused(capsys, action, "2026")


def test_an_empty_history_says_where_it_looked(store: Store, capsys: Captured) -> None:
    assert main(["history"]) == EXIT_OK
    assert capsys.readouterr().out == f"No starts are remembered yet in {store.folder}.\n"
    assert as_json(capsys) == {"schema": 1, "folder": str(store.folder), "starts": [], "pins": []}


def test_nothing_is_that_old(store: Store, capsys: Captured) -> None:
    put(store, start(NEW))
    assert main(["history", "list", "--older-than", "900000w"]) == EXIT_OK
    assert capsys.readouterr().out == "No start is that old.\n"


@pytest.mark.parametrize("words", [["--limit", "0"], ["--limit", "x"], ["--older-than", "1y"], ["--older-than", "-1d"]])
def test_a_number_that_means_nothing_is_refused(words: list[str], starts: Store, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["history", "list", *words])
    assert caught.value.code == EXIT_BAD_INPUT
    assert words[0] in capsys.readouterr().err


def test_a_table_fits_the_terminal(starts: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "50")
    assert main(["history"]) == EXIT_OK
    assert max(map(len, screen.getvalue().splitlines())) <= 50
    assert "KV tokens" in screen.getvalue()


# show


@pytest.mark.parametrize(
    ("words", "found"), [([], NEW), ([OLD], OLD), ([OTHER[:8]], OTHER), ([KEY], NEW), (["one"], NEW)]
)
def test_show_takes_the_newest_that_is_meant(words: list[str], found: str, starts: Store, capsys: Captured) -> None:
    assert main(["history", "show", *words]) == EXIT_OK
    assert capsys.readouterr().out.startswith(f"start      {found}  (")


def test_show_as_json_holds_the_whole_record(starts: Store, capsys: Captured) -> None:
    document = as_json(capsys, "show", OLD)
    assert document["record"] == start(OLD)
    assert document["start"]["run_id"] == OLD
    assert document["pinned"] is None


def test_show_without_any_start_is_refused(store: Store, capsys: Captured) -> None:
    assert f"no start is remembered in {store.folder}" in refused(capsys, "show")


@pytest.mark.parametrize("words", [[], ["show"]], ids=["list", "show"])
def test_a_damaged_record_is_named_and_the_rest_is_shown(words: list[str], starts: Store, capsys: Captured) -> None:
    damaged = starts.path(KEY, NEW)
    damaged.write_text("{")
    assert main(["history", *words]) == EXIT_OK
    output = capsys.readouterr()
    assert OTHER in output.out
    assert output.err.startswith(f"vllm-autofit: {damaged} is not a readable record (")
    assert output.err.endswith(f"kept as {NEW}.damaged.\n")


def test_a_damaged_pin_is_named_once(starts: Store, capsys: Captured) -> None:
    starts.pin(KEY, {"enforce_eager": True}).write_text("[]")
    assert main(["history"]) == EXIT_OK
    assert capsys.readouterr().err.count("is not a readable record") == 1


def test_a_history_that_can_not_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    message = refused(capsys)
    assert f"cannot use {tmp_path}" in message
    assert "VLLM_AUTOFIT_CACHE_DIR" in message


# forget


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ([OLD], [NEW, OTHER]),
        ([KEY], [OTHER]),
        (["two"], [NEW, OLD]),
        (["--older-than", "52w"], [NEW, OTHER]),
        (["org/two", "--older-than", "1h"], [NEW, OLD]),
        ([OLD, NEW, OTHER], []),
    ],
    ids=" ".join,
)
def test_forget_removes_what_is_named_and_nothing_else(
    words: list[str], left: list[str], starts: Store, capsys: Captured
) -> None:
    assert main(["history", "forget", "--yes", *words]) == EXIT_OK
    assert capsys.readouterr().out == f"Forgot {3 - len(left)} start{'' if len(left) == 2 else 's'}.\n"
    assert run_ids(starts) == left


@pytest.mark.parametrize(("answer", "left"), [("y\n", [OTHER]), ("YES\n", [OTHER]), ("n\n", 3), ("\n", 3), ("", 3)])
def test_forget_asks_on_a_terminal(
    answer: str, left: Any, starts: Store, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    assert main(["history", "forget", KEY]) == EXIT_OK
    output = capsys.readouterr()
    assert f"forget 2 starts ({NEW}, {OLD}), yes or no?" in output.err
    assert ("nothing is forgotten" in output.err) == (left == 3)
    assert run_ids(starts) == ([NEW, OTHER, OLD] if left == 3 else left)


def test_forget_does_nothing_where_nobody_can_be_asked(
    starts: Store, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert "Give --yes" in refused(capsys, "forget", KEY)
    monkeypatch.setattr(sys, "stdin", None)
    assert "Give --yes" in refused(capsys, "forget", KEY)
    assert len(run_ids(starts)) == 3


def test_forget_without_a_name_is_refused(starts: Store, capsys: Captured) -> None:
    assert "--older-than 30d" in refused(capsys, "forget", "--yes")


def test_forget_finds_nothing_that_old(starts: Store, capsys: Captured) -> None:
    assert "no such start is that old" in refused(capsys, "forget", NEW, "--older-than", "900000w")


def test_a_start_that_was_heard_of_lately_is_not_old(store: Store, capsys: Captured) -> None:
    lately = {"serving": {"until": "2999-01-01T00:00:00+00:00", "requests": 1}}
    put(store, start(OLD, engines=[lately]), start(NEW, started_at="once upon a time"))
    assert "no such start is that old" in refused(capsys, "forget", "--older-than", "1h")


# layers


@pytest.fixture
def layer(starts: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The three starts in a read-only layer, and a store of the user's own with the newest of them."""
    monkeypatch.setenv("VLLM_AUTOFIT_PROFILES", str(starts.folder))
    monkeypatch.setenv("VLLM_AUTOFIT_CACHE_DIR", str(tmp_path / "own"))
    own = Store(tmp_path / "own")
    put(own, start(NEW))
    return own


def test_a_list_says_what_lies_in_a_layer(layer: Store, capsys: Captured) -> None:
    origins = {each["run_id"]: each["origin"] for each in as_json(capsys)["starts"]}
    assert origins == {NEW: "own", OTHER: "layer", OLD: "layer"}


def test_what_lies_in_a_layer_can_not_be_forgotten(layer: Store, starts: Store, capsys: Captured) -> None:
    message = refused(capsys, "forget", "--yes", "two")
    assert "1 start in a read-only layer" in message
    assert "VLLM_AUTOFIT_PROFILES" in message
    assert main(["history", "forget", "--yes", KEY]) == EXIT_OK
    assert "left in a read-only layer: 1 start." in capsys.readouterr().err
    assert run_ids(layer) == []
    assert len(run_ids(starts)) == 3


def test_a_pin_in_a_layer_can_be_overruled_but_not_removed(layer: Store, starts: Store, capsys: Captured) -> None:
    starts.pin(KEY, {"max_num_seqs": 8})
    assert "read-only layer" in refused(capsys, "unpin", KEY)
    assert main(["history", "pin", KEY, "--set", "max_num_seqs=16"]) == EXIT_OK
    capsys.readouterr()
    assert as_json(capsys)["pins"][0]["settings"] == {"max_num_seqs": 16}


def test_path_names_the_folder_and_the_layers(layer: Store, starts: Store, capsys: Captured) -> None:
    assert main(["history", "path"]) == EXIT_OK
    assert capsys.readouterr().out == f"{layer.folder}\n"
    assert as_json(capsys, "path") == {"schema": 1, "folder": str(layer.folder), "layers": [str(starts.folder)]}


# check


def test_check_says_that_all_is_well(starts: Store, capsys: Captured) -> None:
    for folder in (starts.folder, starts.starts):
        folder.chmod(0o700)
    assert main(["history", "check"]) == EXIT_OK
    assert capsys.readouterr().out == "All is well.\n"


def test_check_finds_repairs_and_says_what_is_left(starts: Store, capsys: Captured) -> None:
    for folder in (starts.folder, starts.starts):
        folder.chmod(0o700)
    damaged, newer = starts.path(KEY, NEW), starts.path(KEY, OLD)
    damaged.write_text("{")
    newer.write_text(json.dumps({**start(OLD), "schema": 99}))
    assert main(["history", "check"]) == 1
    assert damaged.exists()
    assert f"damaged: {damaged}: " in capsys.readouterr().out
    assert main(["history", "check", "--repair"]) == 1
    assert "2 found, 1 repaired; the rest" in capsys.readouterr().out
    assert not damaged.exists()
    assert main(["history", "check", "--format", "json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["problem"], finding["path"], finding["repaired"]) == ("newer schema", str(newer), False)


def test_what_a_check_repaired_is_no_finding_any_more(starts: Store, capsys: Captured) -> None:
    starts.folder.chmod(0o755)
    assert main(["history", "check", "--repair"]) == EXIT_OK
    assert "all repaired" in capsys.readouterr().out
    assert starts.folder.stat().st_mode & 0o777 == 0o700
