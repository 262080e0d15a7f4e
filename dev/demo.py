"""`make demo`: the main job on this machine's CPU, shown and checked.

Plain vLLM fails for memory because another process holds some; the same command with vllm-autofit serves; its second
start uses what the first one recorded. Exits with 0 only if all of that happened.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from dev.neighbour import GIB, available_and_total, neighbour
from dev.server import Server, serving, vllm_command
from dev.tiny_model import make_tiny_model

CACHE = Path(__file__).resolve().parent.parent / ".cache"
NEIGHBOUR_LEAVES = 0.80
"""Share of the memory that stays available: plain vLLM asks for 0.92."""
MOST_FOR_VLLM_BYTES = 6 * GIB
"""On a large machine the demo leaves the rest alone: filling 100 GiB of KV cache takes minutes."""


class NotShownError(Exception):
    """Something that the demo promises did not happen."""


def main() -> int:
    """Run all steps. Returns an exit status."""
    try:
        with tempfile.TemporaryDirectory(prefix="vllm-autofit-demo-") as place:
            _run(Path(place))
    except (NotShownError, RuntimeError) as error:
        print(f"\nNOT SHOWN: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("\nAll of it happened.")
    return 0


def _run(place: Path) -> None:
    model = make_tiny_model(CACHE / "tiny-model")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_AUTOFIT")}
    environ["VLLM_AUTOFIT_CACHE_DIR"] = str(place / "records")
    command = vllm_command("serve", os.path.relpath(model))
    if not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        print("(No C++ compiler here, which vLLM needs to compile a model: adding --enforce-eager to every command.)")
        command.append("--enforce-eager")
    with neighbour(share=NEIGHBOUR_LEAVES) as held:
        available, total = available_and_total()
        _say(
            f"The machine: {available / GIB:.1f} of {total / GIB:.1f} GiB memory available; "
            f"another process holds {held:.1f} GiB of it."
        )
        if available > 2 * MOST_FOR_VLLM_BYTES:
            left = round((available - MOST_FOR_VLLM_BYTES) / GIB)
            environ["VLLM_AUTOFIT_HEADROOM"] = f"{left}GiB"
            print(f"(So that the demo doesn't fill it all: VLLM_AUTOFIT_HEADROOM={left}GiB.)")
        _show_plain(command, place, environ)
        first = _show_first(command, place, environ)
        _show_second(command, place, environ, first)


def _show_plain(command: list[str], place: Path, environ: dict[str, str]) -> None:
    _say("1. Plain vLLM:  VLLM_AUTOFIT=0 vllm serve MODEL")
    with serving(command, place / "plain.log", {**environ, "VLLM_AUTOFIT": "0"}) as server:
        if server.wait():
            raise NotShownError("plain vLLM started although it was to fail for memory")
        reasons = server.lines("less than desired")
    if not reasons:
        raise NotShownError(f"plain vLLM failed for another reason:\n{_tail(server)}")
    _quote(reasons[0])
    print(f"   It ended with exit status {server.process.returncode}.")


def _show_first(command: list[str], place: Path, environ: dict[str, str]) -> str:
    _say("2. The same command with vllm-autofit:  vllm serve MODEL")
    line = _serve(command, place / "first.log", environ)
    _quote(line)
    run_id = line.rpartition("history show ")[2].rstrip(".")
    _say("3. What was decided, and what came of it:  vllm-autofit history show")
    account = _autofit(["history", "show", run_id], environ)
    print(textwrap.indent(account, "   "))
    if "ended    clean" not in account or "KV cache" not in account:
        raise NotShownError("the first start left no complete record")
    return run_id


def _show_second(command: list[str], place: Path, environ: dict[str, str], first: str) -> None:
    _wait_for_memory()
    _say("4. The second start knows more:  vllm serve MODEL")
    line = _serve(command, place / "second.log", environ)
    _quote(line)
    if f"from the record of start {first}" not in line:
        raise NotShownError("the second start did not use the record of the first")
    print()
    print(textwrap.indent(_autofit(["history"], environ), "   "))


def _wait_for_memory() -> None:
    """The memory of processes that ended comes back late: wait while more and more is available."""
    before = 0
    for _ in range(10):
        now = available_and_total()[0]
        if now <= before:
            return
        before = now
        time.sleep(2)


def _serve(command: list[str], log: Path, environ: dict[str, str]) -> str:
    """Start, get a completion, stop. Returns our line."""
    with serving(command, log, environ) as server:
        if not server.wait():
            raise NotShownError(f"the server did not start:\n{_tail(server)}")
        answer = server.complete("Hello")
        lines = server.lines("vllm-autofit: set gpu_memory_utilization=")
        if not lines:
            raise NotShownError("vllm-autofit said nothing about what it filled in")
    print(f"   It serves. A completion (random weights, so no sense): {answer['text']!r}")
    return lines[0]


def _autofit(arguments: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vllm_autofit", *arguments], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise NotShownError(f"vllm-autofit {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.rstrip()


def _say(text: str) -> None:
    print(f"\n{text}", flush=True)


def _quote(line: str) -> None:
    """One log line, without its prefix, folded."""
    text = line.partition("] ")[2] or line
    print(textwrap.fill(text, 110, initial_indent="   | ", subsequent_indent="   | "), flush=True)


def _tail(server: Server) -> str:
    return "\n".join(server.text().splitlines()[-15:])


if __name__ == "__main__":
    sys.exit(main())
