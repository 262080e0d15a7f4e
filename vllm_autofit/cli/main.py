"""Entry point of the command ``vllm-autofit`` and of ``python -m vllm_autofit``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vllm_autofit import __version__
from vllm_autofit.cli import history, plan
from vllm_autofit.errors import AutofitError

EXIT_OK, EXIT_BAD_INPUT, EXIT_DOES_NOT_FIT = 0, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 2 bad input, 3 nothing fits."""
    parser = argparse.ArgumentParser(
        prog="vllm-autofit", description="Memory settings for vLLM: what was decided, and what was learned."
    )
    parser.add_argument("--version", action="version", version=f"vllm-autofit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    history.add_parser(commands)
    plan.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except AutofitError as error:
        print(f"vllm-autofit: {error}.", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader, `head` say, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
