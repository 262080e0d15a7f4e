"""What the processes of a start tell its front end while that waits: JSON lines in a file without a name.

Beside the record, because the folder of the records may not be writable. The file lies in memory and belongs to the
front end: it is gone with it, however that ends. Its place under ``/proc`` travels with the run; processes of other
machines, or of another user, find nothing there.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "channel"
FILE = "vllm-autofit"


def open_channel(run: dict[str, Any]) -> None:
    """Make the file.

    Raises:
        OSError: the system has no such files.
    """
    run[NAME] = f"/proc/{os.getpid()}/fd/{os.memfd_create(FILE)}"


def tell(run: dict[str, Any], **said: Any) -> None:
    """Add a line, if the front end still listens."""
    if NAME in run:
        with contextlib.suppress(OSError):
            handle = os.open(run[NAME], os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                if _is_ours(handle):
                    file.write(json.dumps(said, default=str) + "\n")


def heard(run: dict[str, Any]) -> list[dict[str, Any]]:
    """All lines so far; one that a killed process left unfinished is passed over."""
    lines: list[dict[str, Any]] = []
    if NAME in run:
        with contextlib.suppress(OSError), Path(run[NAME]).open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
    return lines


def close_channel(run: dict[str, Any]) -> None:
    """Forget the file."""
    path = run.pop(NAME, None)
    if path is not None:
        os.close(int(path.rpartition("/")[2]))


def _is_ours(handle: int) -> bool:
    """The front end may have closed the file, and another one have its number by now."""
    return str(Path(f"/proc/self/fd/{handle}").readlink()).startswith(f"/memfd:{FILE}")
