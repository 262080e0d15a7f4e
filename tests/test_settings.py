"""The environment variables: what each accepts, and what becomes of a value that it doesn't."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import GIB, MIB
from vllm_autofit import OFF, VARIABLES, switched_off
from vllm_autofit.settings import (
    DEFAULT_MIN_CONTEXT_TOKENS,
    ON,
    POLICIES,
    read_settings,
)
from vllm_autofit.values import Rules, Share

BAD = {
    "VLLM_AUTOFIT": ("banana", "1, 0 or observe", "on"),
    "VLLM_AUTOFIT_POLICY": ("fast", "one of balanced, throughput, context, safe", "balanced"),
    "VLLM_AUTOFIT_MIN_CONTEXT": ("lots", "a positive number of tokens", "4096"),
    "VLLM_AUTOFIT_HEADROOM": ("some", "a size such as 1.5GiB", "chosen by the planner"),
    "VLLM_AUTOFIT_SHARE": ("half", "a fraction of the device such as 0.5, or a size such as 20GiB", "all that is free"),
    "VLLM_AUTOFIT_CACHE_DIR": ("~nobody-of-this-name/x", "a folder", "vllm-autofit"),
    "VLLM_AUTOFIT_HASH_PATHS": ("maybe", "1 or 0", "False"),
}
"""Per variable with one value: a value that it doesn't accept, and what the warning says was expected and is used."""

environment_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def test_without_variables_everything_is_at_its_default_and_nothing_is_warned_of() -> None:
    settings = read_settings({})
    assert settings.mode == "on"
    assert settings.policy == "balanced"
    assert settings.min_context_tokens == DEFAULT_MIN_CONTEXT_TOKENS == 4096
    assert settings.headroom_bytes is None
    assert settings.cache_dir.name == "vllm-autofit"
    assert settings.cache_dir.is_absolute()
    assert settings.warnings == ()


def test_the_default_cache_folder_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_settings({}).cache_dir == tmp_path / "vllm-autofit"


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_value_counts_as_unset(name: str, blank: str) -> None:
    assert read_settings({name: blank}) == read_settings({})


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_becomes_one_warning_with_the_value_what_was_expected_and_what_is_used(name: str) -> None:
    value, expected, default = BAD[name]
    settings = read_settings({name: value})
    (warning,) = settings.warnings
    assert warning.startswith(f"{name}={value!r} is not {expected}")
    assert "using the default (" in warning
    assert default in warning.rpartition("using the default (")[2]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_leaves_the_default(name: str) -> None:
    bad, good = read_settings({name: BAD[name][0]}), read_settings({})
    assert (bad.mode, bad.rules, bad.cache_dir) == (good.mode, good.rules, good.cache_dir)


def test_every_bad_value_is_warned_of_once_in_the_order_of_the_variables() -> None:
    settings = read_settings({name: bad for name, (bad, _, _) in BAD.items()})
    assert [warning.partition("=")[0] for warning in settings.warnings] == [name for name in VARIABLES if name in BAD]


def test_a_bad_value_does_not_spoil_a_good_one() -> None:
    settings = read_settings({"VLLM_AUTOFIT_POLICY": "fast", "VLLM_AUTOFIT_MIN_CONTEXT": "8K"})
    assert (settings.policy, settings.min_context_tokens) == ("balanced", 8192)


@pytest.mark.parametrize("text", [word for word in ON if word] + ["ON", " True "])
def test_the_words_for_on(text: str) -> None:
    assert read_settings({"VLLM_AUTOFIT": text}).mode == "on"


@pytest.mark.parametrize("text", [*OFF, "OFF", " No "])
def test_the_words_for_off(text: str) -> None:
    assert read_settings({"VLLM_AUTOFIT": text}).mode == "off"
    assert switched_off({"VLLM_AUTOFIT": text})


@pytest.mark.parametrize("text", ["observe", "Observe"])
def test_observe(text: str) -> None:
    assert read_settings({"VLLM_AUTOFIT": text}).mode == "observe"


def test_only_the_words_for_off_switch_off() -> None:
    assert not switched_off({})
    for text in ("", "1", "observe", "banana", "00"):
        assert not switched_off({"VLLM_AUTOFIT": text}), text


