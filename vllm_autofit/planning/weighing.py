"""One model on one device: what is given up, what that leaves for the KV cache, what is missing if nothing helps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from vllm_autofit.architecture import ModelFacts
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory import kv_cache
from vllm_autofit.memory.estimate import Estimator
from vllm_autofit.memory.overhead import unprofiled_bytes
from vllm_autofit.planning.concessions import Outcome, Weigh, Wish, concede
from vllm_autofit.planning.defaults import Usage, Version, deployment_of
from vllm_autofit.planning.fit import LEAST_SPARE_BYTES, Fit, Room, weigh
from vllm_autofit.planning.fp8 import fp8_kv_cache
from vllm_autofit.planning.learned import LearnedEstimator
from vllm_autofit.planning.policy import POLICIES, Step
from vllm_autofit.planning.refusals import refusals
from vllm_autofit.planning.remedies import remedies_for
from vllm_autofit.units import GIB
from vllm_autofit.values import (
    AUTO_CONTEXT,
    Budget,
    Concession,
    Confidence,
    DeviceFacts,
    FieldValue,
    KvSummary,
    Lessons,
    Model,
    Remedy,
    Request,
    Rules,
    RunSettings,
)

STEP_FIELDS: Mapping[Step, str] = {
    "context": "max_model_len",
    "sequences": "max_num_seqs",
    "fp8": "kv_cache_dtype",
    "eager": "enforce_eager",
}

NEARLY = 0.8
"""The last start's number of sequences is kept while neither it nor what fits now is less than this share of the
other."""


@dataclass(frozen=True)
class Weighing:
    """What weighing a model adds to a plan."""

    budget: Budget
    """With what the utilisation in force asks for, which may be the user's."""
    share_is_fixed: bool
    kv: KvSummary | None
    context: int
    """Tokens that fit by the estimate, or the user's own."""
    context_why: str
    context_is_conceded: bool
    context_is_bounded: bool
    """The policy wants it shorter than the longest that vLLM would fit by itself."""
    changed: Mapping[str, tuple[FieldValue, str]]
    """Other fields that were given up or capped: value and reason."""
    shortfall_bytes: int
    refusals: tuple[str, ...]
    remedies: tuple[Remedy, ...]
    concessions: tuple[Concession, ...]
    confidence: Confidence
    warnings: tuple[str, ...]


def weigh_model(
    model: Model,
    request: Request,
    device: DeviceFacts,
    budget: Budget,
    rules: Rules,
    lessons: Lessons,
    *,
    version: Version,
    usage: Usage,
    separate_processes: bool,
) -> Weighing:
    """Weigh ``model`` on the tightest of the devices.

    Args:
        model: with its facts.
        request: what was asked for.
        device: the tightest device.
        budget: what may be asked of it.
        rules: the user's settings.
        lessons: what earlier starts measured.
        version: of vLLM.
        usage: what starts; vLLM's batch defaults depend on it.
        separate_processes: whether engine core and workers are processes of their own.
    """
    estimator = LearnedEstimator(Estimator(model), lessons.terms)
    facts = estimator.facts
    start = deployment_of(request, facts, device, version=version, usage=usage, separate_processes=separate_processes)
    room = _room(request, budget, lessons)

    @cache
    def weighed(deployment: Deployment) -> Fit:
        return weigh(estimator, deployment, room)

    wish = _wish(request, facts, start, rules)
    policy = POLICIES[rules.policy]
    outcome = concede(start, weighed, wish, policy)
    fit, capped = _capped(outcome.fit, weighed, wish)
    fit = _as_before(fit, weighed, wish, lessons.settings)
    # Only the CPU worker leaves its check out when the size of the KV cache is given (v1/worker/cpu_worker.py).
    unchecked = device.kind == "cpu" and start.kv_cache_memory_bytes is not None
    check_bytes = 0 if unchecked else max(0, -room.beside_bytes)
    shortfall = budget.ranks * (fit.shortfall(wish.least_context) + check_bytes)
    refused = refusals(facts, start, context_is_the_users=_context_may_be_refused(request, wish, facts))
    remedies: tuple[Remedy, ...] = ()
    if not refused and (shortfall or not outcome.reached):  # a refusal names its own remedy
        remedies = remedies_for(weighed, fit, wish, facts, device, room)
    # What was given up in vain isn't filled in.
    in_vain = bool(refused) or fit.is_hopeless(wish.least_context)
    conceded = () if in_vain else outcome.conceded
    return Weighing(
        budget=_filled(budget, fit),
        share_is_fixed=room.share_is_fixed,
        kv=_summary(fit, outcome.context),
        context=outcome.context,
        context_why=_context_why(outcome, wish),
        context_is_conceded=outcome.context < wish.context,
        context_is_bounded=policy.full_requests > 1 and outcome.context < wish.context and outcome.reached,
        changed={} if in_vain else _changed(start, fit, capped),
        shortfall_bytes=shortfall,
        refusals=refused,
        remedies=remedies,
        concessions=tuple(replace(each, bought_bytes=each.bought_bytes * budget.ranks) for each in conceded),
        confidence=_confidence(fit, budget),
        warnings=(
            *model.notes,
            *(f"vLLM is expected to refuse this: {reason}" for reason in refused),
            *_warnings(request, facts, fit, outcome, wish, budget, room, check_bytes),
        ),
    )


