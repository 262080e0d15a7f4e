"""Several engines on one device: what one may take of it, and what it will take, so that the others know. Pure."""

from __future__ import annotations

import math

from vllm_autofit.values import DeviceFacts, Plan, Request, Share


def share_bytes(share: Share | None, total_bytes: int) -> int | None:
    """What one engine may take of a device; None where all that is free."""
    if share is None:
        return None
    return min(total_bytes, int(share.amount * total_bytes if share.is_fraction else share.amount))


def will_take(plan: Plan, request: Request, device: DeviceFacts) -> int:
    """Bytes of a device that are taken once the engine is up, its start-up included.

    What vLLM asks for, and what it doesn't count into that; where the user fixed the size of the KV cache and the model
    was weighed, the sum of its parts.
    """
    budget, share = plan.budget, plan.decision("gpu_memory_utilization").value
    if budget is None or not isinstance(share, int | float):
        return 0
    if request.kv_cache_fixed_by is not None and plan.estimated:
        asked = budget.weights_bytes + budget.activations_bytes + budget.non_torch_bytes + budget.kv_cache_bytes
        graphs = budget.cuda_graphs_bytes
    else:
        asked, graphs = math.ceil(device.total_bytes * share) * device.ranks, budget.graphs_beside_bytes
    return min(device.total_bytes, budget.startup_overhead_bytes + asked + graphs)


def may_grow(plan: Plan) -> int:
    """Bytes that it may take beyond that while it serves: what is kept free for it, unless the user said how much.

    They may keep memory free for something else.
    """
    budget = plan.budget
    return 0 if budget is None or budget.headroom_source == "user" else budget.headroom_bytes
