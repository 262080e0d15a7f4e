"""The net under every hook: vLLM's results and exceptions pass, ours never do."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from vllm_autofit.errors import DeviceError
from vllm_autofit.hooks import guard


class VllmError(Exception):
    pass


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of; each test is a fresh process in that respect."""
    said: list[str] = []
    monkeypatch.setattr(guard, "_warned", False)

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    monkeypatch.setattr(guard.logger, "handlers", [Listener()])
    monkeypatch.setattr(guard.logger, "propagate", False)
    return said


def call(wrapper: Any, wrapped: Any) -> Any:
    return guard.shield(wrapper, "testing")(wrapped, None, (1,), {})


def test_the_result_of_vllm_comes_back(warnings: list[str]) -> None:
    assert call(lambda wrapped, i, a, k: wrapped(*a, **k), lambda x: x + 1) == 2
    assert warnings == []


def test_an_error_of_ours_before_the_call_leaves_the_call_to_vllm(warnings: list[str]) -> None:
    def broken(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        raise ZeroDivisionError("before")

    assert call(broken, lambda x: x + 1) == 2
    assert len(warnings) == 1
    assert "testing failed (ZeroDivisionError: before)" in warnings[0]
    assert "VLLM_AUTOFIT=0" in warnings[0]


def test_an_error_of_ours_after_the_call_does_not_call_again(warnings: list[str]) -> None:
    calls: list[int] = []

    def broken(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        wrapped(*args, **kwargs)
        raise ZeroDivisionError("after")

    assert call(broken, lambda x: calls.append(x) or "result") == "result"  # type: ignore[func-returns-value]
    assert calls == [1]


def test_vllms_own_exception_passes_unchanged(warnings: list[str]) -> None:
    error = VllmError("out of memory")

    def fails(x: int) -> None:
        raise error

    with pytest.raises(VllmError) as caught:
        call(lambda wrapped, i, a, k: wrapped(*a, **k), fails)
    assert caught.value is error
    assert warnings == []


def test_vllms_exception_passes_even_when_ours_comes_on_top(warnings: list[str]) -> None:
    def fails(x: int) -> None:
        raise VllmError("out of memory")

    def broken(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        try:
            return wrapped(*args, **kwargs)
        except VllmError:
            raise ZeroDivisionError("while noting it") from None

    with pytest.raises(VllmError, match="out of memory"):
        call(broken, fails)
    assert len(warnings) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interruption_is_nobodys_error(error: type[BaseException], warnings: list[str]) -> None:
    def interrupted(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        raise error

    with pytest.raises(error):
        call(interrupted, lambda x: x)
    assert warnings == []


def test_one_process_warns_once(warnings: list[str]) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    assert guard.attempt("one thing", broken) is None
    assert guard.attempt("another", broken) is None
    assert len(warnings) == 1


def test_an_error_that_explains_itself_is_not_dressed_up(warnings: list[str]) -> None:
    guard.report("planning", DeviceError("GPU 0", "it is gone", "Look for it"))
    assert "(cannot read the memory of GPU 0: it is gone. Look for it)" in warnings[0]


def test_an_error_that_cannot_even_be_printed_is_caught(warnings: list[str]) -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    guard.report("planning", UnprintableError())


def test_a_logger_that_is_watched_lets_every_message_pass(warnings: list[str]) -> None:
    seen: list[str] = []

    def watcher(message: logging.LogRecord) -> None:
        seen.append(message.getMessage())
        raise ZeroDivisionError

    watched = logging.getLogger("test.watched")
    guard.watch_logger("test.watched", "watching", watcher)
    record = watched.makeRecord("test.watched", logging.ERROR, "f", 1, "hello", (), None)
    assert watched.filter(record)
    assert seen == ["hello"]
    assert len(warnings) == 1
