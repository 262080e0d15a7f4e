"""Starts a real vLLM server as a user would, waits until it answers, asks it for a completion, and stops it cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

START_SECONDS = 280
"""A cold start compiles the model: 80 s on 2 cores with vLLM 0.32.0; the rest is patience for slower machines."""
STOP_SECONDS = 30


def vllm_command(*arguments: str) -> list[str]:
    """The ``vllm`` command of this environment."""
    return [str(Path(sys.executable).with_name("vllm")), *arguments]


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """One run of a server command.

    Attributes:
        log: everything it printed so far, as a path.
        process: the front end; engine core and workers are its children, in the same process group.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, environ: Mapping[str, str]) -> None:
        self.port = port
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )

    def wait(self, seconds: float = START_SECONDS) -> bool:
        """Wait for ``/health``. True once it answers, False if the process ends or the time runs out."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError), self._open("/health"):
                return True
            time.sleep(0.5)
        return False

    def complete(self, prompt: str, tokens: int = 4) -> dict[str, Any]:
        """The first choice of a completion."""
        body = json.dumps({"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True})
        with self._open("/v1/completions", body.encode()) as answer:
            choices: list[dict[str, Any]] = json.load(answer)["choices"]
        return choices[0]

    def models(self) -> list[dict[str, Any]]:
        """What ``/v1/models`` lists."""
        with self._open("/v1/models") as answer:
            data: list[dict[str, Any]] = json.load(answer)["data"]
        return data

    def kv_tokens(self) -> int:
        """Tokens of its KV cache, blocks times their size, as ``/metrics`` has them."""
        with self._open("/metrics") as answer:
            text = answer.read().decode()
        info = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info"))
        blocks, size = (
            int(info.partition(f' {name}="')[2].partition('"')[0] or info.partition(f'{name}="')[2].partition('"')[0])
            for name in ("num_gpu_blocks", "block_size")
        )
        return blocks * size

    def metric(self, name: str) -> float:
        """What ``/metrics`` has under ``name``, over all labels; 0 where it has nothing.

        Raises OSError if nobody answers.
        """
        with self._open("/metrics") as answer:
            text = answer.read().decode()
        lines = (line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def text(self) -> str:
        """Everything printed so far."""
        return self.log.read_text(errors="replace")

    def lines(self, *words: str) -> list[str]:
        """The printed lines that hold all of ``words``."""
        return [line for line in self.text().splitlines() if all(word in line for word in words)]

    def stop(self) -> int:
        """Interrupt it as Ctrl-C would, wait, and see that nothing of it is left. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return self.process.returncode

    def _open(self, path: str, body: bytes | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=body, headers={"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=60)


@contextlib.contextmanager
def serving(command: Sequence[str], log: Path, environ: Mapping[str, str], port: int | None = None) -> Iterator[Server]:
    """A server for the length of a ``with`` block; ``--port`` is added to the command."""
    number = free_port() if port is None else port
    server = Server([*command, "--host", "127.0.0.1", "--port", str(number)], number, log, environ)
    try:
        yield server
    finally:
        server.stop()
