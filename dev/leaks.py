"""Starts an engine again and again in one process, and says after each what is left of it.

    python -m dev.leaks MODEL [--starts 20] [--plain]

The first start is left in peace; every other loses half of the free memory once its engine core is there, so that its
first attempt fails and its second serves. With ``--plain`` vllm-autofit is off, and all are left in peace: what vLLM
leaves itself. JSON on the last line: files of the temporary folder (sockets of vLLM's apart) and of /dev/shm, open
files and sockets, threads, children and the environment, one entry per start, and whether each was retried.
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
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from dev.neighbour import GIB
from dev.provocations import taken, watching

PLAIN_SHARE = 0.2
"""Of the memory, so that a plain start fits beside others on a shared machine."""
TRACKER = "multiprocessing.resource_tracker"
"""Python's own helper of a process that uses shared memory; it stays as long as that."""


def main() -> int:
    """Make the starts, print what each left."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    if options.plain:
        os.environ["VLLM_AUTOFIT"] = "0"
    left = []
    for number in range(options.starts + 1):
        with _robbed() if number and not options.plain else contextlib.nullcontext():
            retried = _one_start(options.model, PLAIN_SHARE if options.plain else None)
        left.append({"retried": retried, **_left()})
        print(number, left[-1], file=sys.stderr, flush=True)
    print(json.dumps(left))
    return 0


def _one_start(model: str, share: float | None) -> bool:
    from vllm import LLM, SamplingParams

    given = {} if share is None else {"gpu_memory_utilization": share}
    llm = LLM(model, max_model_len=1024, enforce_eager=True, **given)
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
    names = _names(tempfile.gettempdir())
    opened = [_target(Path("/proc/self/fd", name)) for name in _names("/proc/self/fd")]
    return {
        "temporary": len(names),
        "vllm_sockets": sum(map(_is_uuid, names)),
        "vllm_folders": sum(name.startswith("vllm_dist_") for name in names),
        "shm": len(_names("/dev/shm")),
        "open_files": len(opened),
        "open_sockets": sum(target.startswith("socket:") for target in opened),
        "threads": threading.active_count(),
        "children": [each for each in children if TRACKER not in each],
        "environment": sorted(os.environ),
    }


def _names(folder: str) -> list[str]:
    return [path.name for path in Path(folder).iterdir()]


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):  # the one that listed them is closed by now
        return str(link.readlink())
    return ""


def _is_uuid(name: str) -> bool:
    with contextlib.suppress(ValueError):
        return str(uuid.UUID(name)) == name
    return False


if __name__ == "__main__":
    sys.exit(main())
