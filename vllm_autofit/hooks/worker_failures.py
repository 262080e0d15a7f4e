"""Root causes in worker processes. The engine core only learns "WorkerProc initialization failed".

vLLM hands every exception that ends a worker, as an object, to its logger in ``v1/executor/multiproc_executor.py``
before it is lost (0.11 to 0.33). A filter on that logger sees it there. The text of the message plays no part.
"""

from __future__ import annotations

import logging

from vllm_autofit.hooks.failures import note_failure, run_behind
from vllm_autofit.hooks.guard import watch_logger

LOGGER = "vllm.v1.executor.multiproc_executor"


def install() -> None:
    """Watch the logger."""
    watch_logger(LOGGER, "recording why a worker failed", note_worker_failure)


def note_worker_failure(message: logging.LogRecord) -> None:
    """Record the exception that comes with a message, if it ended one of our starts."""
    error = message.exc_info[1] if message.exc_info else None
    run = None if error is None else run_behind(error)
    if error is not None and run is not None:
        note_failure(run, error)
