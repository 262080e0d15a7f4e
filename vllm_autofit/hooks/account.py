"""What a record says of a start before it happens: who starts, with which settings, and by which plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vllm_autofit.facts.processes import family_bytes
from vllm_autofit.hooks.deadline import HOST, within
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.start_facts import StartFacts
from vllm_autofit.values import DeviceFacts, Plan

IDENTIFYING_KNOBS = (
    "dtype",
    "quantization",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
)
"""As requested; what vLLM made of ``auto`` stands beside each engine's measurements."""


def sections(facts: StartFacts, related: Mapping[str, str], plan: Plan) -> dict[str, Any]:
    """The sections ``identity``, ``settings`` and ``plan`` of a record.

    Args:
        facts: of the start.
        related: the groups of starts that it belongs to.
        plan: what was decided.
    """
    return {
        "identity": {**_identity(facts), "groups": related},
        "settings": _knobs(facts, plan),
        "plan": _account(facts, plan),
    }


def _identity(facts: StartFacts) -> dict[str, Any]:
    return {
        "vllm": facts.vllm,
        "model": facts.model_name,
        "revision": facts.model.revision,
        "fingerprint": facts.model.fingerprint,
        "commit": facts.model.commit,
        **{name: facts.request.knobs.get(name) for name in IDENTIFYING_KNOBS},
        "launch": facts.launch,
        "ranks": facts.request.local_ranks,
        "devices": [_account_of(device) for device in facts.devices],
    }


def _account_of(device: DeviceFacts) -> dict[str, Any]:
    """Records are handed on, and no business of theirs is which device of its kind it was."""
    return {name: value for name, value in asdict(device).items() if name != "uuid"}


def _knobs(facts: StartFacts, plan: Plan) -> dict[str, Any]:
    """Every memory knob with its value and who chose it; when only observing, what vLLM goes on with."""
    request, observing = facts.request, facts.settings.mode == "observe"
    fields = {
        d.field: (
            {"value": request.values[d.field], "chosen_by": "vllm"}
            if observing and d.field in plan.filled
            else {"value": d.value, "chosen_by": d.source}
        )
        for d in plan.decisions
    }
    rest = {
        name: {"value": value, "chosen_by": "user" if name in request.knobs_changed else "vllm"}
        for name, value in request.knobs.items()
    }
    return {**fields, **rest}


def _account(facts: StartFacts, plan: Plan) -> dict[str, Any]:
    on_host = any(device.kind == "cpu" for device in facts.devices)
    return {
        "own_bytes": attempt("reading what this process holds", _own_bytes) if on_host else None,
        "mode": facts.settings.mode,
        "policy": facts.settings.policy,
        "min_context_tokens": facts.settings.min_context_tokens,
        "record": plan.record_id,
        "budget": None if plan.budget is None else asdict(plan.budget),
        "decisions": [asdict(decision) for decision in plan.decisions],
        "estimated": plan.estimated,
        "kv": None if plan.kv is None else asdict(plan.kv),
        "shortfall_bytes": plan.shortfall_bytes,
        "concessions": [asdict(concession) for concession in plan.concessions],
        "remedies": [asdict(remedy) for remedy in plan.remedies],
        "confidence": asdict(plan.confidence),
        "warnings": list(plan.warnings),
    }


def _own_bytes() -> int | None:
    return within(HOST, family_bytes, os.getpid())
