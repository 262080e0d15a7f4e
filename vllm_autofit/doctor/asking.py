"""Questions that may never be answered (a stuck driver, a dead network file system, a broken vLLM), each with a limit.

Each is asked in a process of its own: a thread in an uninterruptible system call would keep ours from ending.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

REAP_SECONDS = 1.0
"""How long a killed process may take to go. One that waits for a driver or a disk stays, and is left behind."""
LONGEST_REASON = 300


@dataclass(frozen=True)
class Question:
    """What to ask: ``python -m module argument``, for at most so many seconds. It prints JSON."""

    module: str
    seconds: float
    argument: str = ""


@dataclass(frozen=True)
class Answer:
    """What was printed, or why nothing was."""

    found: dict[str, Any] = field(default_factory=dict)
    trouble: str = ""


def ask(questions: Sequence[Question]) -> list[Answer]:
    """The answers, in the order of the questions, which are asked all at once."""
    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(_ask, questions))


def _ask(question: Question) -> Answer:
    process = subprocess.Popen(
        [sys.executable, "-c", _script(question.module), *filter(None, [question.argument])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        output, errors = process.communicate(timeout=question.seconds)
    except subprocess.TimeoutExpired:
        _leave(process)
        return Answer(trouble=f"no answer within {question.seconds:g} s")
    with contextlib.suppress(ValueError):
        return Answer(json.loads(output))
    return Answer(trouble=f"it {_ending(process.returncode)}{_last_line(errors)}")


def _script(module: str) -> str:
    """The module as we would import it: ``python -m`` alone would look into the working directory first."""
    return f"import runpy, sys; sys.path[:] = {sys.path!r}; runpy.run_module({module!r}, None, '__main__', True)"


def _leave(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(REAP_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _ending(status: int) -> str:
    return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return f" ({lines[-1][:LONGEST_REASON]})" if lines else ""
