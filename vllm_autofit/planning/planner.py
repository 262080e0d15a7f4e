"""Decides a value, a source and a reason for each of the five fields.

Without a model: how much of the device to ask for, and a context that vLLM fits to its own KV cache. With one: what
must be given up so that it fits, how many sequences it can hold, and, where nothing helps, how much is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_autofit import FIELDS
from vllm_autofit.memory.budget import asked_bytes, utilization
from vllm_autofit.memory.overhead import headroom, startup_overhead
from vllm_autofit.planning.defaults import CONTEXT_AUTOMATIC_SINCE, NEWEST, Usage, Version
from vllm_autofit.planning.sharing import share_bytes
from vllm_autofit.planning.weighing import Weighing, weigh_model
from vllm_autofit.units import GIB, MIB
from vllm_autofit.values import (
    AUTO_CONTEXT,
    Budget,
    Decision,
    DeviceFacts,
    FieldValue,
    Lessons,
    Model,
    Plan,
    Request,
    Rules,
    Source,
)

SMALLEST_ASK_BYTES = 256 * MIB
"""Below this no model starts; asking for it would only hide vLLM's own message about the memory that is missing."""

LEAST_KEPT_BYTES = 64 * MIB
"""Free beside what a proven start asked for: see ``_proven``."""

MOST_TIMES = 3
"""A measured overhead or headroom is believed up to this many times the estimate."""


def make_plan(
    request: Request,
    devices: Sequence[DeviceFacts],
    lessons: Lessons,
    rules: Rules,
    *,
    model: Model | None = None,
    version: Version = NEWEST,
    usage: Usage = "server",
    separate_processes: bool = True,
    context_automatic: bool | None = None,
) -> Plan:
    """The plan for one start.

    Args:
        request: what the user asked for.
        devices: the devices that the local ranks will use; empty when they can't be read, then vLLM decides.
        lessons: what earlier starts under the same key taught.
        rules: the user's settings.
        model: what could be read about the model; without its facts nothing is weighed.
        version: of vLLM.
        usage: what starts; vLLM's batch defaults depend on it.
        separate_processes: whether engine core and workers are processes of their own.
        context_automatic: whether this vLLM fits ``max_model_len`` by itself and tells its API server; None: as its
            version does.
    """
    if context_automatic is None:
        context_automatic = version >= CONTEXT_AUTOMATIC_SINCE
    warnings = _uncertain_devices(request, devices)
    if model is not None and model.facts is None:
        warnings += model.notes
    # What the user pinned counts as set by them; what they set in this launch counts more.
    pins = {name: value for name, value in lessons.pinned.items() if name not in request.set_by_user}
    request = replace(request, values={**request.values, **pins}, set_by_user=request.set_by_user | pins.keys())
    warnings += _headroom_of_users(lessons, rules)
    uncompiled = _uncompiled(request, lessons)
    if uncompiled is not None:
        request = replace(request, values={**request.values, uncompiled.field: uncompiled.value})
        warnings.append(uncompiled.why)
    devices = [*devices, *_devices_elsewhere(request, devices, lessons, separate_processes)]
    if "gpu_memory_utilization" in request.set_by_user:
        rules = replace(rules, share=None)  # the closer word counts
    budgets = [_budget(device, lessons, rules, separate_processes, request.local_ranks) for device in devices]
    budget, weighing = _tightest(budgets), None
    ours = budget
    if budget is not None and model is not None and model.facts is not None:
        device = devices[budgets.index(budget)]
        weighing = weigh_model(
            model,
            request,
            device,
            budget,
            rules,
            lessons,
            version=version,
            usage=usage,
            separate_processes=separate_processes,
        )
        budget = weighing.budget
        ours = ours if weighing.share_is_fixed else budget
        warnings += weighing.warnings
    decisions = {
        "gpu_memory_utilization": _utilization(request, ours, warnings),
        "max_model_len": _context(request, rules, context_automatic, weighing, lessons),
        **({} if uncompiled is None else {uncompiled.field: uncompiled}),
    }
    for name in FIELDS:
        decisions.setdefault(name, _conceded(request, name, weighing) or _left_alone(request, name))
    plan = Plan(
        decisions=tuple(_as_pinned(decisions[name]) if name in pins else decisions[name] for name in FIELDS),
        budget=budget,
        warnings=tuple(warnings),
        record_id=_record_behind(budget, lessons, weighed=weighing is not None),
    )
    if weighing is None:
        return plan
    return replace(
        plan,
        estimated=True,
        kv=weighing.kv,
        shortfall_bytes=weighing.shortfall_bytes,
        refusals=weighing.refusals,
        remedies=weighing.remedies,
        concessions=weighing.concessions,
        confidence=weighing.confidence,
    )


