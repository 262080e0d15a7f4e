"""Reading a config: values are checked as they are read, and what is missing comes from the config class's defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_autofit.errors import ConfigError

LARGEST_SIZE = 2**31 - 1
"""Of any dimension. The largest in use are vocabularies and contexts of some ten million."""
MOST_LAYERS = 4096
"""The deepest models served have about 130."""

_MISSING: Any = object()


class Fields:
    """One part of a config (the whole, its text part, a vision part ...), read by name.

    Several names for the same thing are tried in order, first in what the file says, then in the defaults of its config
    class. A name that the file sets to null counts as said: the answer is None, and no default replaces it.
    """

    def __init__(self, given: Mapping[str, object], filled: Mapping[str, object], where: str = "") -> None:
        self.given = given
        self.filled = filled
        self.where = where
        """Prefix of names in messages: ``text_config.``."""
        self.assumed: list[str] = []
        """Sizes that came from the defaults, in the order they were read."""

    def get(self, *names: str) -> Any:
        """The first value that isn't null, unchecked; None without one."""
        value = self._look(names)
        return None if value is _MISSING else value

    def _look(self, names: Sequence[str]) -> Any:
        said_null = False
        for name in names:
            if name in self.given:
                if self.given[name] is not None:
                    return self.given[name]
                said_null = True
        if said_null:
            return None
        for name in names:
            if self.filled.get(name) is not None:
                return self.filled[name]
        return _MISSING

    def says(self, name: str) -> bool:
        """Whether the file itself has a value for this name."""
        return self.given.get(name) is not None

    def size(self, *names: str, most: int = LARGEST_SIZE) -> int:
        """A size that the model can't be without.

        Raises:
            ConfigError: missing, or not a whole number from 1 to ``most``.
        """
        value = self._look(names)
        if value is _MISSING or value is None:
            raise ConfigError(self.where + names[0], MISSING, COMPLETE)
        if not any(name in self.given for name in names):
            name = next(name for name in names if name in self.filled)
            if name not in self.assumed:
                self.assumed.append(name)
        return whole_number(value, self.where + names[0], 1, most)

    def size_or(self, fallback: int, *names: str, least: int = 0, most: int = LARGEST_SIZE) -> int:
        """A size, or ``fallback`` where neither file nor defaults have one. Zero is allowed."""
        value = self._look(names)
        if value is _MISSING or value is None:
            return fallback
        return whole_number(value, self.where + names[0], least, most)

    def maybe(self, *names: str) -> int | None:
        """A size, None where it is missing or zero."""
        return self.size_or(0, *names) or None

    def largest(self, fallback: int, *names: str, most: int = LARGEST_SIZE) -> int:
        """A size that some configs give layer by layer; the largest then, ``fallback`` without any."""
        value = self.get(*names)
        if not isinstance(value, (list, tuple)):
            return self.size_or(fallback, *names, most=most)
        return max((whole_number(one, self.where + names[0], 0, most) for one in value), default=fallback)

    def numbers(self, *names: str) -> list[int] | None:
        """A list of whole numbers (of layers), None where it is missing or empty."""
        found = self.items(*names)
        return None if found is None else [whole_number(one, self.where + names[0], -1, LARGEST_SIZE) for one in found]

    def number(self, fallback: float, *names: str) -> float:
        """Any finite number that isn't negative."""
        value = self.get(*names)
        if value is None:
            return fallback
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST_SIZE:
            raise ConfigError(self.where + names[0], f"{_short(value)} is not a number from 0 to 2^31", _EDITED)
        return float(value)

    def flag(self, name: str, fallback: bool = False) -> bool:
        """A yes or no. Numbers count as in Python; anything else is refused."""
        value = self.get(name)
        if value is None:
            return fallback
        if not isinstance(value, (bool, int)):
            raise ConfigError(self.where + name, f"{_short(value)} is not true or false", _EDITED)
        return bool(value)

    def text(self, *names: str) -> str:
        """A word, empty where it is missing."""
        value = self.get(*names)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ConfigError(self.where + names[0], f"{_short(value)} is not text", _EDITED)
        return value

    def items(self, *names: str, length: int | None = None) -> list[Any] | None:
        """A list; with ``length``, of at least so many items, cut to it. None where it is missing or empty.

        Longer lists are cut because vLLM does so: layer lists may count the layers of a drafter too.
        """
        value = self.get(*names)
        if value is None or (isinstance(value, (list, tuple)) and not value):
            return None
        if not isinstance(value, (list, tuple)):
            raise ConfigError(self.where + names[0], f"{_short(value)} is not a list", _EDITED)
        if length is not None and len(value) < length:
            raise ConfigError(
                self.where + names[0], f"{len(value)} items for {length} layers", "Compare with the number of layers"
            )
        return list(value[:length])

    def part(self, *names: str) -> Fields | None:
        """A nested part, None where it is missing or empty."""
        value = self.get(*names)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            raise ConfigError(self.where + names[0], f"{_short(value)} is not an object", _EDITED)
        default = self.filled.get(names[0])
        return Fields(value, default if isinstance(default, Mapping) else {}, f"{self.where}{names[0]}.")


MISSING = "missing"
"""``ConfigError.reason`` where a size is neither said nor filled in."""
COMPLETE = "Take the whole config.json that belongs to the checkpoint"
_EDITED = "Take the config.json that belongs to the checkpoint, unedited"


def whole_number(value: object, where: str, least: int, most: int) -> int:
    """``value`` itself where it is a whole number in these bounds.

    Raises:
        ConfigError: anything else, a bool and a float included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(where, f"{_short(value)} is not a whole number from {least} to {most}", _EDITED)
    return int(value)


def _short(value: object) -> str:
    """A value for a message, whatever its size; containers may be endless."""
    if isinstance(value, (str, bytes)):
        return repr(value[:40]) + ("..." if len(value) > 40 else "")
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    return f"a {type(value).__name__}"
