"""Refuses a start that can't succeed, in the front end, right before its engine would be made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vllm_autofit.errors import RefusedError
from vllm_autofit.hooks.deadline import DRIVER, HOST, within
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.runs import Run

if TYPE_CHECKING:
    from vllm_autofit.facts.holders import Holder
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

    on_host = all(each["kind"] == "cpu" for each in run["record"]["identity"]["devices"])
    limit, held = (HOST, _of_host) if on_host else (DRIVER, partial(_of_device, found["device"]))
    holders = attempt("looking who holds memory", within, limit, held) or []
    raise RefusedError(found["reasons"], refusal_text(found["reasons"], found["remedies"], holders))


def _of_host() -> list[str]:
    """The processes that hold the most of the host's memory."""
    from vllm_autofit.facts.holders import host_holders

    return _named(host_holders(HOLDERS, without=os.getpid()))


def _of_device(device: str) -> list[str]:
    """The processes that hold the most memory of the device that is short."""
    from vllm_autofit.facts.devices import nvidia_processes
    from vllm_autofit.facts.holders import device_holders

    found = [processes for facts, processes in nvidia_processes(os.environ) if facts.name == device]
    return _named([holder for processes in found for holder in device_holders(processes)])


def _named(holders: Sequence[Holder]) -> list[str]:
    from vllm_autofit.render.failure import holder_text

    return [holder_text(each.pid, each.bytes, each.command, each.user) for each in holders[:HOLDERS]]
