"""What was measured so far: one JSON file per cell, so that a run that was cut goes on where it stopped."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

Document = dict[str, Any]
CLOCKS_SECONDS = 2.0
"""By which the kernel's and our notion of when a process began may differ."""


class OtherMachineError(Exception):
    """The folder holds results of another device, or of another vLLM."""


class BusyError(Exception):
    """Somebody else measures into the folder."""


class Ledger:
    """The results in one folder.

    Args:
        folder: where; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("cells", "attempts"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def bind(self, machine: Mapping[str, Any]) -> None:
        """Say what is measured here.

        Raises:
            OtherMachineError: the results that are here are something else's.
        """
        before = self.machine()
        same = ("device", "vllm", *(["total_bytes"] if machine["kind"] == "cuda" else []))  # a host's size may change
        changed = [name for name in same if before and before[name] != machine[name]]
        if changed:
            names = ", ".join(f"{name} {before[name]}, not {machine[name]}" for name in changed)
            raise OtherMachineError(f"{self.folder} holds results of {names}; name another folder with --out")
        _write(self.folder / "machine.json", {**machine, **before})

    def machine(self) -> Document:
        """What was measured; empty if nothing was yet."""
        return _read(self.folder / "machine.json")

    def done(self, name: str) -> Document:
        """The result of a cell; empty if there is none yet."""
        return _read(self._cell(name))

    def keep(self, name: str, document: Document) -> None:
        """A cell is done."""
        _write(self._cell(name), document)

    def forget(self, name: str) -> None:
        """It is to be run again."""
        self._cell(name).unlink(missing_ok=True)

    def everything(self) -> dict[str, Document]:
        """All results by name."""
        found = (json.loads(path.read_text()) for path in sorted((self.folder / "cells").glob("*.json")))
        return {document["cell"]: document for document in found}

    def attempted(self, name: str) -> float:
        """Seconds of its longest attempt that was cut because a slice was over; 0 without one."""
        return float(_read(self._attempt(name)).get("seconds", 0.0))

    def cut(self, name: str, seconds: float) -> None:
        """An attempt that took ``seconds`` was cut."""
        _write(self._attempt(name), {"seconds": max(seconds, self.attempted(name))})

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else measures into this folder meanwhile.

        Raises:
            BusyError: somebody does already.
        """
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise BusyError(f"another run is measuring into {self.folder}") from error
        try:
            yield
        finally:
            lock.release()

    # Processes that outlive a run which was killed without a chance to end them

    def started(self, leader: int) -> None:
        """A process was started as the leader of a session of its own."""
        with self._running.open("a") as file, contextlib.suppress(psutil.Error):
            file.write(f"{leader} {psutil.Process(leader).create_time()}\n")

    def all_ended(self) -> None:
        """None of them is left."""
        self._running.unlink(missing_ok=True)

    def end_leftovers(self) -> int:
        """Kill what is left of processes that an earlier run started; says how many there were."""
        noted = [line.split() for line in self._running.read_text().splitlines()] if self._running.exists() else []
        sessions = {int(leader): float(since) for leader, since in noted}
        ended = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                since = sessions.get(os.getsid(process.pid))
                if since is not None and process.create_time() >= since - CLOCKS_SECONDS:
                    process.kill()
                    ended += 1
        self.all_ended()
        return ended

    @property
    def _running(self) -> Path:
        return self.folder / "running"

    def _cell(self, name: str) -> Path:
        return self.folder / "cells" / f"{name.replace('/', '--')}.json"

    def _attempt(self, name: str) -> Path:
        return self.folder / "attempts" / f"{name.replace('/', '--')}.json"


def _read(path: Path) -> Document:
    if not path.exists():
        return {}
    document: Document = json.loads(path.read_text())
    return document


def _write(path: Path, document: Mapping[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(document, indent=1) + "\n")
    new.replace(path)
