"""What a plan has to say: at once, or, of a plan for another attempt, once that is made; and the last of an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from vllm_autofit.hooks.guard import logger

NAME = "said"
_later: ContextVar[bool] = ContextVar("later", default=False)


@contextmanager
def said_later() -> Iterator[None]:
    """Plans that are made in here keep what they have to say."""
    token = _later.set(True)
    try:
        yield
    finally:
        _later.reset(token)


def keep_or_say(run: dict[str, Any], warnings: list[str], line: str) -> None:
    """Warnings, then the one line of a start.

    Args:
        run: the start.
        warnings: sentences without a full stop.
        line: at INFO.
    """
    run[NAME] = [*((logging.WARNING, f"{warning}.") for warning in warnings), (logging.INFO, line)]
    if not _later.get():
        say(run)


def end_with(error: BaseException | None, line: str) -> None:
    """Python prints a note below the traceback; before 3.11, or without an error, the log has to do."""
    if error is not None and hasattr(error, "add_note"):
        error.add_note(f"vllm-autofit: {line}")
    else:
        logger.error("vllm-autofit: %s", line)


def say(run: dict[str, Any]) -> None:
    """Say what was kept."""
    for level, text in run.pop(NAME, ()):
        logger.log(level, "vllm-autofit: %s", text)
