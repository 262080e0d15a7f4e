"""Seam ``EngineArgs.add_cli_args``: marks the defaults of the command line's options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.hooks.marks import mark
from vllm_autofit.hooks.seams import Seam


def add_cli_args(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM's parser, with marks on the defaults of our five options."""
    parser = wrapped(*args, **kwargs)
    for action in parser._actions:
        if action.dest in FIELDS:
            action.default = mark(action.default)
    return parser


SEAMS = (
    Seam(
        "vllm.engine.arg_utils",
        "EngineArgs.add_cli_args",
        ("parser",),
        add_cli_args,
        "knowing which options you typed",
    ),
)
