"""vLLM's own options without vLLM: which there are, and the values that they take.

They come from a table (``serve_options.txt``) that was written from vLLM's parser. Values are checked by kind; what
they mean is vLLM's and the planner's business.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_autofit.errors import FlagError
from vllm_autofit.facts.option_limits import what_is_wrong
from vllm_autofit.units import MOST_BYTES, tokens
from vllm_autofit.values import AUTO_CONTEXT

TABLE = Path(__file__).with_name("serve_options.txt")
TABLE_VERSION = "0.32"
TRUE_OR_FALSE = "True or False"

CLOSE = 0.65
"""Likeness from which on a word may have been meant: that of fp9 and fp8, not that of bogus and uds."""


@dataclass(frozen=True)
class Option:
    """One option of ``vllm serve``."""

    name: str
    """As ``EngineArgs`` and the parsed arguments have it."""
    spellings: tuple[str, ...]
    kind: str
    """``switch`` and ``toggle`` take no value; the others say what their value is."""
    arity: str
    """``+`` for one value or more, ``?`` for one or none, empty for one."""
    choices: tuple[str, ...]
    of_engine: bool
    """Whether ``LLM(...)`` takes it too; False for what only a server has."""

    @property
    def flag(self) -> str:
        """Its first spelling."""
        return self.spellings[0]

    def read(self, text: str) -> object:
        """The value that ``text`` stands for; None where it stands for none.

        Raises:
            FlagError: vLLM wouldn't take it.
        """
        if text in ("", "None"):
            return None
        read, expected = _KINDS.get(self.kind, (_not_text, TRUE_OR_FALSE))
        try:
            value = read(text)
        except (ValueError, RecursionError) as error:
            raise FlagError(self.flag, f"{text!r} is not {expected}", "vLLM would not take it either") from error
        self.check(value)
        return value

    def check(self, value: object) -> None:
        """Whether vLLM would take a value that has its type already.

        Raises:
            FlagError: it wouldn't.
        """
        types = _TYPES.get(self.kind)
        if self.arity == "+" and isinstance(value, list | tuple):
            for each in value:
                self.check(each)
        elif types is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            expected = _KINDS[self.kind][1] if self.kind in _KINDS else TRUE_OR_FALSE
            raise FlagError(self.flag, f"{value!r} is not {expected}", "vLLM would not take it either")
        elif self.choices and str(value) not in self.choices:
            raise FlagError(
                self.flag,
                f"{value!r} is not among its values ({', '.join(self.choices)})",
                did_you_mean(str(value), self.choices) or "Choose one of them",
            )
        elif wrong := what_is_wrong(self.name, self.kind, value):
            raise FlagError(self.flag, wrong, "Correct it, or leave it out")


@functools.cache
def known_options() -> Mapping[str, Option]:
    """Every option of ``vllm serve``, by name."""
    options: dict[str, Option] = {}
    of_engine = False
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            of_engine = line == "[engine]"
        elif line and not line.startswith("#"):
            option = _option(line, of_engine)
            options[option.name] = option
    return options


def check_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """Keyword arguments of ``EngineArgs``; text is read as the command line would, None counts as not given.

    Raises:
        FlagError: a name that vLLM doesn't have, or a value that it wouldn't take.
    """
    options = known_options()
    checked: dict[str, object] = {}
    for name, given in fields.items():
        if name not in options or not options[name].of_engine:
            engine_names = [option.name for option in options.values() if option.of_engine]
            raise FlagError(
                name,
                f"vLLM {TABLE_VERSION}'s LLM(...) has no such argument",
                did_you_mean(name, engine_names) or "Leave it out",
            )
        option = options[name]
        value = option.read(given) if isinstance(given, str) else given
        if value is not None:
            option.check(value)
            checked[name] = value
    return checked


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names what is closest to ``word``; empty where nothing is close."""
    bare = {each.lstrip("-"): each for each in known}  # hyphens in front would make all short ones alike
    close = difflib.get_close_matches(word.lstrip("-"), bare, n=1, cutoff=CLOSE)
    return f"Did you mean {bare[close[0]]}?" if close else ""


def _option(line: str, of_engine: bool) -> Option:
    kind, spellings, *choices = line.split(" ")
    names = tuple(spellings.split(","))
    return Option(
        name=names[0].removeprefix("--").replace("-", "_"),
        spellings=names,
        kind=kind.rstrip("+?"),
        arity=kind[-1] if kind[-1] in "+?" else "",
        choices=tuple(choices[0].split("|")) if choices else (),
        of_engine=of_engine,
    )


def _not_text(text: str) -> object:
    raise ValueError(text)


def _context(text: str) -> int:
    return AUTO_CONTEXT if text == str(AUTO_CONTEXT) or text.lower() == "auto" else tokens(text)


def _tokens(text: str) -> int:
    return tokens(text, MOST_BYTES)  # some of them are bytes; each option's own range comes after


def _mixed(text: str) -> object:
    return json.loads(text) if text.strip().startswith("{") else text


_KINDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "tokens": (_tokens, "a number such as 8192, 8k (8000) or 8K (8192)"),
    "context": (_context, "a number of tokens such as 8192, 8k (8000) or 8K (8192), or auto"),
    "json": (json.loads, "JSON"),
    "mixed": (_mixed, "JSON or text"),
    "text": (str, "text"),
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "switch": (bool,),
    "toggle": (bool,),
    "int": (int,),
    "float": (int, float),
    "tokens": (int,),
    "context": (int,),
}
