"""Entry point of the command ``vllm-autofit`` and of ``python -m vllm_autofit``."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from vllm_autofit import __version__
from vllm_autofit.cli import diagnose, doctor, history, plan
from vllm_autofit.cli.output import say
from vllm_autofit.errors import AutofitError

EXIT_OK, EXIT_NOT_WRITTEN, EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns the exit status: 0 done; 1 the output can't be written, or ``history check`` leaves findings; 2 bad input;
    3 nothing fits.

    A stdout that is closed from the start is no error: who does that wants the status alone.
    """
    status = EXIT_OK
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the encoding lacks a character of a table, "?" takes its place
    try:
        try:
            status = _run(arguments)
        finally:  # also after --help, which leaves by SystemExit
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, had enough
        _drop_output()
    except OSError as error:
        if error.filename is not None or sys.stdout is None:  # about something else than the output
            raise
        _drop_output()
        say(f"the output can't be written ({error.strerror})")
        return EXIT_NOT_WRITTEN
    return status


def _run(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="vllm-autofit", description="Memory settings for vLLM: what was decided, and what was learned."
    )
    parser.add_argument("--version", action="version", version=f"vllm-autofit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    history.add_parser(commands)
    plan.add_parser(commands)
    diagnose.add_parser(commands)
    doctor.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except AutofitError as error:
        say(str(error))
        return EXIT_BAD_INPUT


def _drop_output() -> None:
    """What is still in the buffer goes nowhere: Python would try to write it again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
