"""Marks the defaults where vLLM keeps them: the constructors of ``EngineArgs``, of its subclasses and of ``LLM``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import wrapt

from vllm_autofit import FIELDS
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.marks import mark, mark_default

ENGINE_ARGS = "vllm.engine.arg_utils"
LLM = "vllm.entrypoints.llm"


def install() -> None:
    """Mark the defaults in both modules, now or when they are loaded."""
    purpose = "knowing which settings you chose"
    wrapt.register_post_import_hook(lambda module: attempt(purpose, _mark_engine_args, module), ENGINE_ARGS)
    wrapt.register_post_import_hook(lambda module: attempt(purpose, _mark_llm, module), LLM)


def _mark_engine_args(module: ModuleType) -> None:
    base = module.EngineArgs
    fields = {name: base.__dataclass_fields__[name] for name in FIELDS}
    defaults = {name: field.default for name, field in fields.items()}
    for cls in _with_subclasses(base):
        init = cls.__dict__.get("__init__")
        if isinstance(init, FunctionType):
            _mark_function(init, defaults)
    for name, field in fields.items():
        # What the constructor of a dataclass derived from now on takes as default.
        field.default = mark(defaults[name])


def _mark_llm(module: ModuleType) -> None:
    """``LLM`` has defaults of its own and always passes them on, so they need marks too."""
    _mark_function(inspect.unwrap(module.LLM.__init__), None)


def _with_subclasses(cls: type) -> Iterator[type]:
    yield cls
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        yield from _with_subclasses(subclass)


def _mark_function(function: Any, only: dict[str, Any] | None) -> None:
    """Mark the defaults of our fields in a function, or only those that equal the given ones.

    A subclass with another default of its own has an author who chose it: that stays unmarked.
    """

    def marked(name: str, value: Any) -> Any:
        if name not in FIELDS or (only is not None and value != only[name]):
            return value
        return mark_default(name, value)

    positional = function.__defaults__ or ()
    code = function.__code__
    names = code.co_varnames[: code.co_argcount][-len(positional) :] if positional else ()
    if positional:
        function.__defaults__ = tuple(marked(name, value) for name, value in zip(names, positional, strict=True))
    if function.__kwdefaults__:
        function.__kwdefaults__.update({name: marked(name, value) for name, value in function.__kwdefaults__.items()})
