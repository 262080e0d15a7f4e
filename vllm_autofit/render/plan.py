"""A plan as a table for a person who has never seen one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vllm_autofit.answer import Answer
from vllm_autofit.render.document import budget_terms
from vllm_autofit.render.launch import shell_command
from vllm_autofit.render.options import shown
from vllm_autofit.units import GIB
from vllm_autofit.values import Plan

WIDTH = 110
BAR = 40
TERMS = {
    "weights": "weights",
    "activations": "activations, at their peak",
    "cuda_graphs": "CUDA graphs",
    "non_torch": "CUDA context, NCCL, kernels",
    "kv_cache": "KV cache",
    "headroom": "left free",
    "unavailable": "held by others",
}
SOURCES = {
    "user": "yours",
    "record": "from a start that was measured",
    "prior": "from a start elsewhere",
    "estimate": "estimated",
    "vllm": "vLLM's own",
}
ON_THE_HOST = {"non_torch": "vLLM's processes", "unavailable": "held by others, now"}


def plan_table(answer: Answer) -> str:
    """What fits, where the memory goes, each setting with its reason, and what would help."""
    sections = [
        _heading(answer),
        _budget(answer),
        _settings(answer),
        _given_up(answer.plan),
        _remedies(answer),
        _warnings(answer.plan),
        _start(answer),
    ]
    return "\n\n".join("\n".join(section) for section in map(list, sections) if section)


def _heading(answer: Answer) -> Iterator[str]:
    plan = answer.plan
    first, budget = answer.devices[0], plan.budget
    what = answer.model_name or "Any model"
    count = f"{len(answer.devices)} x " if len(answer.devices) > 1 else ""
    yield f"{what} on {count}{budget.device if budget else first.name}, vLLM {answer.vllm_version}"
    yield from _wrapped(f"memory of the device: {answer.device_source}", "  ")
    if answer.model is not None and answer.model.facts is not None:
        exact = "exact" if answer.model.exact else "estimated"
        yield from _wrapped(
            f"model: {answer.model.facts.architecture}; weights {exact}, from {answer.model.weights_source}", "  "
        )
    yield ""
    yield from _wrapped(_verdict(answer), "")


def _verdict(answer: Answer) -> str:
    plan = answer.plan
    if answer.fits is None:
        return "NOT KNOWN whether it fits: the model isn't understood. The settings below look at the device alone."
    if answer.plan.refusals:
        return "vLLM WOULD REFUSE THIS, whatever memory there is: see the warnings."
    if not answer.fits:
        missing = f", {plan.shortfall_bytes / GIB:.2f} GiB short on each device" if plan.shortfall_bytes else ""
        return f"DOES NOT FIT{missing}."
    if answer.model is None:
        return "No model was named: this is what any start would ask of the device now."
    kv = plan.kv
    if kv is None:
        return "FITS. The model has no KV cache."
    return (
        f"FITS. The KV cache holds about {kv.tokens:,} tokens: {kv.max_concurrency:.1f} requests of the longest "
        f"context at once ({kv.bytes_per_token / 1024:.1f} KiB a token, {kv.blocks:,} blocks of {kv.block_size})."
    )


def _budget(answer: Answer) -> Iterator[str]:
    budget = answer.plan.budget
    if budget is None:
        return
    terms = budget_terms(budget, weighed=answer.plan.estimated)
    bars = answer.plan.confidence.error_bars
    names = {**TERMS, **(ON_THE_HOST if answer.devices[0].kind == "cpu" else {})}
    each = "each device" if len(answer.devices) > 1 else "the device"
    tightest = " (the tightest)" if len({device.free_bytes for device in answer.devices}) > 1 else ""
    how = "would go with all given up that helps" if answer.plan.shortfall_bytes else "goes"
    yield f"Where the memory of {each}{tightest} {how}, in GiB"
    for key, name in names.items():
        size = terms[key]
        if size is not None:
            error = f"± {bars[key] / GIB:.2f}" if bars.get(key) else ""
            yield f"  {name:<28} {size / GIB:9.2f} {error:<8} {_bar(size, budget.total_bytes)}".rstrip()
    if not answer.plan.estimated:
        yield f"  {'vLLM, for everything':<28} {budget.ranks * budget.asked_bytes / GIB:9.2f}"
    yield f"  {'total':<28} {budget.total_bytes / GIB:9.2f}"


def _bar(size: int, total: int) -> str:
    return "#" * min(BAR, round(BAR * max(0, size) / total))


def _settings(answer: Answer) -> Iterator[str]:
    yield "Settings that come closest" if answer.fits is False else "Settings"
    for decision in answer.plan.decisions:
        name = "--" + decision.field.replace("_", "-")
        value = "vLLM's default" if decision.value is None else shown(decision.field, decision.value)
        yield f"  {name:<26} {value:<16} {SOURCES[decision.source]}"
        yield from _wrapped(decision.why, "      ")


def _given_up(plan: Plan) -> Iterator[str]:
    if plan.concessions:
        yield "Given up so that it fits"
        for each in plan.concessions:
            yield f"  {each.bought_bytes / GIB:8.2f} GiB  {each.change}"


def _remedies(answer: Answer) -> Iterator[str]:
    if not answer.plan.remedies:
        return
    yield "What would help, the most useful first" if answer.fits else "What would make it fit, the most useful first"
    for rank, each in enumerate(answer.plan.remedies, start=1):
        flag = f"  ({each.flag})" if each.flag else ""
        yield f"  {rank}. {each.effect_bytes / GIB:8.2f} GiB  {each.change}{flag}"


def _warnings(plan: Plan) -> Iterator[str]:
    for warning in plan.warnings:
        yield from textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")


def _start(answer: Answer) -> Iterator[str]:
    if answer.fits is not False and answer.launch:
        yield "Start it with" if answer.model_name else "Give vLLM"
        yield f"  {shell_command(answer)}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
