"""The one ``EngineArgs`` that is being built while we load.

``EngineArgs.__post_init__`` loads the plugins, so the first instance of a process (the first ``LLM(...)`` of a script,
say) got its defaults before we could mark them. Its caller's frame still tells what was passed: the names of the
keywords stand in the call instruction. What can't be told (``EngineArgs(**settings)``) counts as set, except a float
that is the very object of vLLM's default: a number that somebody typed is another object.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.hooks.marks import Mark, mark, originals


def mark_instance_under_construction() -> None:
    """Mark the fields of that instance which nobody set, if there is such an instance."""
    arg_utils = sys.modules.get("vllm.engine.arg_utils")
    base = getattr(arg_utils, "EngineArgs", None)
    frame = _post_init_frame(base)
    if frame is None:
        return
    instance = frame.f_locals["self"]
    caller = frame.f_back
    while caller is not None and caller.f_locals.get("self") is instance:
        caller = caller.f_back  # __init__ of the class, and of subclasses that call it
    passed = _passed(caller, type(instance))
    for name in FIELDS:
        value = getattr(instance, name)
        if value is None or isinstance(value, Mark):
            continue
        if passed is None:
            unset = isinstance(value, float) and any(value is each for each in originals.get(name, ()))
        else:
            unset = name not in passed
        if unset:
            setattr(instance, name, mark(value))


def _post_init_frame(base: Any) -> FrameType | None:
    frame: FrameType | None = sys._getframe()
    while base is not None and frame is not None:
        if frame.f_code.co_name == "__post_init__" and isinstance(frame.f_locals.get("self"), base):
            return frame
        frame = frame.f_back
    return None


def _passed(caller: FrameType | None, cls: type) -> set[str] | None:
    """Names of the arguments that the user passed, or None if that can't be told."""
    if caller is None:
        return None
    llm = getattr(sys.modules.get("vllm.entrypoints.llm"), "LLM", None)
    init = getattr(llm, "__init__", None)
    if init is not None and caller.f_code is _code(init):
        # LLM passes all of its own arguments on: what counts is what was passed to LLM. The rest is in kwargs.
        names = passed_names(caller.f_back, _parameters(init))
        return None if names is None else names | set(caller.f_locals.get("kwargs", ()))
    return passed_names(caller, _parameters(inspect.getattr_static(cls, "__init__")))


def passed_names(frame: FrameType | None, parameters: tuple[str, ...]) -> set[str] | None:
    """Parameters that the call which ``frame`` is executing passes, or None if it unpacks ``*`` or ``**``.

    Read from the bytecode (CPython 3.10 to 3.14), because notebooks and ``python -c`` have no source to look at.

    Args:
        frame: the calling frame, stopped at its call instruction.
        parameters: the callee's positional parameters, without self.
    """
    if frame is None:
        return None
    instructions = list(_instructions(frame.f_code))
    at = next((i for i, each in enumerate(instructions) if each.offset == frame.f_lasti), None)
    if at is None:
        return None
    call = instructions[at]
    count = call.arg or 0
    if call.opname in ("CALL_FUNCTION_KW", "CALL_KW"):  # 3.10; 3.13 on: the names are the constant before
        keywords = instructions[at - 1].argval
    elif call.opname == "CALL_FUNCTION":  # 3.10
        keywords = ()
    elif call.opname == "CALL":  # 3.11 on; in 3.11 and 3.12 KW_NAMES may come before it
        before = instructions[max(0, at - 2) : at]
        names = next((e.arg for e in before if e.opname == "KW_NAMES"), None)
        keywords = () if names is None else frame.f_code.co_consts[names]
    else:
        return None
    if not isinstance(keywords, tuple):
        return None
    return set(keywords) | set(parameters[: count - len(keywords)])


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    return (each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG"))


def _code(function: Any) -> CodeType | None:
    return getattr(function, "__code__", None)


def _parameters(function: Any) -> tuple[str, ...]:
    code = _code(function)
    return () if code is None else code.co_varnames[1 : code.co_argcount]
