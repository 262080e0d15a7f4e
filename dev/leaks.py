"""Starts an engine again and again in one process, and says after each what is left of it.

    python -m dev.leaks MODEL [--starts 20]

The first start is left in peace; every other loses half of the free memory once its engine core is there, so that its
first attempt fails and its second serves. JSON on the last line: files of the temporary folder and of /dev/shm, open
files, threads, children and the environment, one entry per start, and whether each was retried.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from dev.neighbour import GIB
from dev.provocations import taken, watching

TRACKER = "multiprocessing.resource_tracker"
"""Python's own helper of a process that uses shared memory; it stays as long as that."""


def main() -> int:
    """Make the starts, print what each left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--starts", type=int, default=20)
    options = parser.parse_args()
    left = []
    for number in range(options.starts + 1):
        with _robbed() if number else contextlib.nullcontext():
            retried = _one_start(options.model)
        left.append({"retried": retried, **_left()})
        print(number, left[-1], file=sys.stderr, flush=True)
    print(json.dumps(left))
    return 0


def _one_start(model: str) -> bool:
    from vllm import LLM, SamplingParams

    llm = LLM(model, max_model_len=1024, enforce_eager=True)
    answer = llm.generate(["Hello"], SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
    assert len(answer[0].outputs[0].token_ids) == 2
    run = getattr(llm.llm_engine.vllm_config, "_vllm_autofit", {})
    retried = "after_failed" in run.get("record", {}).get("plan", {})
    llm.llm_engine.engine_core.shutdown()
    return retried


@contextlib.contextmanager
def _robbed() -> Iterator[None]:
    """Half of the free memory goes as soon as there is an engine core, and comes back at the end."""
    with contextlib.ExitStack() as held:

        def engine_there() -> bool:
            return any("spawn_main" in " ".join(_command(child)) for child in psutil.Process().children())

        def rob() -> None:
            held.enter_context(contextlib.closing(taken(psutil.virtual_memory().available / GIB / 2)))

        with watching(engine_there, rob):
            yield


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _left() -> dict[str, Any]:
    gc.collect()
    time.sleep(2)
    children = [" ".join(_command(each))[:80] for each in psutil.Process().children(recursive=True)]
    return {
        "temporary": _files(tempfile.gettempdir()),
        "shm": _files("/dev/shm"),
        "open_files": _files("/proc/self/fd"),
        "threads": threading.active_count(),
        "children": [each for each in children if TRACKER not in each],
        "environment": sorted(os.environ),
    }


def _files(folder: str) -> int:
    return sum(1 for _ in Path(folder).iterdir())


if __name__ == "__main__":
    sys.exit(main())
