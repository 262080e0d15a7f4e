"""Writes a benchmark's table into its block of docs/benchmarks.md, with what it was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def measured_on(command: str, units: str = "") -> list[str]:
    """The line above a table: when, by which command, on what."""
    moment = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    where = f"vLLM {version('vllm')}, Python {platform.python_version()}, {os.cpu_count()} x86-64 cores."
    return [f"Measured {moment} by `{command}`: {where} {units}".rstrip(), ""]


def write_block(block: str, lines: Sequence[str], page: Path = PAGE) -> None:
    """Replace what stands between the two marks of ``block``.

    Raises:
        ValueError: the page has no such block.
    """
    begin, end = f"<!-- {block}: begin -->", f"<!-- {block}: end -->"
    text = page.read_text()
    if begin not in text or end not in text:
        raise ValueError(f"{page} has no block {block!r}")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    page.write_text("\n".join([f"{before}{begin}", *lines, f"{end}{after}"]))