@given(environment_text)
def test_the_early_question_and_the_settings_agree_on_off(text: str) -> None:
    environ = {"VLLM_AUTOFIT": text}
    assert switched_off(environ) == (read_settings(environ).mode == "off")


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_in_any_case(policy: str) -> None:
    for text in (policy, policy.upper(), f" {policy} "):
        assert read_settings({"VLLM_AUTOFIT_POLICY": text}).policy == policy


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("8192", 8192), ("1", 1), ("8k", 8000), ("8K", 8192), ("1m", 1_000_000), ("1M", 2**20), (" 16K ", 16384)],
)
def test_tokens_are_spelled_as_on_the_command_line_of_vllm(text: str, tokens: int) -> None:
    settings = read_settings({"VLLM_AUTOFIT_MIN_CONTEXT": text})
    assert (settings.min_context_tokens, settings.warnings) == (tokens, ())


@pytest.mark.parametrize("text", ["0", "-1", "auto", "8 K", "8.5K", "8KiB", "0x10", "1e3", "9" * 30, "9" * 5000])
def test_not_a_number_of_tokens(text: str) -> None:
    settings = read_settings({"VLLM_AUTOFIT_MIN_CONTEXT": text})
    assert settings.min_context_tokens == DEFAULT_MIN_CONTEXT_TOKENS
    assert len(settings.warnings) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1.5GiB", 3 * GIB // 2),
        ("800MiB", 800 * MIB),
        ("2", 2 * GIB),
        ("0.5", GIB // 2),
        ("0", 0),
        ("512k", 512 * 1024),
        ("4096B", 4096),
        ("1TiB", 1024 * GIB),
    ],
)
def test_a_size_has_a_unit_or_is_in_gib(text: str, size: int) -> None:
    settings = read_settings({"VLLM_AUTOFIT_HEADROOM": text})
    assert (settings.headroom_bytes, settings.warnings) == (size, ())


@pytest.mark.parametrize("text", ["2GiB", "2gib", "2 GiB", "2GB", "2G", "2g", " 2.0 g "])
def test_units_are_powers_of_1024_however_they_are_written(text: str) -> None:
    assert read_settings({"VLLM_AUTOFIT_HEADROOM": text}).headroom_bytes == 2 * GIB


@pytest.mark.parametrize("text", ["-1GiB", "GiB", "1.5.2", "1,5GiB", "10%", "1e3", "inf", "nan", "2000TiB", "9" * 400])
def test_not_a_size(text: str) -> None:
    settings = read_settings({"VLLM_AUTOFIT_HEADROOM": text})
    assert settings.headroom_bytes is None
    assert len(settings.warnings) == 1


def test_a_cache_folder_need_not_exist_yet(tmp_path: Path) -> None:
    wanted = tmp_path / "not" / "yet"
    settings = read_settings({"VLLM_AUTOFIT_CACHE_DIR": str(wanted)})
    assert (settings.cache_dir, settings.warnings) == (wanted, ())
    assert not wanted.exists()


