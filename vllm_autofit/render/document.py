"""A plan as a JSON document. ``plan.schema.json`` beside this says what stands in it; the keys are stable."""

from __future__ import annotations

from typing import Any

from vllm_autofit.answer import Answer
from vllm_autofit.values import Budget

SCHEMA_VERSION = 1


def plan_document(answer: Answer) -> dict[str, Any]:
    """The document for ``answer``; sizes are in bytes."""
    plan = answer.plan
    return {
        "schema": SCHEMA_VERSION,
        "vllm_version": answer.vllm_version,
        "model": _model(answer),
        "device": _device(answer),
        "fits": answer.fits,
        "settings": {decision.field: decision.value for decision in plan.decisions},
        "decisions": [
            {"field": each.field, "value": each.value, "source": each.source, "why": each.why}
            for each in plan.decisions
        ],
        "budget": None if plan.budget is None else budget_terms(plan.budget, weighed=plan.estimated),
        "kv": None
        if plan.kv is None
        else {
            "bytes_per_token": plan.kv.bytes_per_token,
            "block_size": plan.kv.block_size,
            "blocks": plan.kv.blocks,
            "tokens": plan.kv.tokens,
            "max_concurrency": plan.kv.max_concurrency,
        },
        "shortfall_bytes": plan.shortfall_bytes,
        "remedies": [
            {"change": each.change, "effect_bytes": each.effect_bytes, "flag": each.flag} for each in plan.remedies
        ],
        "concessions": [{"change": each.change, "bought_bytes": each.bought_bytes} for each in plan.concessions],
        "confidence": {"source": plan.confidence.source, "error_bars": dict(plan.confidence.error_bars)},
        "warnings": list(plan.warnings),
    }


def budget_terms(budget: Budget, *, weighed: bool) -> dict[str, int | None]:
    """Where the memory of one device goes, in bytes; None for what wasn't weighed.

    What vLLM takes before it looks at the free memory (the CUDA context) is non-torch memory to whoever reads this, and
    what nobody takes is headroom, whether it was meant so or is left over.
    """
    unsplit = budget.ranks * budget.asked_bytes
    return {
        "total": budget.total_bytes,
        "unavailable": budget.unavailable_bytes,
        "weights": budget.weights_bytes if weighed else None,
        "activations": budget.activations_bytes if weighed else None,
        "cuda_graphs": budget.cuda_graphs_bytes if weighed else None,
        "non_torch": budget.startup_overhead_bytes + (budget.non_torch_bytes if weighed else 0),
        "headroom": budget.left_bytes - (0 if weighed else unsplit),
        "kv_cache": budget.kv_cache_bytes if weighed else None,
    }


def _model(answer: Answer) -> dict[str, Any] | None:
    model = answer.model
    if model is None:
        return None
    return {
        "name": model.name,
        "architecture": None if model.facts is None else model.facts.architecture,
        "context_tokens": None if model.facts is None else model.facts.context_tokens,
        "weights_source": model.weights_source,
        "weights_exact": model.exact,
    }


def _device(answer: Answer) -> dict[str, Any]:
    first = answer.devices[0]
    budget = answer.plan.budget
    return {
        "name": first.name if budget is None else budget.device,
        "count": len(answer.devices),
        "total_bytes": first.total_bytes if budget is None else budget.total_bytes,
        "free_bytes": first.free_bytes if budget is None else budget.free_bytes,
        "source": answer.device_source,
    }
