"""``vllm-autofit plan``: what a start on this machine would ask for right now."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.errors import DeviceError
from vllm_autofit.facts.devices import host_memory, nvidia_devices
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.render.plan import plan_table
from vllm_autofit.settings import read_settings
from vllm_autofit.values import DeviceFacts, Lessons, Request


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("plan", help="what a start on this machine would ask for right now")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    settings = read_settings()
    for warning in settings.warnings:
        print(f"vllm-autofit: {warning}.", file=sys.stderr)
    devices, note = _devices()
    request = Request(model="", values=dict.fromkeys(FIELDS), set_by_user=frozenset(), local_ranks=len(devices))
    plan = make_plan(request, devices, Lessons(), settings.rules)
    if options.format == "json":
        document = {**asdict(plan), "devices": [asdict(device) for device in devices], "note": note}
        print(json.dumps(document, indent=1))
    else:
        print(plan_table(plan, devices, note))
    return 0 if plan.fits else 3


def _devices() -> tuple[list[DeviceFacts], str]:
    try:
        return nvidia_devices(
            os.environ, ranks=0
        ), "All visible NVIDIA devices, as one launch over them would see them."
    except DeviceError as error:
        return [host_memory()], f"Host memory, for vLLM's CPU backend ({error})."
