"""``history forget``, ``pin``, ``unpin`` and ``check``: what changes the user's own records."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.cli.history.opened import HOW_TO_LIST, History, open_history, reply
from vllm_autofit.cli.history.selection import few, meant_by, selected
from vllm_autofit.cli.output import say
from vllm_autofit.errors import FlagError
from vllm_autofit.facts.serve_options import check_fields, did_you_mean
from vllm_autofit.render.history import Start, used_fields
from vllm_autofit.render.options import shown
from vllm_autofit.render.start import MEANINGS
from vllm_autofit.render.table import printable

EXIT_FINDINGS = 1
LAYER_REMEDY = "Take the layer out of VLLM_AUTOFIT_PROFILES, or change it where it was made"
WORDS = {"true": True, "false": False}


def forget(options: argparse.Namespace) -> int:
    """Remove the records that are named, after a question."""
    if not options.which and options.older_than is None:
        raise FlagError("forget", "nothing is named", "Name starts, keys or models, or give --older-than 30d")
    history = open_history()
    now = datetime.datetime.now(datetime.timezone.utc)
    chosen = selected(history.starts, options.which, options.older_than, now)
    own = [start for start in chosen if start.origin != "layer"]
    if not own:
        raise _nothing_to_forget(chosen)
    if not options.yes and not _confirmed(own):
        say("nothing is forgotten")
        return 0
    count = history.store.forget([start.run_id for start in own])
    reply(options, f"Forgot {_starts(count)}.", {"forgotten": [start.run_id for start in own]})
    if len(chosen) > len(own):
        say(f"left in a read-only layer: {_starts(len(chosen) - len(own))}. {LAYER_REMEDY}")
    return 0


def _nothing_to_forget(chosen: Sequence[Start]) -> FlagError:
    if chosen:
        return FlagError("forget", f"{_starts(len(chosen))} in a read-only layer, which is left alone", LAYER_REMEDY)
    return FlagError("--older-than", "no such start is that old", HOW_TO_LIST)


def _confirmed(starts: Sequence[Start]) -> bool:
    """Ask on a terminal.

    Raises:
        FlagError: there is nobody to ask.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise FlagError("forget", "nobody can be asked here", "Give --yes if you mean it")
    try:
        say(f"forget {_starts(len(starts))} ({few([start.run_id for start in starts])}), yes or no?")
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


def pin(options: argparse.Namespace) -> int:
    """Keep a start's settings, or those given, for all starts like it."""
    history = open_history()
    starts = meant_by(history.starts, options.which)
    key = _only_key(starts, options.which)
    if options.settings:
        settings, note = _given(options.settings, starts[0]), "given with --set"
    else:
        settings, note = _used(starts, options.which), f"as in start {starts[0].run_id}"
    history.store.pin(key, settings, options.note or note)
    values = ", ".join(f"{name}={shown(name, value)}" for name, value in settings.items())
    reply(options, f"Pinned for {key}: {values}.", {"key": key, "settings": settings})
    return 0


def _only_key(starts: Sequence[Start], word: str) -> str:
    keys = list(dict.fromkeys(start.key for start in starts))
    if len(keys) > 1:
        raise FlagError(repr(word), f"it has {len(keys)} keys, and a pin is for one", f"Name one: {few(keys)}")
    return keys[0]


def _used(starts: Sequence[Start], word: str) -> dict[str, Any]:
    """What the start that is meant used of the fields that its user left open.

    Raises:
        FlagError: several starts are meant, it didn't come up, or its user had set all of them.
    """
    if len(starts) > 1:
        ids = [start.run_id for start in starts]
        raise FlagError(
            repr(word), f"{len(starts)} starts, each with its own settings", f"Name one, or give --set: {few(ids)}"
        )
    start = starts[0]
    if start.family != "works" and not (start.grade == "killed" and start.record["engines"]):
        raise FlagError(
            start.run_id, f"{start.grade}: {MEANINGS[start.grade]}", "Pin one that came up, or give values with --set"
        )
    mine = {name: value for name, value in used_fields(start.record).items() if value is not None}
    settings = {name: value for name, value in mine.items() if not _set_by_user(start, name)}
    if not settings:
        raise FlagError(start.run_id, "the command that started it sets all five fields", "There is nothing to pin")
    return settings


def _given(words: Sequence[str], start: Start) -> dict[str, Any]:
    """``FIELD=VALUE`` as typed.

    Raises:
        FlagError: no such field, a value that vLLM wouldn't take, or a field that these starts set themselves.
    """
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals or not text.strip():
            raise FlagError("--set", f"{word!r} is not FIELD=VALUE", "Such as --set max_model_len=8192")
        if name not in FIELDS:
            remedy = did_you_mean(name, FIELDS) or f"Choose from {', '.join(FIELDS)}"
            raise FlagError("--set", f"{name!r} can't be pinned", remedy)
        if _set_by_user(start, name):
            raise FlagError("--set", f"the command that starts these sets {name}, which goes first", "Change it there")
        text = text.strip()
        checked = check_fields({name: WORDS.get(text.lower(), text)})
        if not checked:
            raise FlagError("--set", f"{word!r} names no value", "`unpin` leaves a field to vllm-autofit again")
        values |= checked
    return values


def _set_by_user(start: Start, name: str) -> bool:
    return (start.record["settings"].get(name) or {}).get("chosen_by") == "user"


def unpin(options: argparse.Namespace) -> int:
    """Take a pin away."""
    history = open_history()
    key = _pinned_key(history, options.which)
    if not history.store.unpin(key):
        raise FlagError(repr(options.which), "its pin is that of a read-only layer", LAYER_REMEDY)
    reply(options, f"No longer pinned: {key}.", {"key": key})
    return 0


def _pinned_key(history: History, word: str) -> str:
    """The key that is meant, which may be one that no start is remembered of."""
    key = word if word in history.pins else _only_key(meant_by(history.starts, word), word)
    if key not in history.pins:
        raise FlagError(repr(word), f"nothing is pinned for {key}", HOW_TO_LIST)
    return key


def check(options: argparse.Namespace) -> int:
    """Look for damage, and repair it where asked."""
    history = open_history()
    findings = history.store.check(repair=options.repair)
    left = [finding for finding in findings if not finding.repaired]
    lines = [
        f"{'repaired' if each.repaired else each.problem}: {printable(each.path)}: {printable(each.detail)}"
        for each in findings
    ]
    lines.append(_verdict(len(findings), len(left), options.repair))
    reply(options, "\n".join(lines), {"findings": [asdict(finding) for finding in findings]})
    return EXIT_FINDINGS if left else 0


def _verdict(found: int, left: int, repair: bool) -> str:
    if not found:
        return "All is well."
    if not left:
        return f"{found:,} found, all repaired."
    remedy = "the rest can't be repaired here" if repair else "--repair puts right what can be, and deletes no record"
    return f"{found:,} found, {found - left:,} repaired; {remedy}."


def _starts(count: int) -> str:
    return f"{count:,} start" + ("" if count == 1 else "s")
