"""Root causes in worker processes. The engine core only learns "WorkerProc initialization failed".

vLLM hands every exception that ends a worker, as an object, to its logger in ``v1/executor/multiproc_executor.py``
before it is lost (0.11 to 0.33). A filter on that logger sees it there. The text of the message plays no part.
"""

from __future__ import annotations

import logging

from vllm_autofit.hooks.failures import note_failure, run_behind
from vllm_autofit.hooks.guard import attempt

LOGGER = "vllm.v1.executor.multiproc_executor"


def install() -> None:
    """Add the filter, once."""
    target = logging.getLogger(LOGGER)
    if not any(isinstance(each, WorkerFailures) for each in target.filters):
        target.addFilter(WorkerFailures())


class WorkerFailures(logging.Filter):
    """Lets every message pass, and records the exception that comes with it."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            attempt("recording why a worker failed", _note, error)
        return True


def _note(error: BaseException) -> None:
    run = run_behind(error)
    if run is not None:
        note_failure(run, error)
