"""The one line per start: what was filled, from what evidence, and how to pin it."""

from __future__ import annotations

from vllm_autofit.render.options import option_words, shown
from vllm_autofit.units import GIB
from vllm_autofit.values import FieldValue, Plan


def plan_line(plan: Plan, run_id: str, *, observing: bool = False) -> str:
    """One line of text about a plan.

    Args:
        plan: what was decided.
        run_id: the start, for ``vllm-autofit history show``.
        observing: whether nothing was changed.
    """
    parts = [_filled(plan, observing), *_given_up(plan), *_users(plan)]
    if plan.record_id is not None:
        parts.append(f"from the record of start {plan.record_id}")
    if plan.filled and not observing:
        parts.append(f"pin it with {flags(plan.filled)}")
    parts.append(f"details: vllm-autofit history show {run_id}")
    return "; ".join(part for part in parts if part)


REMEDIES_SAID = 3


def remedies_text(plan: Plan) -> str:
    """The most useful remedies of a plan that doesn't fit, with what each gains."""
    return "; ".join(remedies_said(plan))


def remedies_said(plan: Plan) -> list[str]:
    """The same, each by itself."""
    return [
        f"{each.change}{f' ({each.flag})' if each.flag else ''}: {each.effect_bytes / GIB:.2f} GiB"
        for each in plan.remedies[:REMEDIES_SAID]
    ]


def flags(values: dict[str, FieldValue]) -> str:
    """Field values as command-line flags of vLLM's."""
    return " ".join(word for name, value in values.items() for word in option_words(name, value))


def _filled(plan: Plan, observing: bool) -> str:
    if not plan.filled:
        return "nothing to fill in"
    verb = "would set (VLLM_AUTOFIT=observe)" if observing else "set"
    values = ", ".join(f"{name}={shown(name, value)}" for name, value in plan.filled.items())
    utilization = plan.decision("gpu_memory_utilization")
    why = f" ({utilization.why})" if utilization.field in plan.filled else ""
    return f"{verb} {values}{why}"


def _given_up(plan: Plan) -> list[str]:
    """What was conceded so that the model fits, beside a context that vLLM may yet find room for."""
    given = [each.change for each in plan.concessions if not each.change.startswith("context")]
    return [f"so that it fits: {', '.join(given)}"] if given else []


def _users(plan: Plan) -> list[str]:
    """What the user set, and what we would have chosen where we have an opinion."""
    said = []
    for decision in plan.decisions:
        if decision.source != "user":
            continue
        text = f"{decision.field}={shown(decision.field, decision.value)} is yours"
        if decision.suggested is not None and decision.suggested != decision.value:
            text += f", vllm-autofit would have chosen {shown(decision.field, decision.suggested)}"
        said.append(text)
    return said
