"""Another process on the machine that holds memory, as on any shared one. Ends when its standard input closes.

python -m dev.neighbour --share 0.8    until no more than 80 % of the memory is available
python -m dev.neighbour --gib 3        3 GiB
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import select
import subprocess
import sys
from collections.abc import Iterator

GIB = 2**30
STEP_BYTES = GIB // 4
SLACK = 0.03
"""How far the share may rise before more is taken."""
LEAST_AVAILABLE_BYTES = 4 * GIB
"""Never squeeze the machine below this: a start of vLLM's CPU backend with a small model needs about 3 GiB."""


def available_and_total() -> tuple[int, int]:
    """Bytes available and in total, as vLLM's CPU worker reads them: on the tightest memory node."""
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    nodes = [get_memory_node_info(node) for node in get_visible_memory_node()]
    tightest = min(nodes, key=lambda node: node.available_memory / node.total_memory)
    return int(tightest.available_memory), int(tightest.total_memory)


@contextlib.contextmanager
def neighbour(*, share: float | None = None, gib: float | None = None) -> Iterator[float]:
    """A neighbour for the length of a ``with`` block; yields the GiB it holds.

    Raises:
        RuntimeError: it could not take that much.
    """
    goal = ["--share", str(share)] if share is not None else ["--gib", str(gib)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dev.neighbour", *goal], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        answer = process.stdout.readline().strip()
        if not answer:
            raise RuntimeError("the neighbour could not hold that much memory on this machine")
        yield float(answer)
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def main() -> int:
    """Take memory, say how much, hold it until standard input closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--share", type=float)
    parser.add_argument("--gib", type=float)
    options = parser.parse_args()
    held: list[mmap.mmap] = []
    while not _enough(options, len(held) * STEP_BYTES):
        if available_and_total()[0] - STEP_BYTES < LEAST_AVAILABLE_BYTES:
            print("neighbour: the machine has too little memory for this", file=sys.stderr)
            return 1
        held.append(_take())
    print(len(held) * STEP_BYTES / GIB, flush=True)
    while not select.select([sys.stdin], [], [], 0.5)[0]:
        # Virtual machines can get memory while they run: keep the share.
        if options.share is not None and not _enough(options, 0, SLACK):
            held.append(_take())
    return 0


def _take() -> mmap.mmap:
    block = mmap.mmap(-1, STEP_BYTES)
    for offset in range(0, STEP_BYTES, mmap.PAGESIZE):
        block[offset] = 1
    return block


def _enough(options: argparse.Namespace, held_bytes: int, slack: float = 0.0) -> bool:
    if options.gib is not None:
        return bool(held_bytes >= options.gib * GIB)
    available, total = available_and_total()
    return bool(available <= (options.share + slack) * total)


if __name__ == "__main__":
    sys.exit(main())
