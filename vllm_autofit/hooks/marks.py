"""How we know what the user set: defaults that are equal to vLLM's, but recognisable.

Once an ``EngineArgs`` exists, a default and the same value typed by a user look alike. So the defaults themselves are
replaced, wherever vLLM keeps them, by values that compare, print, compute, copy and pickle like the originals and carry
a mark. A marked value that arrives in ``create_engine_config`` was set by nobody; anything else was. Fields whose
default is None need no mark.

The mark rides inside the value, so it survives every road to the engine: argparse, ``from_cli_args``, ``LLM``,
``dataclasses.replace``, ``asdict``, ``vars``, ``copy``, ``pickle``. A later assignment replaces it, as it should.
"""

from __future__ import annotations

from typing import Any

from vllm_autofit import FIELDS


class Mark:
    """A default that nobody chose."""

    __slots__ = ()


class MarkedFloat(Mark, float):
    """A float, such as the default of ``gpu_memory_utilization``."""

    __slots__ = ()


class MarkedInt(Mark, int):
    """A whole number, such as the ``max_num_seqs`` that vLLM itself filled in."""

    __slots__ = ()


class MarkedBool(Mark, int):
    """True or False. Python's own bool can't be subclassed."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(bool(self))


class MarkedStr(Mark, str):
    """A string, such as the default of ``kv_cache_dtype``."""

    __slots__ = ()

    def __str__(self) -> str:  # argparse sends string defaults through their type, which is often str
        return self


_WITH_MARK: dict[type, type[Mark]] = {
    bool: MarkedBool,
    float: MarkedFloat,
    int: MarkedInt,
    str: MarkedStr,
}

set_in_config_file: set[str] = set()
"""Fields that a ``--config`` file sets to false: vLLM turns those into no argument at all."""


originals: dict[str, list[Any]] = {}
"""Per field, the very objects that were vLLM's defaults before we marked them."""


def mark(value: Any) -> Any:
    """``value`` with a mark; None, and what has no marked kind, stays as it is."""
    kind = _WITH_MARK.get(type(value))
    return value if kind is None else kind(value)  # type: ignore[call-arg]


def mark_default(name: str, value: Any) -> Any:
    """``mark(value)`` for the default of a field, keeping the original object in ``originals``."""
    originals.setdefault(name, []).append(value)
    return mark(value)


def unmark(value: Any) -> Any:
    """The plain value."""
    if isinstance(value, MarkedBool):
        return bool(value)
    if isinstance(value, MarkedFloat):
        return float(value)
    if isinstance(value, MarkedInt):
        return int(value)
    if isinstance(value, MarkedStr):
        return str.__str__(value)
    return value


def set_by_user(engine_args: Any) -> frozenset[str]:
    """Which of the five fields somebody set."""
    return frozenset(
        name
        for name in FIELDS
        if name in set_in_config_file
        or not (getattr(engine_args, name) is None or isinstance(getattr(engine_args, name), Mark))
    )
