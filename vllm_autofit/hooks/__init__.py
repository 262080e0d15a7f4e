"""The only rooms that touch vLLM: one seam a file. ``install`` arms them all; each waits until vLLM imports its module.

A seam that is missing in the installed vLLM, or changed, switches off just itself and says so.
"""

from __future__ import annotations

_installed = False


def install() -> None:
    """Arm every seam in this process, once."""
    global _installed
    if _installed:
        return
    _installed = True
    from vllm_autofit.hooks.guard import attempt

    attempt("loading", _arm)


def _arm() -> None:
    from vllm_autofit.hooks import (
        config_file,
        defaults,
        engine_args,
        engine_core,
        engine_end,
        executor,
        front_end,
        in_flight,
        parser,
        retry,
        scheduler,
        seams,
        sleeping,
        warm_start,
        worker,
        worker_failures,
    )

    defaults.install()
    recording = (executor, engine_core, scheduler, engine_end, front_end, worker)
    for module in (parser, config_file, engine_args, retry, *recording, warm_start, sleeping):
        for seam in module.SEAMS:
            seams.install(seam)
    worker_failures.install()
    in_flight.mark_instance_under_construction()
