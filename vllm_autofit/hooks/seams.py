"""One way to hook a function of vLLM's: wait for its module, probe it, wrap it once, chain with whoever wrapped it."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from vllm_autofit.errors import SeamError
from vllm_autofit.hooks.guard import Wrapper, attempt, report, shield


@dataclass(frozen=True)
class Seam:
    """A function of vLLM's that we wrap.

    Attributes:
        module: where it lives.
        name: ``Class.function``.
        parameters: the names its parameters must begin with, without self or cls.
        wrapper: ours, in wrapt's shape.
        purpose: what stops working without it, in the words of a user.
        optional: absent from some supported versions, so absence is no news.
        elsewhere: where other supported versions have the same function.
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    wrapper: Wrapper
    purpose: str
    optional: bool = False
    elsewhere: tuple[str, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """Where it may be."""
        return (self.module, *self.elsewhere)


BOUND = ("self", "cls")
"""Parameters that nobody passes."""

_done: set[tuple[str, str]] = set()


def declared() -> Iterator[tuple[str, Seam]]:
    """Every seam of this room's modules, in their order, and the name of its module."""
    package = importlib.import_module(__package__ or "")
    for info in pkgutil.iter_modules(package.__path__):
        for seam in getattr(importlib.import_module(f"{package.__name__}.{info.name}"), "SEAMS", ()):
            yield info.name, seam


def install(seam: Seam) -> None:
    """Wrap the function now if its module is loaded, else when it is; say so if no module of this vLLM can have it."""
    if not seam.optional and not any(map(_is_there, seam.modules)):
        report(seam.purpose, _missing(seam, seam.module))
    for module in seam.modules:
        wrapt.register_post_import_hook(lambda module: attempt(seam.purpose, _wrap, seam, module), module)


def _wrap(seam: Seam, module: ModuleType) -> None:
    if (seam.module, seam.name) in _done:
        return
    if _find(seam, module) is None and (seam.optional or _is_elsewhere(seam, module)):
        return
    probe(seam, module)
    wrapt.wrap_function_wrapper(module, seam.name, shield(seam.wrapper, seam.purpose))
    _done.add((seam.module, seam.name))


def probe(seam: Seam, module: ModuleType) -> None:
    """Check that the function is there and takes what we know.

    Raises:
        SeamError: it isn't, or doesn't.
    """
    function = _find(seam, module)
    if function is None:
        raise _missing(seam, module.__name__)
    names = [_spelt(each) for each in inspect.signature(function).parameters.values() if each.name not in BOUND]
    if not fits(seam, names):
        raise SeamError(f"{module.__name__}:{seam.name}", f"a function of ({', '.join(names)})", _expected(seam))


def fits(seam: Seam, parameters: Sequence[str]) -> bool:
    """Whether a function of such parameters takes what we know. One that takes any was wrapped before us, and passes
    them on.

    Args:
        seam: ours.
        parameters: their names, without self and cls, ``*`` before one that takes any number.
    """
    if any(name.startswith("*") and not name.startswith("**") for name in parameters):
        return True
    return tuple(parameters[: len(seam.parameters)]) == seam.parameters


def _missing(seam: Seam, module: str) -> SeamError:
    return SeamError(f"{module}:{seam.name}", "missing", _expected(seam))


def _expected(seam: Seam) -> str:
    return f"a function of ({', '.join((*seam.parameters, '...'))})"


def _spelt(parameter: inspect.Parameter) -> str:
    stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
    return ("**" if parameter.kind is parameter.VAR_KEYWORD else stars) + parameter.name


def _find(seam: Seam, module: ModuleType) -> Any:
    found: Any = module
    for part in seam.name.split("."):
        found = getattr(found, part, None)
    return found


def _is_elsewhere(seam: Seam, module: ModuleType) -> bool:
    """Whether another module may have the function: it is looked at when it is imported."""
    return any(_is_there(name) for name in seam.modules if name != module.__name__)


def _is_there(name: str) -> bool:
    """Whether there is such a module. Nothing is imported: that would cost every process time."""
    package, _, rest = name.partition(".")
    paths = getattr(sys.modules.get(package), "__path__", None)
    if paths is None:
        return True  # it isn't imported yet
    for path in paths:
        place = Path(path, *rest.split("."))
        if place.is_dir() or any(place.parent.glob(f"{place.name}.*")):
            return True
    return False
