"""Refuses a start that can't succeed, in the front end, right before its engine would be made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vllm_autofit.errors import RefusedError
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.runs import Run

if TYPE_CHECKING:
    from vllm_autofit.values import Plan

NAME = "refusal"
HOLDERS = 3


def refusal(reasons: tuple[str, ...], plan: Plan) -> dict[str, Any] | None:
    """What a run carries until its engine would be made; None where nothing speaks against it."""
    if not reasons:
        return None
    from vllm_autofit.render.line import remedies_said

    device = plan.budget.device if plan.budget is not None else ""
    return {"reasons": reasons, "remedies": remedies_said(plan), "device": device}


def refuse(run: Run) -> None:
    """Nothing, for a start that may succeed.

    Raises:
        RefusedError: it can't.
    """
    found = run.get(NAME)
    if not found:
        return
    from vllm_autofit.render.failure import refusal_text

    holders = attempt("looking who holds memory", _holders, run, found["device"]) or []
    raise RefusedError(found["reasons"], refusal_text(found["reasons"], found["remedies"], holders))


def _holders(run: Run, device: str) -> list[str]:
    """The processes that hold the most memory of the device that is short."""
    from vllm_autofit.facts.devices import nvidia_processes
    from vllm_autofit.facts.holders import device_holders, host_holders
    from vllm_autofit.render.failure import holder_text

    if all(each["kind"] == "cpu" for each in run["record"]["identity"]["devices"]):
        holders = host_holders(HOLDERS, without=os.getpid())
    else:
        found = [processes for facts, processes in nvidia_processes(os.environ) if facts.name == device]
        holders = [holder for processes in found for holder in device_holders(processes)]
    return [holder_text(each.pid, each.bytes, each.command, each.user) for each in holders[:HOLDERS]]
