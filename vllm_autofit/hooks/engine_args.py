"""Seam ``EngineArgs.create_engine_config``: the one place that every launch passes before its engine exists.

Here the unset fields get their values. Afterwards the ``EngineArgs`` again holds what its user gave it, marks
included, so that the same object can be used for another start. A copy of what it was is kept with the config: should
the start fail for memory, the next attempt is planned from it (``hooks/retry.py``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vllm_autofit import FIELDS
from vllm_autofit.hooks.environment import note_changes
from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.marks import mark, set_by_user, unmark
from vllm_autofit.hooks.origin import Origin, copied, keep
from vllm_autofit.hooks.runs import attach
from vllm_autofit.hooks.seams import Seam

if TYPE_CHECKING:
    from vllm_autofit.hooks.launch import Launch
    from vllm_autofit.values import FieldValue


def create_engine_config(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """vLLM's ``VllmConfig``, built with the plan's values in the fields that nobody set."""
    attempt("setting up logging", _configure_logging, instance)
    environment = dict(os.environ)
    asked_for = attempt("keeping what was asked for", copied, instance)
    given = {name: getattr(instance, name) for name in FIELDS}
    chosen_by_user = set_by_user(instance)
    _assign(instance, {name: unmark(value) for name, value in given.items()})
    before = dict(vars(instance))
    launch, filled = attempt("planning", _decide, instance, chosen_by_user, args, kwargs) or (None, {})
    try:
        _assign(instance, filled)
        try:
            config = wrapped(*args, **kwargs)
        except Exception as error:
            if not _blames(error, filled):
                raise
            config, launch = _without_us(wrapped, instance, before, args, kwargs, error), None
    finally:
        _restore(instance, given, filled, chosen_by_user)
        attempt("remembering the environment", note_changes, environment)
    if launch is not None:
        attempt("identifying this start", attach, config, launch.run)
        if asked_for is not None:
            attempt("keeping what was asked for", keep, config, launch.run, Origin(asked_for, args, kwargs))
    return config


def _configure_logging(instance: Any) -> None:
    """Do at once what vLLM (0.32) does first thing in the function we wrap, so that our line is not lost."""
    configure = getattr(sys.modules.get("vllm.logger"), "configure_logging_if_needed", None)
    if configure is not None and hasattr(instance, "create_logging_config"):
        configure(instance.create_logging_config())


def _decide(
    instance: Any, chosen_by_user: frozenset[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Launch | None, dict[str, FieldValue]]:
    """The plan of this start, and what to fill in for it."""
    # Imported here: every process of vLLM's loads this module, few of them plan.
    from vllm_autofit.hooks import handover, omni
    from vllm_autofit.hooks.launch import plan_launch

    if omni.is_stage(instance):
        return None, omni.fill(instance, chosen_by_user)
    if handover.is_api_server_child(instance):
        return None, handover.receive()
    context = kwargs.get("usage_context", args[0] if args else None)
    headless = bool(kwargs.get("headless", args[1] if len(args) > 1 else False))
    launch = plan_launch(instance, chosen_by_user, str(getattr(context, "value", context)), headless)
    if launch is None or launch.settings.mode == "observe":
        return launch, {}
    handover.send(instance, launch.plan.filled)
    return launch, launch.plan.filled


def _blames(error: Exception, filled: dict[str, FieldValue]) -> bool:
    """Whether vLLM's refusal names one of the fields that we filled."""
    text = str(error).lower().replace(" ", "_").replace("-", "_")
    return any(name in text for name in filled)


def _without_us(
    wrapped: Callable[..., Any],
    instance: Any,
    before: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    refusal: Exception,
) -> Any:
    """vLLM refused what we filled in: build the config from vLLM's defaults. If that fails too, it is vLLM's error."""
    vars(instance).clear()
    vars(instance).update(before)
    config = wrapped(*args, **kwargs)
    logger.warning("vllm-autofit: vLLM refused what was filled in (%s); it starts with its own defaults.", refusal)
    return config


def _restore(
    instance: Any, given: dict[str, Any], filled: dict[str, FieldValue], chosen_by_user: frozenset[str]
) -> None:
    """Put back what the user gave. What vLLM filled in itself (``max_num_seqs``) stays, marked as nobody's choice."""
    for name, value in given.items():
        if name in chosen_by_user:
            continue
        now = getattr(instance, name)
        untouched = now == unmark(value) or (name in filled and now == filled[name])
        setattr(instance, name, value if untouched else mark(now))


def _assign(instance: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(instance, name, value)


SEAMS = (
    Seam(
        "vllm.engine.arg_utils",
        "EngineArgs.create_engine_config",
        ("usage_context", "headless"),
        create_engine_config,
        "filling in memory settings",
    ),
)