def _room(request: Request, budget: Budget, lessons: Lessons) -> Room:
    name = "gpu_memory_utilization"
    free = max(0, budget.usable_bytes - budget.startup_overhead_bytes) // budget.ranks
    share = request.values.get(name)
    fixed = name in request.set_by_user or request.utilization_left_to_vllm is not None
    if fixed and isinstance(share, int | float):
        asked = math.ceil(budget.total_bytes * share)
    else:
        asked, fixed = budget.asked_bytes, False
    if request.utilization_left_to_vllm is not None:
        free = max(free, asked)  # weights that others hold aren't free, and vLLM's check leaves them out
    return Room(
        asked,
        free - asked,
        share_is_fixed=fixed,
        headroom_bytes=budget.headroom_bytes // budget.ranks,
        headroom_is_fixed=budget.headroom_source == "user",
        beyond_share_bytes=max(0, budget.free_bytes - budget.claimed_bytes - budget.usable_bytes) // budget.ranks,
        proven_sequences=_proven_sequences(budget, lessons),
    )


def _proven_sequences(budget: Budget, lessons: Lessons) -> int:
    """How many sequences the headroom was seen to suffice for."""
    settings = None if lessons.headroom is None else lessons.headroom.settings
    return settings.max_num_seqs if settings is not None and budget.headroom_source == "record" else 0


def _wish(request: Request, facts: ModelFacts, start: Deployment, rules: Rules) -> Wish:
    own_context = "max_model_len" in request.set_by_user and request.values.get("max_model_len") != AUTO_CONTEXT
    left_open = {step for step, field in STEP_FIELDS.items() if field not in request.set_by_user}
    if not own_context:
        left_open.add("context")
    if request.planned_in_parts:
        left_open.clear()
    context = start.max_model_len
    return Wish(
        context=context,
        least_context=min(context, rules.min_context_tokens) if "context" in left_open else context,
        open=frozenset(left_open),
        fp8=fp8_kv_cache(facts, start),
    )


def _context_may_be_refused(request: Request, wish: Wish, facts: ModelFacts) -> bool:
    """Whether the context is the user's, and the model's own is known well enough to compare it with."""
    allowed = str(request.knobs.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "0")) not in ("", "0")
    guessed = any("max_position_embeddings" in note for note in facts.notes)
    return "context" not in wish.open and not allowed and not guessed


def _capped(fit: Fit, weigh: Weigh, wish: Wish) -> tuple[Fit, bool]:
    """``max_num_seqs`` no higher than what the pool's blocks, or its state blocks, can hold at once.

    Fewer sequences leave more room for blocks, so the highest count that holds is searched for.
    """
    most = _most_sequences(fit)
    if most is None or "sequences" not in wish.open or fit.deployment.max_num_seqs <= most:
        return fit, False
    holds, fails = most, fit.deployment.max_num_seqs
    while fails - holds > 1:
        middle = (holds + fails) // 2
        if (_most_sequences(weigh(replace(fit.deployment, max_num_seqs=middle))) or 0) >= middle:
            holds = middle
        else:
            fails = middle
    return weigh(replace(fit.deployment, max_num_seqs=holds)), True


def _as_before(fit: Fit, weigh: Weigh, wish: Wish, before: RunSettings | None) -> Fit:
    """With as many sequences as the last start where that is nearly the same.

    Free memory moves a little between starts; vLLM's compile cache is keyed by this number, so that it shouldn't.
    """
    now = fit.deployment.max_num_seqs
    if before is None or "sequences" not in wish.open or not NEARLY * now <= before.max_num_seqs <= now / NEARLY:
        return fit
    kept = weigh(replace(fit.deployment, max_num_seqs=before.max_num_seqs))
    holds = (_most_sequences(kept) or before.max_num_seqs) >= before.max_num_seqs
    return kept if holds and kept.sure_kv_bytes >= kept.needs(wish.least_context) else fit


def _most_sequences(fit: Fit) -> int | None:
    """None without a KV cache, and where not even one fits: then the plan has worse to say."""
    if fit.demand.kv is None:
        return None
    blocks = kv_cache.blocks(fit.demand.kv, max(0, fit.sure_kv_bytes))
    states = kv_cache.most_sequences(fit.demand.kv, blocks)
    most = blocks // len(fit.demand.kv.groups)
    return (most if states is None else min(most, states)) or None


