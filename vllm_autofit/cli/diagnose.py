"""``vllm-autofit diagnose [FILE|-]``: why a start or a server failed, from its log."""

from __future__ import annotations

import argparse
import codecs
import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_autofit.cli.history.opened import screen_width
from vllm_autofit.cli.output import say
from vllm_autofit.failures.classify import classify_log
from vllm_autofit.render.diagnosis import diagnosis_account, diagnosis_document

EXIT_CLASSIFIED, EXIT_BAD_INPUT = 0, 2
GZIP = b"\x1f\x8b"
SNIFFED = 4096
"""Bytes that tell what kind of file it is."""
LONGEST = 65536
"""Characters of a line that are read at once: a file without a line break must not be held in memory whole."""


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("diagnose", help="why a start or a server failed, from its log")
    parser.add_argument(
        "file", nargs="?", default="-", metavar="FILE", help="the log, also gzipped; - or nothing for stdin"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=_diagnose)


def _diagnose(options: argparse.Namespace) -> int:
    try:
        with _opened(options.file) as binary:
            failure = classify_log(_lines(binary))
    except (OSError, EOFError, _NotALogError) as error:
        name = "stdin" if options.file == "-" else options.file
        say(f"cannot read {name}: {getattr(error, 'strerror', None) or error}. Give the text that vLLM printed")
        return EXIT_BAD_INPUT
    if options.format == "json":
        print(json.dumps(diagnosis_document(failure), indent=1))
    else:
        print(diagnosis_account(failure, screen_width()))
    return EXIT_CLASSIFIED


class _NotALogError(Exception):
    """There is no text."""


def _opened(file: str) -> io.BufferedReader:
    """The input. What stdin is stays open."""
    if file != "-":
        return Path(file).open("rb")
    if sys.stdin is None:
        raise _NotALogError("it is closed")
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _lines(binary: io.BufferedReader) -> Iterator[str]:
    """The lines of a log. Bytes that aren't text of its encoding are replaced.

    Raises:
        _NotALogError: it is empty, or it isn't text.
    """
    packed = binary.peek(SNIFFED).startswith(GZIP)
    plain: io.BufferedReader | gzip.GzipFile = gzip.GzipFile(fileobj=binary) if packed else binary
    start = plain.peek(SNIFFED)[:SNIFFED]
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not start:
        raise _NotALogError("it is empty")
    if b"\0" in start and not wide:
        raise _NotALogError("it isn't text")
    text = io.TextIOWrapper(plain, encoding="utf-16" if wide else "utf-8-sig", errors="replace")
    try:
        yield from iter(lambda: text.readline(LONGEST), "")
    finally:
        text.detach()  # who opened the file closes it
