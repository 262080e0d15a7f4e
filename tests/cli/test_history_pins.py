"""``vllm-autofit history pin`` and ``unpin``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history import KEY, NEW, OLD, OTHER, Captured, as_json, put, refused, settings, start
from vllm_autofit.cli.main import EXIT_OK, main
from vllm_autofit.experience.store import Store


def pinned(store: Store) -> Any:
    pin = Store(store.folder).pinned(KEY)
    return None if pin is None else pin["settings"]


def test_a_start_is_pinned_with_what_it_used(starts: Store, capsys: Captured) -> None:
    assert main(["history", "pin", NEW]) == EXIT_OK
    assert pinned(starts) == {
        "gpu_memory_utilization": 0.9,
        "max_model_len": -1,
        "enforce_eager": False,
        "max_num_seqs": 256,  # what vLLM's own default came to
    }
    assert capsys.readouterr().out == (
        f"Pinned for {KEY}: gpu_memory_utilization=0.9, max_model_len=auto, enforce_eager=False, max_num_seqs=256.\n"
    )
    (pin,) = as_json(capsys)["pins"]
    assert (pin["key"], pin["note"]) == (KEY, f"as in start {NEW}")


def test_what_its_command_sets_itself_is_left_out(store: Store) -> None:
    put(store, start(settings=settings(gpu_memory_utilization=(0.5, "user"))))
    assert main(["history", "pin", NEW]) == EXIT_OK
    assert pinned(store) == {"max_model_len": -1, "max_num_seqs": 256}


def test_a_command_that_sets_everything_leaves_nothing_to_pin(store: Store, capsys: Captured) -> None:
    put(store, start(settings=settings(max_model_len=(8, "user"), gpu_memory_utilization=(0.5, "user")), engines=[{}]))
    assert "sets all" in refused(capsys, "pin", NEW)


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        ({"state": "failed", "failure": {"phase": "no_kv_memory"}}, "won't fit"),
        ({"state": "failed"}, "failed"),
        ({"state": "ended", "ended": {"how": "out_of_memory"}}, "ran out"),
        ({"state": "ended", "ended": {"how": "engine_died"}}, "died"),
    ],
)
def test_a_start_that_did_not_do_well_is_no_example(
    outcome: dict[str, Any], word: str, store: Store, capsys: Captured
) -> None:
    put(store, start(outcome=outcome))
    message = refused(capsys, "pin", NEW)
    assert word in message
    assert "--set" in message
    assert pinned(store) is None


def test_one_that_served_until_it_was_killed_is(store: Store, capsys: Captured) -> None:
    put(store, start(outcome={"state": "ended", "ended": {"how": "killed"}}))
    assert main(["history", "pin", NEW]) == EXIT_OK
    capsys.readouterr()
    put(store, start(outcome={"state": "ended", "ended": {"how": "killed"}}, engines=[]))
    assert "killed" in refused(capsys, "pin", NEW)


def test_a_key_with_several_starts_is_no_example(starts: Store, capsys: Captured) -> None:
    assert f"Name one, or give --set: {NEW}, {OLD}." in refused(capsys, "pin", KEY)


def test_a_model_with_several_keys_is_refused(starts: Store, capsys: Captured) -> None:
    put(starts, start("20261119T120000Z-1-dddd", "aaaa000011112222"))
    for words in (["pin", "org/one", "--set", "max_num_seqs=8"], ["unpin", "org/one"]):
        assert f"2 keys, and a pin is for one. Name one: {KEY}, aaaa000011112222." in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["max_model_len=8192"], {"max_model_len": 8192}),
        (["max_model_len=8k"], {"max_model_len": 8000}),
        (["max-model-len=auto"], {"max_model_len": -1}),
        (["enforce_eager=true", "max_num_seqs=64"], {"enforce_eager": True, "max_num_seqs": 64}),
        (["enforce_eager=False"], {"enforce_eager": False}),
        (
            ["gpu_memory_utilization=0.5", "kv_cache_dtype=fp8"],
            {"gpu_memory_utilization": 0.5, "kv_cache_dtype": "fp8"},
        ),
        (["max_num_seqs=1", "--set", "max_num_seqs=2"], {"max_num_seqs": 2}),
    ],
    ids=" ".join,
)
def test_values_can_be_given(words: list[str], expected: dict[str, Any], starts: Store) -> None:
    assert main(["history", "pin", KEY, "--set", *words]) == EXIT_OK
    assert pinned(starts) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([NEW], f"as in start {NEW}"),
        ([NEW, "--set", "max_num_seqs=8"], "given with --set"),
        ([NEW, "--note", "by hand"], "by hand"),
    ],
)
def test_a_pin_says_why(words: list[str], expected: str, starts: Store) -> None:
    assert main(["history", "pin", *words]) == EXIT_OK
    assert starts.pins()[KEY]["note"] == expected


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("max_model_len", "is not FIELD=VALUE"),
        ("max_model_len=", "is not FIELD=VALUE"),
        ("max_num_seq=3", "Did you mean max_num_seqs?"),
        ("tensor_parallel_size=2", "Choose from gpu_memory_utilization"),
        ("gpu_memory_utilization=1.5", "above 0 and at most 1"),
        ("gpu_memory_utilization=nan", "above 0 and at most 1"),
        ("kv_cache_dtype=fp9", "Did you mean fp8?"),
        ("enforce_eager=maybe", "is not True or False"),
        ("max_model_len=-5", "is not a number of tokens"),
        ("max_model_len=9999999T", "is not a number of tokens"),
        ("max_num_seqs=0", "is not within 1 to"),
        ("max_num_seqs=None", "names no value"),
    ],
)
def test_a_value_that_vllm_would_not_take_is_refused(word: str, said: str, starts: Store, capsys: Captured) -> None:
    assert said in refused(capsys, "pin", KEY, "--set", "enforce_eager=true", word)
    assert pinned(starts) is None


def test_what_the_command_sets_itself_can_not_be_pinned(store: Store, capsys: Captured) -> None:
    put(store, start(settings=settings(max_model_len=(4096, "user"))))
    assert "sets max_model_len, which goes first" in refused(capsys, "pin", KEY, "--set", "max_model_len=8192")


def test_a_pin_can_be_taken_away_once(starts: Store, capsys: Captured) -> None:
    starts.pin(KEY, {"enforce_eager": True})
    assert main(["history", "unpin", NEW]) == EXIT_OK
    assert capsys.readouterr().out == f"No longer pinned: {KEY}.\n"
    assert pinned(starts) is None
    assert f"nothing is pinned for {KEY}" in refused(capsys, "unpin", KEY)


def test_a_pin_outlives_its_starts_and_can_still_be_taken_away(starts: Store, capsys: Captured) -> None:
    starts.pin(KEY, {"enforce_eager": True})
    assert main(["history", "forget", "--yes", KEY, OTHER]) == EXIT_OK
    assert main(["history"]) == EXIT_OK
    assert f"{KEY}  -" in capsys.readouterr().out
    assert main(["history", "unpin", KEY]) == EXIT_OK


def test_show_says_what_is_pinned(starts: Store, capsys: Captured) -> None:
    starts.pin(KEY, {"enforce_eager": True}, "by hand")
    assert main(["history", "show", OLD]) == EXIT_OK
    assert "pinned     eager (by hand)" in capsys.readouterr().out
    assert as_json(capsys, "show", OLD)["pinned"]["settings"] == {"enforce_eager": True}
