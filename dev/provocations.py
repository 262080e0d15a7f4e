"""Makes real starts of vLLM fail for memory, each in its own way: a neighbour that takes memory at the wrong moment, a
process that is killed, a limit of the operating system, a setting that can't be."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from dev.neighbour import GIB
from dev.server import Server, free_port, vllm_command

START_SECONDS = 280
POLL_SECONDS = 0.02
LEFT_SECONDS = 5.0
"""For processes that end because another one did."""

ENGINE_STARTS = "Initializing a V1 LLM engine"
WEIGHTS = "Starting to load model"
LOADED = "oading weights took"
PROFILE = "Warming up model for the compilation"
KV_CACHE = "KV cache size: "
"""What vLLM 0.32 says when an engine comes up, and what it does next."""

WARMS_UP: Mapping[str, str] = {"VLLM_CPU_CI_ENV": "0"}
"""So that a CPU worker really profiles, which takes as long as compiling does: else the tests spare themselves that.
Without compilation there is next to nothing to profile."""

UP = ("Application startup complete", "TOKENS 4")
"""What a start says that nothing ended."""

OURS = "vllm-autofit"
"""What each line of ours holds."""

OFFLINE = """
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM({arguments})
    out = llm.generate(["Hello"], SamplingParams(max_tokens=4, ignore_eos=True), use_tqdm=False)
    print("TOKENS", len(out[0].outputs[0].token_ids), flush=True)
"""


@dataclass(frozen=True)
class Trouble:
    """Something that happens once, when a start's log says ``when``."""

    when: str
    kill: str = ""
    """The beginning of the title of the process to kill: ``VLLM::Worker`` or ``VLLM::EngineCore``."""
    takes_gib: float = 0.0
    """What a neighbour takes."""


@dataclass(frozen=True)
class Provocation:
    """One way to fail.

    Attributes:
        name: what the table calls it.
        options: vLLM's, as keywords of ``LLM``.
        trouble: what happens on the way.
        limit_gib: ``RLIMIT_DATA`` of all its processes; 0: none.
        curable: whether settings that nobody set can cure it.
        environ: variables of its own.
    """

    name: str
    curable: bool
    options: Mapping[str, object] = field(default_factory=dict)
    trouble: Trouble | None = None
    limit_gib: float = 0.0
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Interrupted:
    """What came of a start that was told to end.

    Attributes:
        status: its exit status, as ``subprocess`` has it; None: it didn't end by itself.
        seconds: until it ended.
        left: command lines of processes that it left, and files in /dev/shm.
        port_is_free: whether the port that it was told can be had.
        log: what it printed.
    """

    status: int | None
    seconds: float
    left: tuple[str, ...]
    port_is_free: bool
    log: str


@dataclass(frozen=True)
class Outcome:
    """What came of a start: whether it served, in how many attempts, and when and how it ended otherwise."""

    served: bool
    attempts: int
    seconds: float
    log: str
    planned: float | None
    """Seconds until our first word, which is the plan or the refusal; None: there was none."""

    @property
    def last_words(self) -> str:
        """From the last line of ours to the end, in one line; empty if there is none of ours."""
        _, ours, rest = self.log.rpartition(OURS)
        return " ".join(rest.lstrip(": ").split()) if ours else ""


def provoke(provocation: Provocation, kind: str, model: Path, folder: Path, environ: Mapping[str, str]) -> Outcome:
    """One start of ``kind`` (``serve`` or ``LLM``) that is given trouble.

    Args:
        provocation: which.
        kind: how vLLM is started.
        model: what it serves.
        folder: for the log and the script.
        environ: the environment of its processes.
    """
    command, port = _command(provocation, kind, model, folder)
    if provocation.limit_gib:
        kib = round(provocation.limit_gib * 2**20)
        command = ["bash", "-c", f'ulimit -d {kib} && exec "$@"', "bash", *command]
    began = time.monotonic()
    server = Server(command, port, folder / f"{kind}.log", {**environ, **provocation.environ})
    planned: list[float] = []
    with (
        watching(lambda: bool(server.lines(OURS)), lambda: planned.append(time.monotonic() - began)),
        _trouble(provocation.trouble, server),
    ):
        try:
            served = server.wait(START_SECONDS) if kind == "serve" else _ends_well(server)
            seconds = time.monotonic() - began
        finally:
            server.stop()
    text = server.text()
    return Outcome(served, 1 + text.count("Trying again with"), seconds, text, planned[0] if planned else None)


