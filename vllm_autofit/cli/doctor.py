"""``vllm-autofit doctor``: is all well with this installation, this machine and this user's cache."""

from __future__ import annotations

import argparse
import os
from typing import Any

from vllm_autofit.cli.history.opened import reply, screen_width
from vllm_autofit.doctor.examination import examine
from vllm_autofit.doctor.verdict import worst
from vllm_autofit.render.doctor import doctor_account, doctor_document

EXIT_WELL, EXIT_PROBLEM = 0, 1


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("doctor", help="is all well here: the plugin, the devices, the cache, the environment")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    found = examine(os.environ)
    reply(options, doctor_account(found, screen_width()), doctor_document(found))
    return EXIT_PROBLEM if worst(found.verdicts) == "problem" else EXIT_WELL
