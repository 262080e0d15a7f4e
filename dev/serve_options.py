"""Writes ``vllm_autofit/facts/serve_options.txt``: the options of ``vllm serve``, from the installed vLLM's parser.

Run it as ``python -m dev.serve_options`` after a new vLLM is installed.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from pathlib import Path
from typing import Any

TABLE = Path(__file__).resolve().parent.parent / "vllm_autofit" / "facts" / "serve_options.txt"

HEADING = """\
# Options of `vllm serve`, as vLLM {version} has them. Written by dev/serve_options.py from its parser; don't edit.
# <kind>[+|?] <option>[,<option>...] [<choice>|<choice>...]
# kind: switch (no value), toggle (has a --no- form), int, float, tokens (8k, 8K), context (tokens or auto), json,
# mixed (JSON or text), text.
# + takes one value or more, ? takes one or none.
"""


def main() -> None:
    """Write the table."""
    TABLE.write_text(serve_options())


def serve_options() -> str:
    """The table, for the installed vLLM."""
    from vllm import __version__
    from vllm.engine.arg_utils import EngineArgs

    of_engine = {field.name for field in dataclasses.fields(EngineArgs)}
    engine: list[str] = []
    server: list[str] = []
    for action in _parser()._actions:
        if action.option_strings and action.dest not in ("help", "config"):
            (engine if action.dest in of_engine else server).append(_line(action))
    parts = [HEADING.format(version=__version__), "[engine]\n", *sorted(engine), "[server]\n", *sorted(server)]
    return "".join(parts)


def _parser() -> argparse.ArgumentParser:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    commands = FlexibleArgumentParser(prog="vllm").add_subparsers(dest="subparser")
    parser: argparse.ArgumentParser = ServeSubcommand().subparser_init(commands)
    return parser


def _line(action: argparse.Action) -> str:
    names = [name for name in action.option_strings if not name.startswith("--no-")]
    kind = _kind(action)
    if action.nargs in ("+", "*", "?"):
        kind += "?" if action.nargs == "?" else "+"
    choices = "|".join(str(choice) for choice in action.choices or () if choice is not None)
    return " ".join([kind, ",".join(names), choices]).rstrip() + "\n"


def _kind(action: argparse.Action) -> str:
    if isinstance(action, argparse.BooleanOptionalAction):
        return "toggle"
    if action.nargs == 0:
        return "switch"
    name = _converter(action.type)
    return {
        "int": "int",
        "float": "float",
        "human_readable_int": "tokens",
        "human_readable_int_or_auto": "context",
        "loads": "json",
        "parse_dataclass": "json",
        "union_dict_and_str": "mixed",
    }.get(name, "text")


def _converter(converter: Any) -> str:
    """The name of the function that really reads the value: vLLM wraps most of them."""
    while inspect.isfunction(converter) and converter.__name__ in ("_optional_type", "_parse_type"):
        converter = inspect.getclosurevars(converter).nonlocals["return_type"]
    return str(getattr(converter, "__name__", converter))


if __name__ == "__main__":
    main()
