"""Which models count as the same, for folders, files and hub names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from vllm_autofit.facts.model import WEIGHT_SUFFIXES, identify

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model as a folder."""
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    (made / "model-00001.safetensors").write_bytes(bytes(100))
    (made / "model-00002.safetensors").write_bytes(bytes(200))
    (made / "README.md").write_text("A model.")
    return made


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of our own, empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fingerprint(model: Path | str, revision: str | None = None) -> str:
    return identify(str(model), revision).fingerprint


# A folder


def test_an_identity_keeps_the_name_and_revision_as_they_were_given(folder: Path) -> None:
    identity = identify(str(folder), "main")
    assert (identity.name, identity.revision) == (str(folder), "main")
    assert identity.fingerprint.startswith("sha256:")


def test_a_moved_folder_is_the_same_model(folder: Path) -> None:
    before = fingerprint(folder)
    assert fingerprint(folder.rename(folder.parent / "elsewhere")) == before


def test_a_copied_folder_is_the_same_model(folder: Path) -> None:
    assert fingerprint(shutil.copytree(folder, folder.parent / "copy")) == fingerprint(folder)


def test_the_order_in_which_files_were_written_does_not_count(folder: Path) -> None:
    again = folder.parent / "again"
    again.mkdir()
    for file in sorted(folder.iterdir(), reverse=True):
        shutil.copy(file, again)
    assert fingerprint(again) == fingerprint(folder)


def test_a_folder_of_links_is_the_same_model(folder: Path) -> None:
    links = folder.parent / "links"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(file)
    assert fingerprint(links) == fingerprint(folder)


def test_a_folder_below_home_may_be_written_with_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert fingerprint("~/model") == fingerprint(folder)


@pytest.mark.parametrize("suffix", WEIGHT_SUFFIXES)
def test_one_more_weight_file_makes_another_model(folder: Path, suffix: str) -> None:
    before = fingerprint(folder)
    (folder / f"adapter{suffix}").write_bytes(b"x")
    assert fingerprint(folder) != before


def test_a_weight_file_of_another_size_makes_another_model(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "model-00001.safetensors").write_bytes(bytes(101))
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_another_config_makes_another_model_even_of_the_same_length(folder: Path, name: str) -> None:
    (folder / name).write_text('{"num_hidden_layers": 2}')
    before = fingerprint(folder)
    (folder / name).write_text('{"num_hidden_layers": 3}')
    assert fingerprint(folder) != before


def test_what_memory_does_not_depend_on_does_not_count(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("The same model, described at length.")
    (folder / ".cache").mkdir()
    (folder / "original.safetensors").mkdir()
    (folder / "gone.safetensors").symlink_to(folder / "nowhere")
    assert fingerprint(folder) == before


def test_an_empty_folder_has_an_identity_too(tmp_path: Path) -> None:
    assert fingerprint(tmp_path).startswith("sha256:")


# A file


def test_a_file_is_known_by_name_and_size_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, moved, other = tmp_path / "model.gguf", tmp_path / "a" / "model.gguf", tmp_path / "other.gguf"
    for path, size in ((one, 10), (moved, 10), (other, 10)):
        path.write_bytes(bytes(size))
    assert fingerprint(one) == fingerprint(moved) != fingerprint(other)
    moved.write_bytes(bytes(11))
    assert fingerprint(one) != fingerprint(moved)


# A name on the hub


def cached(cache: Path, revision: str | None, commit: str = COMMIT) -> None:
    """Put ``some/model`` into a hub cache, as the hub's client does."""
    repository = cache / "models--some--model"
    (repository / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    if revision is not None:
        (repository / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)


def test_a_name_of_which_nothing_is_here_is_known_by_name_and_revision(hub_cache: Path) -> None:
    assert fingerprint("some/model") == fingerprint("some/model", "main") == "hub:some/model@main"
    assert fingerprint("some/model", "v2") == "hub:some/model@v2"


def test_a_name_keeps_its_identity_when_it_is_downloaded_and_says_which_commit_it_is(hub_cache: Path) -> None:
    before = identify("some/model")
    cached(hub_cache, "main")
    after = identify("some/model")
    assert after.fingerprint == before.fingerprint
    assert (before.commit, after.commit) == (None, COMMIT)


def test_a_commit_that_is_cached_is_known_without_a_branch(hub_cache: Path) -> None:
    cached(hub_cache, None)
    assert identify("some/model", COMMIT).commit == COMMIT


def test_another_revision_than_the_cached_one_is_not_taken_for_it(hub_cache: Path) -> None:
    cached(hub_cache, "main")
    assert identify("some/model", "v2").commit is None
    assert fingerprint("some/model", "v2") == "hub:some/model@v2"


def test_an_empty_reference_in_the_cache_says_nothing(hub_cache: Path) -> None:
    cached(hub_cache, "main", commit="")
    assert fingerprint("some/model") == "hub:some/model@main"


def test_a_folder_goes_before_a_hub_name(folder: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(hub_cache, "main")
    (folder.parent / "some").mkdir()
    shutil.copytree(folder, folder.parent / "some" / "model")
    monkeypatch.chdir(folder.parent)
    assert fingerprint("some/model") == fingerprint(folder)
