"""``history list``, ``show`` and ``path``: what only reads."""

from __future__ import annotations

import argparse
import datetime

from vllm_autofit.cli.history.opened import HOW_TO_LIST, open_history, reply, screen_width
from vllm_autofit.cli.history.selection import meant_by, selected
from vllm_autofit.cli.output import say
from vllm_autofit.errors import FlagError
from vllm_autofit.render.history import history_document, history_table, start_document
from vllm_autofit.render.start import start_account


def show_list(options: argparse.Namespace) -> int:
    """All starts, or those that are named."""
    history = open_history()
    now = datetime.datetime.now(datetime.timezone.utc)
    starts = selected(history.starts, options.which, options.older_than, now)
    newest = starts[: options.limit]
    pins = {
        key: pin for key, pin in history.pins.items() if not options.which or key in {start.key for start in newest}
    }
    if newest or pins:
        text = history_table(newest, pins, now, screen_width())
    elif history.starts:
        text = "No start is that old."
    else:
        text = f"No starts are remembered yet in {history.folder}."
    reply(options, text, history_document(newest, pins, str(history.folder)))
    if len(newest) < len(starts):
        say(f"{len(starts) - len(newest):,} earlier ones are left out")
    return 0


def show_start(options: argparse.Namespace) -> int:
    """Everything about one start."""
    history = open_history()
    if options.which is not None:
        start = meant_by(history.starts, options.which)[0]
    elif history.starts:
        start = history.starts[0]
    else:
        raise FlagError("show", f"no start is remembered in {history.folder}", HOW_TO_LIST)
    pinned = history.pins.get(start.key)
    reply(options, start_account(start, pinned, screen_width()), start_document(start, pinned))
    return 0


def show_path(options: argparse.Namespace) -> int:
    """Where the records are."""
    history = open_history()
    layers = [str(layer) for layer in history.layers]
    reply(options, str(history.folder), {"folder": str(history.folder), "layers": layers})
    return 0
