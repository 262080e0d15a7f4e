"""Never take vLLM down: an error of ours becomes one warning, and vLLM goes on as if we weren't there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from vllm_autofit.errors import AutofitError, RefusedError

logger = logging.getLogger("vllm.autofit")
"""A child of vLLM's logger: its format, its level, its destination."""

P = ParamSpec("P")
T = TypeVar("T")

Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
"""wrapt's shape of a wrapper: the wrapped function, the instance, positional and keyword arguments."""

_warned = False


def attempt(what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """``function(...)``, or None after one warning if it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        report(what, error)
        return None


def report(what: str, error: BaseException) -> None:
    """Warn about an error of ours, the first time in this process."""
    global _warned
    if _warned:
        return
    _warned = True
    try:
        reason = str(error) if isinstance(error, AutofitError) else f"{type(error).__name__}: {error}"
        logger.warning(
            "vllm-autofit: %s failed (%s). vLLM goes on without it; VLLM_AUTOFIT=0 turns vllm-autofit off.",
            what,
            reason,
        )
    except Exception:  # a logger, or a __str__, that raises must not reach vLLM either
        return


def shield(wrapper: Wrapper, what: str) -> Wrapper:
    """``wrapper``, so that whatever it raises of its own leaves vLLM with just what the wrapped function does.

    vLLM's own exceptions and our refusals pass unchanged. What the wrapped function did once, it isn't made to do
    again.
    """

    def shielded(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = _Call(wrapped)
        try:
            return wrapper(call, instance, args, kwargs)
        except Exception as error:
            if error is call.error or isinstance(error, RefusedError):
                raise
            report(what, error)
            if call.error is not None:
                raise call.error from None
            return call.result if call.made else wrapped(*args, **kwargs)

    return shielded


def watch_logger(name: str, what: str, watcher: Callable[[logging.LogRecord], None]) -> None:
    """Show every message of a logger to ``watcher``, and let it pass whatever the watcher does.

    A filter, not a handler: vLLM's configuration of logging removes handlers, and leaves filters alone.
    """

    def pass_on(message: logging.LogRecord) -> bool:
        attempt(what, watcher, message)
        return True

    logging.getLogger(name).addFilter(pass_on)


class _Call:
    """The wrapped function, remembering what came of it."""

    def __init__(self, wrapped: Callable[..., Any]) -> None:
        self.wrapped = wrapped
        self.made = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.made, self.error = True, None
        try:
            self.result = self.wrapped(*args, **kwargs)
        except BaseException as error:
            self.error = error
            raise
        return self.result
