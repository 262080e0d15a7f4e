"""``vllm-autofit history list|show``: the starts that are remembered."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vllm_autofit.cli.output import say
from vllm_autofit.experience.store import Store
from vllm_autofit.render.history import record_account, record_table
from vllm_autofit.settings import read_settings


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("history", help="the starts that are remembered")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="all of them, newest first")
    show = actions.add_parser("show", help="everything about one start")
    show.add_argument("run_id", nargs="?", help="as in the log line or the list; the newest when left out")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    for each in (listing, show):  # SUPPRESS: a default of its own would replace what was given before it
        each.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS)
    listing.set_defaults(run=_list)
    show.set_defaults(run=_show)
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    store = _store()
    records = list(store.everything())
    if options.format == "json":
        print(json.dumps(records, indent=1))
    elif records:
        print(record_table(records))
    else:
        print(f"No starts are remembered yet in {store.folder}.")
    _say_skipped(store)
    return 0


def _show(options: argparse.Namespace) -> int:
    store = _store()
    wanted = options.run_id
    record = next(
        (each for each in store.everything() if wanted is None or str(each["run_id"]).startswith(wanted)),
        None,
    )
    _say_skipped(store)
    if record is None:
        what = "no start is remembered" if wanted is None else f"no start {wanted!r} is remembered"
        say(f"{what} in {store.folder}. `vllm-autofit history` lists them")
        return 2
    print(json.dumps(record, indent=1) if options.format == "json" else record_account(record))
    return 0


def _store() -> Store:
    settings = read_settings()
    for warning in settings.warnings:
        say(warning)
    return Store(settings.cache_dir)


def _say_skipped(store: Store) -> None:
    for message in store.skipped:
        say(message)