def _as_pinned(decision: Decision) -> Decision:
    """Filled in, since this launch doesn't set it, and named as what it is."""
    return replace(decision, source="record", why="pinned by you for this start (vllm-autofit history unpin)")


def _budget(device: DeviceFacts, lessons: Lessons, rules: Rules, separate_processes: bool, local_ranks: int) -> Budget:
    overhead, overhead_source = _overhead(device, lessons, separate_processes, local_ranks)
    spare, spare_source = _headroom(device, lessons, rules)
    budget = Budget(
        device=device.name,
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        startup_overhead_bytes=overhead,
        startup_overhead_source=overhead_source,
        headroom_bytes=spare,
        headroom_source=spare_source,
        asked_bytes=0,
        ranks=device.ranks,
        claimed_bytes=device.claimed_bytes,
        share_bytes=share_bytes(rules.share, device.total_bytes),
    )
    asked = asked_bytes(budget.usable_bytes, overhead, spare, device.ranks)
    proven = 0 if spare_source == "user" or device.shares_host else _proven(budget, lessons, rules)
    if proven > asked and proven >= SMALLEST_ASK_BYTES:
        asked, spare = proven, budget.usable_bytes - overhead - proven * device.ranks
    return replace(budget, asked_bytes=asked, headroom_bytes=spare)


def _overhead(device: DeviceFacts, lessons: Lessons, separate_processes: bool, local_ranks: int) -> tuple[int, Source]:
    """What a start takes of a device before vLLM's check."""
    talking = local_ranks if device.kind == "cuda" else device.ranks
    estimate = startup_overhead(device.memory_kind, talking, separate_processes)
    if lessons.startup_overhead is None:
        return estimate, "estimate"
    return _believable(lessons.startup_overhead.bytes, estimate), lessons.startup_overhead.source


def _devices_elsewhere(
    request: Request, devices: Sequence[DeviceFacts], lessons: Lessons, separate_processes: bool
) -> list[DeviceFacts]:
    """The tightest device of other nodes, where this plan counts there too, as it was before the last start."""
    seen = lessons.elsewhere
    if seen is None or not devices or request.planned_in_parts:
        return []
    alike = replace(devices[0], ranks=seen.ranks)
    overhead, _source = _overhead(alike, lessons, separate_processes, request.local_ranks)
    free = min(seen.free_bytes + overhead, seen.total_bytes)
    name = "a device of another node, as last seen"
    return [replace(alike, name=name, total_bytes=seen.total_bytes, free_bytes=free, claimed_bytes=0)]


