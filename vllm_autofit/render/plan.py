"""A plan as a table."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_autofit.memory.overhead import GIB
from vllm_autofit.render.line import flags, shown
from vllm_autofit.values import DeviceFacts, Plan


def plan_table(plan: Plan, devices: Sequence[DeviceFacts], note: str) -> str:
    """Devices, the sum for the tightest one, and one row per field."""
    lines = [note, ""]
    lines += [
        f"  {device.index}  {device.name:<28} {device.free_bytes / GIB:8.2f} GiB free of {device.total_bytes / GIB:.2f}"
        for device in devices
    ]
    budget = plan.budget
    if budget is not None:
        lines += [
            "",
            f"The tightest is {budget.device}:",
            f"  free now             {budget.free_bytes / GIB:8.2f} GiB",
            f"  less for start-up    {budget.startup_overhead_bytes / GIB:8.2f}      {budget.startup_overhead_source}",
            f"  less headroom        {budget.headroom_bytes / GIB:8.2f}      {budget.headroom_source}",
            f"  vLLM may ask for     {budget.asked_bytes * budget.ranks / GIB:8.2f}",
        ]
    lines += ["", *(f"warning: {warning}" for warning in plan.warnings)]
    lines += [
        f"  {d.field:<24} {shown(d.field, d.value):<10} {d.source:<9} {d.why}"
        for d in plan.decisions
        if d.value is not None
    ]
    if plan.filled:
        lines += ["", f"As flags: {flags(plan.filled)}"]
    return "\n".join(lines)
