"""One way to hook a function of vLLM's: wait for its module, probe it, wrap it once, chain with whoever wrapped it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import wrapt

from vllm_autofit.errors import SeamError
from vllm_autofit.hooks.guard import Wrapper, attempt, shield


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
    """

    module: str
    name: str
    parameters: tuple[str, ...]
    wrapper: Wrapper
    purpose: str
    optional: bool = False


_done: set[tuple[str, str]] = set()


def install(seam: Seam) -> None:
    """Wrap the function now if its module is loaded, else when it is."""
    wrapt.register_post_import_hook(lambda module: attempt(seam.purpose, _wrap, seam, module), seam.module)


def _wrap(seam: Seam, module: ModuleType) -> None:
    if (seam.module, seam.name) in _done:
        return
    if seam.optional and _find(seam, module) is None:
        return
    probe(seam, module)
    wrapt.wrap_function_wrapper(module, seam.name, shield(seam.wrapper, seam.purpose))
    _done.add((seam.module, seam.name))


def probe(seam: Seam, module: ModuleType) -> None:
    """Check that the function is there and takes what we know.

    Raises:
        SeamError: it isn't, or doesn't.
    """
    label, expected = f"{seam.module}:{seam.name}", f"a function of ({', '.join(seam.parameters)}, ...)"
    function = _find(seam, module)
    if function is None:
        raise SeamError(label, "missing", expected)
    parameters = inspect.signature(function).parameters
    if any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
        return  # somebody wrapped it before us and passes everything on
    names = [name for name in parameters if name not in ("self", "cls")]
    if tuple(names[: len(seam.parameters)]) != seam.parameters:
        raise SeamError(label, f"a function of ({', '.join(names)})", expected)


def _find(seam: Seam, module: ModuleType) -> Any:
    found: Any = module
    for part in seam.name.split("."):
        found = getattr(found, part, None)
    return found
