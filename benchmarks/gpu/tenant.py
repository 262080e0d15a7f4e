"""A co-tenant of the device: a process that takes memory the moment it is told to, and holds it until it is let go.

    python -m benchmarks.gpu.tenant cuda 10

It gets ready first (a CUDA context, which holds memory too) and says so. When a line arrives on its standard input, it
takes as many GiB as it was told, or what there is of them. It ends when its standard input closes.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.gpu.device import Kind, take
from vllm_autofit.units import GIB

STEP = 16
"""Parts in which it takes what it can get."""


class Tenant:
    """One such process, ready to take."""

    def __init__(self, kind: Kind, gib: float) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.tenant", kind, str(gib)]
        self.gib = 0.0
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if not self._answer():
            self.leave()
            raise RuntimeError("the co-tenant could not get ready")

    def take(self) -> float:
        """Take the memory now; returns the GiB it holds, 0 if it got none."""
        assert self._process.stdin is not None
        if not self.gib:
            self._process.stdin.write("now\n")
            self._process.stdin.flush()
            self.gib = float(self._answer() or 0)
        return self.gib

    def leave(self) -> None:
        """Give everything back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextlib.contextmanager
def tenant(kind: Kind, gib: float) -> Iterator[Tenant]:
    """A co-tenant for the length of a ``with`` block; it holds nothing but its context until it is told to take."""
    process = Tenant(kind, gib)
    try:
        yield process
    finally:
        process.leave()


def main() -> int:
    """See the module's description."""
    kind: Kind = "cuda" if sys.argv[1] == "cuda" else "cpu"
    part = int(float(sys.argv[2]) * GIB / STEP)
    held = [take(kind, 1 << 20)]
    print("ready", flush=True)
    if sys.stdin.readline():
        with contextlib.suppress(RuntimeError, OSError):
            held += [take(kind, part) for _ in range(STEP)]
        print((len(held) - 1) * part / GIB, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
