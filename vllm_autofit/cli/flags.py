"""A command line of ``vllm serve``, read as vLLM's own parser reads it, without vLLM.

That is: underscores or hyphens, abbreviations, ``--json-option.key value``, ``-O3``, ``--config FILE``.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vllm_autofit.errors import FlagError
from vllm_autofit.facts.serve_options import TABLE_VERSION, Option, did_you_mean, known_options
from vllm_autofit.units import tokens


@dataclass(frozen=True)
class Flags:
    """What was given on a command line."""

    model: str | None
    values: dict[str, object]
    """By name. Several values of one option are a tuple; JSON is a list or a mapping."""


def parse_flags(words: Sequence[str]) -> Flags:
    """What ``vllm serve`` would understand; those two words may stand in front.

    Raises:
        FlagError: an option that vLLM doesn't have, or a value that it wouldn't take.
    """
    command_line = list(words[2:] if list(words[:2]) == ["vllm", "serve"] else words)
    # What the file says comes first: the last word on an option counts.
    given, rest = _parser().parse_known_args(_plain_words(_with_config_file(command_line)))
    unknown = next((word for word in rest if word.startswith("-")), None)
    if unknown is not None:
        name = unknown.split("=")[0]
        spellings = [spelling for option in known_options().values() for spelling in option.spellings]
        raise FlagError(
            name,
            f"vLLM {TABLE_VERSION} has no such option",
            did_you_mean(name, spellings) or "`vllm serve --help=all` lists those it has",
        )
    if len(rest) > 1:
        raise FlagError(rest[1], f"a second model beside {rest[0]}, or a value without its option", "Name one model")
    values = {name: _kept(name, value) for name, value in vars(given).items() if value is not None}
    named = values.pop("model", None)
    return Flags(model=rest[0] if rest else None if named is None else str(named), values=values)


def _kept(name: str, value: object) -> object:
    """Several values as a tuple: a list is JSON's."""
    return tuple(value) if isinstance(value, list) and known_options()[name].arity == "+" else value


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        raise FlagError("vLLM's options", message, "`vllm serve --help=all` lists them")


@functools.cache
def _parser() -> _Parser:
    # No defaults: what wasn't given is absent from the result. No positional argument either: argparse would take an
    # optional one for absent as soon as an option stands before it.
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for option in known_options().values():
        _add(parser, option)
    return parser


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    if option.kind == "switch":
        parser.add_argument(*option.spellings, dest=option.name, action="store_true")
    elif option.kind == "toggle":
        parser.add_argument(*option.spellings, dest=option.name, action=argparse.BooleanOptionalAction)
    else:
        parser.add_argument(
            *option.spellings,
            dest=option.name,
            type=option.read,
            nargs=option.arity or None,
        )


# From what people type to what argparse understands; after vLLM 0.32's FlexibleArgumentParser.parse_args


def _plain_words(words: Sequence[str]) -> list[str]:
    """Hyphens in names, ``-O`` spelled out, and the ``--option.key`` ones of an option put together as JSON."""
    spelled = _spelled_out(words)
    plain: list[str] = []
    parts: dict[str, dict[str, Any]] = {}
    position = 0
    while position < len(spelled):
        name, equals, value = spelled[position].partition("=")
        position += 1
        if not name.startswith("-") or "." not in name or _is_number(name):
            plain.append(name + equals + value)
            continue
        if not equals:
            if position == len(spelled):
                raise FlagError(name, "its value is missing", "Give one")
            value = spelled[position]
            position += 1
        option, *keys = name.removesuffix("+").split(".")
        _put(parts.setdefault(option, {}), keys, value.split(",") if name.endswith("+") else _nested_value(value))
    for option, content in parts.items():
        plain += [option, json.dumps(content)]
    return plain


def _spelled_out(words: Sequence[str]) -> list[str]:
    result: list[str] = []
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            head, dot, keys = name.partition(".")  # the keys of a JSON option keep their underscores
            result.append(head.replace("_", "-") + dot + keys + equals + value)
        elif word == "-O" and following in ("0", "1", "2", "3"):
            result.append("--optimization-level")
        elif word.startswith("-O") and word != "-O":
            result += ["--optimization-level", word[2:].removeprefix("=")]
        else:
            result.append(word)
    return result


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-\d+|-\d*\.\d+", word) is not None


def _nested_value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return tokens(text)
    except ValueError:
        return text


def _put(content: dict[str, Any], keys: Sequence[str], value: object) -> None:
    """Put a value into nested mappings; lists grow."""
    *outer, last = keys
    for key in outer:
        inner = content.get(key)
        if not isinstance(inner, dict):
            inner = content[key] = {}
        content = inner
    if isinstance(value, list) and isinstance(content.get(last), list):
        value = [*content[last], *value]
    content[last] = value


# --config FILE; after vLLM 0.32's FlexibleArgumentParser.load_config_file


def _with_config_file(words: list[str]) -> list[str]:
    equals = next((word for word in words if word.startswith("--config=")), None)
    if equals is not None:
        raise FlagError(equals, "vLLM reads the file only when a space stands before its name", "Write --config FILE")
    if words.count("--config") > 1:
        raise FlagError("--config", "given more than once", "vLLM takes one file")
    if "--config" not in words:
        return words
    place = words.index("--config")
    if place + 1 == len(words):
        raise FlagError("--config", "the name of the file is missing", "Name a YAML file")
    return [*_config_words(words[place + 1]), *words[:place], *words[place + 2 :]]


def _config_words(path: str) -> list[str]:
    content = _read_yaml(path)
    words: list[str] = []
    for key, value in content.items():
        flag = f"--{key}"
        if value is True:
            words.append(flag)
        elif value is False:
            option = known_options().get(str(key).replace("-", "_"))
            words += [f"--no-{key}"] if option is not None and option.kind == "toggle" else []
        elif isinstance(value, list):
            words += [flag, *map(str, value)] if value else []
        elif isinstance(value, dict):
            words += [flag, json.dumps(value)]
        else:
            words += [flag, str(value)]
    return words


def _read_yaml(path: str) -> Mapping[str, object]:
    if not path.endswith((".yaml", ".yml")):
        raise FlagError(f"--config {path}", "vLLM takes .yaml and .yml files only", "Rename the file")
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError as error:
        raise FlagError(f"--config {path}", "reading YAML needs PyYAML", "pip install pyyaml") from error
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FlagError(f"--config {path}", f"it can't be read ({error})", "Check its name and content") from error
    if not isinstance(content, dict):
        raise FlagError(f"--config {path}", "it holds no `option: value` lines", "See vLLM's documentation of --config")
    return content
