"""JSON files: what is read, what is refused before it is read, and what a write leaves behind."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from vllm_autofit.errors import RecordError
from vllm_autofit.experience.files import LARGEST_FILE, make_folder, names_in, read_json, set_aside, write_json


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for document in ({"a": [1, 2.5, None, True, "\u00e9\ud800"]}, {"b": 1}):
        write_json(path, document)
        assert read_json(path) == document
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_saved_by_an_editor_that_marks_its_encoding_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "x.json") == {"a": 1}


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", "[Infinity]", "[-Infinity]", "1" * 5000, "[" * 200_000, "\udcff", "{} {}"],
    ids=lambda text: text[:12],
)
def test_what_is_no_json_or_no_number_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RecordError) as caught:
        read_json(path)
    assert caught.value.path == str(path)
    assert caught.value.reason


def test_a_file_is_not_read_further_than_it_may_be_large(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no room on disk, and more memory than there is
    with pytest.raises(RecordError, match=f"larger than {LARGEST_FILE} bytes"):
        read_json(path)
    path.write_text(json.dumps("x" * (LARGEST_FILE - 2)))
    assert len(str(read_json(path))) == LARGEST_FILE - 2


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, "before")
    with pytest.raises(RecordError, match="more than"):
        write_json(path, "x" * LARGEST_FILE)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, float("nan"))
    assert read_json(path) == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_content_and_name_are_on_disk_when_a_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def fsync(handle: int) -> None:
        what = "folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content"
        synced.append(f"{what} {'after' if (tmp_path / 'x.json').exists() else 'before'}")

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "x.json", 1)
    assert synced == ["content before", "folder after"]


def test_folders_are_made_for_the_user_alone_and_left_as_they_are(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [(tmp_path / each).stat().st_mode & 0o777 for each in ("a", "a/b")] == [0o700, 0o700]
    (tmp_path / "a").chmod(0o755)
    make_folder(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755


def test_damaged_files_are_kept_under_names_of_their_own(tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        (tmp_path / "x.json").write_text(content)
        assert set_aside(tmp_path / "x.json").startswith("kept as x.")
    assert sorted(each.read_text() for each in tmp_path.iterdir()) == ["one", "three", "two"]
    assert set_aside(tmp_path / "x.json") == "left where it is"


def test_the_names_in_a_folder_that_does_not_exist_are_none(tmp_path: Path) -> None:
    assert names_in(tmp_path / "none") == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        names_in(tmp_path / "file")
    assert names_in(tmp_path) == ["file"]


def test_a_file_of_nothing_but_lists_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "lists"
    path.write_text("[" + "[]," * 300_000 + "[]]")
    with pytest.raises(RecordError, match="more lists and objects"):
        read_json(path)