def test_a_cache_folder_that_is_a_file_is_a_bad_value(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    settings = read_settings({"VLLM_AUTOFIT_CACHE_DIR": str(file)})
    assert settings.cache_dir == read_settings({}).cache_dir
    (warning,) = settings.warnings
    assert str(file) in warning
    assert str(settings.cache_dir) in warning


def test_a_cache_folder_that_no_file_system_can_hold_is_a_bad_value() -> None:
    assert len(read_settings({"VLLM_AUTOFIT_CACHE_DIR": "/" + "x" * 300}).warnings) == 1


def test_a_cache_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read_settings({"VLLM_AUTOFIT_CACHE_DIR": "here"}).cache_dir == tmp_path / "here"
    assert read_settings({"VLLM_AUTOFIT_CACHE_DIR": "~/there"}).cache_dir == tmp_path / "home" / "there"


def test_profiles_are_a_list_of_folders_and_files_in_the_order_given(tmp_path: Path) -> None:
    folder, file = tmp_path / "team", tmp_path / "baked.json"
    folder.mkdir()
    file.write_text("{}")
    settings = read_settings({"VLLM_AUTOFIT_PROFILES": f"{file}{os.pathsep} {folder} {os.pathsep}"})
    assert (settings.profiles, settings.warnings) == ((file, folder), ())


def test_profiles_may_be_relative_or_of_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("here", "home/there"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = read_settings({"VLLM_AUTOFIT_PROFILES": f"here{os.pathsep}~/there"})
    assert settings.profiles == (tmp_path / "here", tmp_path / "home" / "there")


def test_profiles_that_can_not_be_read_are_one_warning_and_the_others_are_used(tmp_path: Path) -> None:
    (tmp_path / "team").mkdir()
    entries = ["/no/such/folder", str(tmp_path / "team"), "~nobody-of-this-name/x", "/" + "x" * 300]
    settings = read_settings({"VLLM_AUTOFIT_PROFILES": os.pathsep.join(entries)})
    assert settings.profiles == (tmp_path / "team",)
    (warning,) = settings.warnings
    assert warning.startswith("VLLM_AUTOFIT_PROFILES: /no/such/folder, ~nobody-of-this-name/x, /xxx")
    assert str(tmp_path) not in warning


@pytest.mark.parametrize(("text", "hashed"), [("1", True), ("on", True), ("0", False), ("No", False), ("", False)])
def test_paths_are_hashed_when_asked_for(text: str, hashed: bool) -> None:
    settings = read_settings({"VLLM_AUTOFIT_HASH_PATHS": text})
    assert (settings.hash_paths, settings.warnings) == (hashed, ())


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a container's user has whose number no file knows: no entry among the users, and no HOME."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_home_can_name_a_cache_folder(no_home: None, tmp_path: Path) -> None:
    settings = read_settings({"VLLM_AUTOFIT_CACHE_DIR": str(tmp_path)})
    assert (settings.cache_dir, settings.warnings) == (tmp_path, ())


@pytest.mark.parametrize("trap", ["a link", "a file", "a folder that everybody can write to"])
def test_records_go_nowhere_that_another_user_prepared(
    no_home: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trap: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    expected = tmp_path / f"vllm-autofit-{os.getuid()}"
    assert read_settings({}).cache_dir == expected
    if trap == "a link":
        expected.symlink_to(tmp_path)
    elif trap == "a file":
        expected.touch()
    else:
        expected.mkdir()
        expected.chmod(0o777)
    settings = read_settings({})
    assert settings.cache_dir != expected
    assert settings.cache_dir.parent == tmp_path
    assert str(settings.cache_dir) in settings.warnings[0]


def test_a_user_without_a_home_keeps_the_other_settings(no_home: None) -> None:
    assert read_settings({"VLLM_AUTOFIT": "observe"}).mode == "observe"


def test_the_environment_of_the_process_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_AUTOFIT_POLICY", "safe")
    assert read_settings() == read_settings(os.environ)
    assert read_settings().policy == "safe"


def test_the_rules_are_what_planning_needs_of_the_settings() -> None:
    settings = read_settings(
        {
            "VLLM_AUTOFIT_POLICY": "context",
            "VLLM_AUTOFIT_MIN_CONTEXT": "32K",
            "VLLM_AUTOFIT_HEADROOM": "3GiB",
            "VLLM_AUTOFIT_SHARE": "0.5",
        }
    )
    assert settings.rules == Rules("context", 32768, 3 * GIB, Share(0.5, is_fraction=True))


@pytest.mark.parametrize(
    ("text", "amount", "is_fraction"),
    [
        ("0.5", 0.5, True),
        (".25", 0.25, True),
        ("1", 1.0, True),
        ("1.0", 1.0, True),
        ("1.5", 1.5 * GIB, False),
        ("20", 20 * GIB, False),
        ("20GiB", 20 * GIB, False),
        ("1GiB", GIB, False),
        ("800 MiB", 800 * MIB, False),
    ],
)
def test_a_share_is_a_fraction_up_to_one_and_a_size_beyond(text: str, amount: float, is_fraction: bool) -> None:
    settings = read_settings({"VLLM_AUTOFIT_SHARE": text})
    assert (settings.share, settings.warnings) == (Share(amount, is_fraction), ())


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "50%", "1e-3", "nan", "inf", "0 GiB", "0.5.5", "2000TiB"])
def test_what_is_no_share_is_warned_of_and_counts_as_none(text: str) -> None:
    settings = read_settings({"VLLM_AUTOFIT_SHARE": text})
    assert settings.share is None
    assert len(settings.warnings) == 1


@given(st.dictionaries(st.sampled_from(VARIABLES), environment_text))
def test_no_text_raises_or_is_warned_of_twice(environ: dict[str, str]) -> None:
    settings = read_settings(environ)
    assert len(settings.warnings) <= len(environ)
    assert settings.min_context_tokens > 0
    assert settings.headroom_bytes is None or settings.headroom_bytes >= 0