def _headroom(device: DeviceFacts, lessons: Lessons, rules: Rules) -> tuple[int, Source]:
    """The user's; else what load has shown to be enough, and never less than what has shown not to be.

    Where the operating system lives on the same memory, one start that went well is no reason to leave it less.
    """
    if rules.headroom_bytes is not None:
        return rules.headroom_bytes, "user"
    estimate = headroom(device.memory_kind, device.total_bytes, rules.policy)
    spare = estimate
    source: Source = "estimate"
    if lessons.headroom is not None and rules.policy != "safe" and not device.shares_host:
        spare, source = min(lessons.headroom.bytes, estimate * MOST_TIMES), "record"
    if lessons.least_headroom is not None and lessons.least_headroom.bytes > spare:
        spare, source = min(lessons.least_headroom.bytes, device.total_bytes // 2), "record"
    return spare + lessons.restless_bytes, source


def _headroom_of_users(lessons: Lessons, rules: Rules) -> list[str]:
    """Theirs stays as it is; that a start ran out with as little is said."""
    least = lessons.least_headroom
    if rules.headroom_bytes is None or least is None or least.bytes <= rules.headroom_bytes:
        return []
    return [
        f"start {least.record_id} ran out of memory with less than {least.bytes / GIB:.2f} GiB kept free; "
        f"VLLM_AUTOFIT_HEADROOM keeps {rules.headroom_bytes / GIB:.2f} GiB, and yours counts"
    ]


def _proven(budget: Budget, lessons: Lessons, rules: Rules) -> int:
    """What each rank may ask because a start that asked it survived load; 0 where that isn't free now.

    It may use up most of the headroom, which is there for the free memory that moves between two starts: the KV cache
    of the next start is no smaller than that of the last.
    """
    if lessons.proven_asked is None or rules.policy == "safe":
        return 0
    least = LEAST_KEPT_BYTES if lessons.least_headroom is None else lessons.least_headroom.bytes
    room = asked_bytes(budget.usable_bytes, budget.startup_overhead_bytes, least, budget.ranks)
    return min(lessons.proven_asked.bytes // budget.ranks, room)


def _record_behind(budget: Budget | None, lessons: Lessons, *, weighed: bool) -> str | None:
    """The newest start whose figures the plan rests on."""
    if budget is None:
        return None
    used = [lessons.startup_overhead if budget.startup_overhead_source == "record" else None]
    used += [lessons.headroom, lessons.least_headroom] if budget.headroom_source == "record" else []
    used += [each for each in lessons.terms.values() if each.source == "record"] if weighed else []
    return max((each.record_id for each in used if each is not None), default=None)


def _believable(measured: int, estimate: int) -> int:
    """A measured overhead between half and three times the estimate: the rest was a neighbour that moved meanwhile."""
    return min(max(measured, estimate // 2), estimate * MOST_TIMES)


def _tightest(budgets: Sequence[Budget]) -> Budget | None:
    """vLLM has one utilisation for all devices: one that has no room at all decides, else that with the least share."""
    return min(
        budgets, key=lambda b: (b.asked_bytes >= SMALLEST_ASK_BYTES, b.asked_bytes / b.total_bytes), default=None
    )


def _uncertain_devices(request: Request, devices: Sequence[DeviceFacts]) -> list[str]:
    """More devices than ranks are read only where it isn't known which of different ones vLLM will use."""
    kinds = {(device.name, device.total_bytes) for device in devices}
    if len(devices) <= request.local_ranks or len(kinds) < 2 or devices[0].kind != "cuda":
        return []
    names = ", ".join(sorted({device.name for device in devices}))
    return [
        f"vLLM may use any of these devices, so the tightest decides: {names}. "
        "CUDA_DEVICE_ORDER=PCI_BUS_ID makes their numbers certain, and the plan fit the right one"
    ]


def _utilization(request: Request, budget: Budget | None, warnings: list[str]) -> Decision:
    name = "gpu_memory_utilization"
    suggested: FieldValue = None
    source: Source = "vllm"
    why = "the device's memory could not be read"
    if budget is not None:
        source = _source_of(budget)
        why = (
            f"{_usable(budget)}, "
            f"less {budget.startup_overhead_bytes / GIB:.2f} for start-up ({budget.startup_overhead_source}) "
            f"and {budget.headroom_bytes / GIB:.2f} headroom"
            + (" (record)" if budget.headroom_source == "record" else "")
        )
        if budget.ranks > 1:
            why += f", over {budget.ranks} ranks"
        if budget.graphs_beside_bytes > 0:
            why += f", and {budget.graphs_beside_bytes / GIB:.2f} for CUDA graphs, which this vLLM doesn't count"
        if budget.asked_bytes >= SMALLEST_ASK_BYTES:
            # None where the device is so large that this is less than one step.
            suggested = utilization(budget.asked_bytes, budget.total_bytes) or None
        if suggested is None and name not in request.set_by_user:
            missing = SMALLEST_ASK_BYTES * budget.ranks + budget.startup_overhead_bytes + budget.headroom_bytes
            warnings.append(
                f"nothing fits: {why}. At least {max(0, missing - budget.usable_bytes) / GIB:.2f} GiB more must be "
                f"free: {_way_out(budget)}"
            )
    if name in request.set_by_user:
        return Decision(name, request.values[name], "user", "set by you", suggested)
    if request.kv_cache_fixed_by is not None:
        why += f"; only the check at start uses it, {request.kv_cache_fixed_by} fixes the KV cache"
    if suggested is None or request.utilization_left_to_vllm is not None:
        return Decision(name, request.values[name], "vllm", request.utilization_left_to_vllm or why, suggested)
    return Decision(name, suggested, source, why, suggested)


def _usable(budget: Budget) -> str:
    """What may be taken of the device, and what bounds it."""
    free = f"{budget.free_bytes / GIB:.2f} of {budget.total_bytes / GIB:.2f} GiB free on {budget.device}"
    if budget.claimed_bytes:
        free += f", {budget.claimed_bytes / GIB:.2f} of them claimed by engines beside this one"
    if budget.share_bytes is not None:
        free += f", {budget.share_bytes / GIB:.2f} at most by VLLM_AUTOFIT_SHARE"
    return free


def _way_out(budget: Budget) -> str:
    if budget.share_bytes is not None and budget.usable_bytes == budget.share_bytes:
        return "raise VLLM_AUTOFIT_SHARE"
    if budget.claimed_bytes:
        return "give each engine a part with VLLM_AUTOFIT_SHARE, or close what holds it"
    return "close what holds it, or lower VLLM_AUTOFIT_HEADROOM"


def _source_of(budget: Budget) -> Source:
    sources = (budget.startup_overhead_source, budget.headroom_source)
    return next((each for each in ("record", "prior") if each in sources), "estimate")


def _context(request: Request, rules: Rules, automatic: bool, weighing: Weighing | None, lessons: Lessons) -> Decision:
    name = "max_model_len"
    if name in request.set_by_user:
        return Decision(name, request.values[name], "user", "set by you")
    if request.planned_in_parts:
        return _left_alone(request, name, "every part of this launch must agree on it, and each would fit its own")
    bounded = weighing is not None and weighing.context_is_bounded
    if weighing is not None and (bounded or (not automatic and weighing.context_is_conceded)):
        return Decision(name, weighing.context, "estimate", weighing.context_why, weighing.context)
    if not automatic:
        tokens, failed = lessons.estimated_context or (0, "")
        if weighing is None and tokens >= rules.min_context_tokens:
            return Decision(name, tokens, "record", f"vLLM's own estimate when start {failed} failed", tokens)
        return _left_alone(request, name, "this vLLM can't fit the context by itself")
    why = (
        "vLLM keeps the model's own context, or the longest that fits its KV cache "
        f"(you are told if that is under {rules.min_context_tokens} tokens)"
    )
    if weighing is not None:
        why += f"; {weighing.context_why}"
    return Decision(name, AUTO_CONTEXT, "estimate", why, AUTO_CONTEXT)


def _uncompiled(request: Request, lessons: Lessons) -> Decision | None:
    """Eager mode, where a start was killed before there was a KV cache: compiling takes memory of the machine."""
    name, killed = "enforce_eager", lessons.killed_compiling
    if killed is None or name in request.set_by_user or request.values[name]:
        return None
    why = f"start {killed} was killed while vLLM compiled, so this one doesn't compile (--no-enforce-eager does)"
    return Decision(name, True, "record", why, True)


def _conceded(request: Request, name: str, weighing: Weighing | None) -> Decision | None:
    """A field that the weighing changed, and that the user left open."""
    if weighing is None or name in request.set_by_user or name not in weighing.changed:
        return None
    value, why = weighing.changed[name]
    return Decision(name, value, "estimate", why, value)


def _left_alone(request: Request, name: str, why: str = "no need to change it") -> Decision:
    if name in request.set_by_user:
        return Decision(name, request.values[name], "user", "set by you")
    return Decision(name, request.values[name], "vllm", why)