def interrupt(
    provocation: Provocation,
    kind: str,
    model: Path,
    folder: Path,
    environ: Mapping[str, str],
    when: str,
    number: signal.Signals,
) -> Interrupted:
    """One start that is sent a signal once its log says ``when``.

    SIGINT to all of its processes, as a terminal does; any other to the first, as a supervisor does.
    """
    before = _shared_memory()
    command, port = _command(provocation, kind, model, folder)
    server = Server(command, port, folder / f"{kind}.log", environ)
    began = [time.monotonic()]

    def strike() -> None:
        send = os.killpg if number == signal.SIGINT else os.kill
        send(server.process.pid, number)
        began[0] = time.monotonic()

    with _trouble(provocation.trouble, server), watching(lambda: bool(server.lines(when)), strike):
        deadline = time.monotonic() + START_SECONDS
        while server.process.poll() is None and time.monotonic() < deadline and not _is_up(server):
            time.sleep(POLL_SECONDS)
        status, seconds = server.process.poll(), time.monotonic() - began[0]
        left = _left_of(server.process.pid)
        server.stop()
    files = sorted(_shared_memory() - before)
    return Interrupted(status, seconds, (*left, *files), _is_free(port), server.text())


def _is_up(server: Server) -> bool:
    return any(server.lines(said) for said in UP)


def _left_of(session: int) -> list[str]:
    """What runs of a session once it had a moment to end."""
    deadline = time.monotonic() + LEFT_SECONDS
    while True:
        left = [each for each in psutil.process_iter() if _session(each.pid) == session and _runs(each)]
        if not left or time.monotonic() > deadline:
            return [_title(each) for each in left]
        time.sleep(POLL_SECONDS)


def _session(pid: int) -> int:
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return 0


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        return listener.connect_ex(("127.0.0.1", port)) != 0


def _command(provocation: Provocation, kind: str, model: Path, folder: Path) -> tuple[list[str], int]:
    port = free_port()
    if kind == "LLM":
        script = folder / "script.py"
        script.parent.mkdir(parents=True, exist_ok=True)
        arguments = {"model": str(model), **provocation.options}
        script.write_text(OFFLINE.format(arguments=", ".join(f"{name}={value!r}" for name, value in arguments.items())))
        return [sys.executable, str(script)], port
    flags = [_flag(name, value) for name, value in provocation.options.items()]
    return vllm_command("serve", str(model), *flags, "--host", "127.0.0.1", "--port", str(port)), port


def _flag(name: str, value: object) -> str:
    flag = f"--{name.replace('_', '-')}"
    return flag if value is True else f"{flag}={value}"


def _ends_well(server: Server) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(START_SECONDS)
    return server.process.poll() == 0 and bool(server.lines("TOKENS 4"))


@contextlib.contextmanager
def _trouble(trouble: Trouble | None, server: Server) -> Iterator[None]:
    """Brings it about when the log says so, once; what it took it holds to the end."""
    if trouble is None:
        yield
        return
    with contextlib.ExitStack() as stack:

        def strike() -> None:
            if trouble.takes_gib:
                stack.enter_context(contextlib.closing(taken(trouble.takes_gib)))
            if trouble.kill:
                _kill(server.process.pid, trouble.kill)

        with watching(lambda: bool(server.lines(trouble.when)), strike):
            yield


@contextlib.contextmanager
def watching(happened: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Does ``act``, in a thread, once ``happened`` is true, if that comes while this lasts."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_SECONDS):
            if happened():
                act()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def taken(gib: float) -> mmap.mmap:
    """Memory that is really taken, at once."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return mmap.mmap(-1, round(gib * GIB), flags=kind)


def _kill(front_end: int, title: str) -> None:
    for process in psutil.Process(front_end).children(recursive=True):
        if _title(process).startswith(title):
            os.kill(process.pid, signal.SIGKILL)
            return
