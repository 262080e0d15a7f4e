"""``vllm-autofit history``: the starts that are remembered, and what may be done with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.cli.history import changing, reading, sharing
from vllm_autofit.cli.history.selection import age

WHICH = "a start, a key, a model, or the beginning of a start or key"
EXAMPLES = """\
examples:
  vllm-autofit history                                    what worked, what won't fit, what failed
  vllm-autofit history show                               the newest start
  vllm-autofit history pin 20261121T140341Z-5697-c500     the next starts like it use the same settings
  vllm-autofit history export Qwen3-8B -o qwen.json       for another machine: history import qwen.json

exit status: 0 done; 2 bad input, or nothing found; 1 `check` leaves something to be done, or the output can't be
written
"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "history",
        help="the starts that are remembered",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=reading.show_list, which=[], limit=None, older_than=None)
    actions = parser.add_subparsers(dest="action", metavar="ACTION")

    listing = _action(actions, "list", reading.show_list, "all of them, by what came of them, newest first")
    _which(listing, "only these")
    listing.add_argument("--limit", type=_count, metavar="N", help="the newest N (default: all)")

    show = _action(actions, "show", reading.show_start, "everything about one start")
    show.add_argument("which", nargs="?", metavar="WHICH", help=f"{WHICH}: the newest of them (default: of all)")

    forget = _action(actions, "forget", changing.forget, "remove records")
    _which(forget, "these")
    forget.add_argument("--yes", "-y", action="store_true", help="don't ask")

    pin = _action(actions, "pin", changing.pin, "use these settings for all starts like one")
    pin.add_argument("which", metavar="WHICH", help="a start, whose settings are pinned; with --set a key will do")
    pin.add_argument(
        "--set",
        dest="settings",
        nargs="+",
        action="extend",
        metavar="FIELD=VALUE",
        help=f"pin these instead; fields: {', '.join(FIELDS)}",
    )
    pin.add_argument("--note", help="why, for whoever reads it later")

    unpin = _action(actions, "unpin", changing.unpin, "let vllm-autofit decide again")
    unpin.add_argument("which", metavar="WHICH", help="a key, or a start with it")

    export = _action(actions, "export", sharing.export, "records as one file, for another machine")
    _which(export, "only these")
    export.add_argument("--output", "-o", type=Path, metavar="FILE", help="default: stdout")

    imports = _action(actions, "import", sharing.import_, "add the records of exported files")
    imports.add_argument("files", nargs="+", metavar="FILE", help="what `export` wrote; - for stdin")

    _action(actions, "path", reading.show_path, "where the records are kept")

    check = _action(actions, "check", changing.check, "look for damage")
    check.add_argument("--repair", action="store_true", help="repair what can be; nothing is lost")


def _action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    # SUPPRESS: a default of its own would replace what was given before it
    parser.add_argument("--format", choices=("table", "json"), default=argparse.SUPPRESS)
    parser.set_defaults(run=run)
    return parser


def _which(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("which", nargs="*", metavar="WHICH", help=f"{what}: {WHICH}")
    parser.add_argument("--older-than", type=age, metavar="AGE", help="last heard of that long ago: 12h, 30d, 8w")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of starts, 1 or more")
    return int(text)