def _filled(budget: Budget, fit: Fit) -> Budget:
    each = budget.ranks
    return replace(
        budget,
        asked_bytes=fit.asked_bytes,
        headroom_bytes=budget.headroom_bytes + each * fit.more_headroom_bytes,
        weights_bytes=each * fit.demand.weights.bytes,
        activations_bytes=each * fit.demand.activations.bytes,
        cuda_graphs_bytes=each * fit.demand.cuda_graphs.bytes,
        non_torch_bytes=each * fit.demand.non_torch.bytes,
        graphs_beside_bytes=each * fit.graphs_beside_bytes,
        kv_cache_bytes=each * max(0, fit.kv_bytes) if fit.demand.kv is not None else 0,
    )


def _summary(fit: Fit, context: int) -> KvSummary | None:
    layout = fit.demand.kv
    if layout is None:
        return None
    served = replace(fit.deployment, max_model_len=context)
    blocks = kv_cache.blocks(layout, max(0, fit.kv_bytes), fit.deployment.blocks_override)
    return KvSummary(
        bytes_per_token=kv_cache.bytes_per_token(layout),
        block_size=layout.block_size,
        blocks=blocks,
        tokens=kv_cache.tokens(layout, served, blocks),
        max_concurrency=kv_cache.max_concurrency(layout, served, blocks),
    )


def _context_why(outcome: Outcome, wish: Wish) -> str:
    if outcome.fit.is_hopeless(wish.least_context):
        return f"not even {wish.least_context:,} of the model's {wish.context:,} tokens fit by the estimate"
    if outcome.context >= wish.context:
        return f"the model's {wish.context:,} tokens should fit"
    if not outcome.reached:
        return f"not even {outcome.context:,} of the model's {wish.context:,} tokens are sure to fit"
    return f"about {outcome.context:,} of the model's {wish.context:,} tokens should fit"


def _changed(start: Deployment, fit: Fit, capped: bool) -> dict[str, tuple[FieldValue, str]]:
    now = fit.deployment
    changed: dict[str, tuple[FieldValue, str]] = {}
    if now.max_num_seqs != start.max_num_seqs:
        why = "no more fit into the KV cache at once" if capped else "fewer at a time, so that the model fits"
        changed["max_num_seqs"] = (now.max_num_seqs, f"{why} (vLLM's default here is {start.max_num_seqs})")
    if now.kv_cache_dtype != start.kv_cache_dtype:
        changed["kv_cache_dtype"] = (now.kv_cache_dtype, "half the size of a 16-bit KV cache, so that the model fits")
    if now.enforce_eager != start.enforce_eager:
        changed["enforce_eager"] = (now.enforce_eager, "CUDA graphs find no room beside the rest")
    return changed


def _confidence(fit: Fit, budget: Budget) -> Confidence:
    terms = fit.demand
    bars = {
        "weights": terms.weights.error_bytes,
        "activations": terms.activations.error_bytes,
        "cuda_graphs": terms.cuda_graphs.error_bytes,
        "non_torch": terms.non_torch.error_bytes,
        "kv_cache": fit.error_bytes,
    }
    return Confidence("estimate", {name: budget.ranks * error for name, error in bars.items() if error})


def _warnings(
    request: Request,
    facts: ModelFacts,
    fit: Fit,
    outcome: Outcome,
    wish: Wish,
    budget: Budget,
    room: Room,
    check_bytes: int,
) -> Iterator[str]:
    ranks = budget.ranks
    short = fit.shortfall(wish.least_context)
    if check_bytes:
        yield (
            f"gpu_memory_utilization={request.values['gpu_memory_utilization']} asks for "
            f"{ranks * check_bytes / GIB:.2f} GiB more than will be free when vLLM checks; leave it unset, or lower it"
        )
    elif short:
        even = [each.change for each in outcome.conceded if not each.change.startswith("context")]
        yield (
            f"does not fit by the estimate: {ranks * short / GIB:.2f} GiB short for a context of {wish.least_context:,}"
            + (f", even with {', '.join(even)}" if even else "")
        )
    elif not outcome.reached:
        yield (
            f"a close call: {ranks * fit.kv_bytes / GIB:.2f} GiB for the KV cache by the estimate, which may be off by "
            f"{ranks * fit.error_bytes / GIB:.2f}"
        )
    later = unprofiled_bytes(facts, fit.deployment).bytes + LEAST_SPARE_BYTES
    judged = room.share_is_fixed and request.utilization_left_to_vllm is None and fit.deployment.device != "cpu"
    if judged and 0 <= room.beside_bytes < later:
        yield (
            f"gpu_memory_utilization={request.values['gpu_memory_utilization']} leaves {room.beside_bytes / GIB:.2f} "
            f"GiB beside what vLLM asks for; up to {later / GIB:.2f} may be taken after it has sized the KV cache"
        )
    most = _most_sequences(fit)
    if most is not None and "sequences" not in wish.open and fit.deployment.max_num_seqs > most:
        yield (
            f"max_num_seqs={fit.deployment.max_num_seqs} is more than the KV cache can hold at once ({most}); "
            f"--max-num-seqs {most} or less is safe"
        )
