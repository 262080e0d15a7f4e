"""What to give up, in the policy's order and only as far as needed, so that a model fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from vllm_autofit.deployment import Deployment
from vllm_autofit.memory import kv_cache
from vllm_autofit.planning.fit import Fit
from vllm_autofit.planning.policy import Policy, Step
from vllm_autofit.values import Concession

Weigh = Callable[[Deployment], Fit]


@dataclass(frozen=True)
class Wish:
    """What a plan must reach, and what it may touch."""

    context: int
    """Tokens: the user's, or the model's own."""
    least_context: int
    """Tokens that are acceptable; the same as ``context`` where the user set it."""
    open: frozenset[Step]
    """What the user left to us."""
    fp8: str | None = None
    """The dtype of an fp8 KV cache, where device and model can have one."""


@dataclass(frozen=True)
class Outcome:
    """Where the concessions ended."""

    fit: Fit
    context: int
    """The longest, up to the wish, that fits by the estimate; the shortest acceptable one where nothing does."""
    conceded: tuple[Concession, ...]
    steps: frozenset[Step]
    reached: bool
    """Whether the acceptable fits even if the estimate is off by its error."""


def concede(start: Deployment, weigh: Weigh, wish: Wish, policy: Policy) -> Outcome:
    """The mildest concessions with which ``start`` fits.

    Args:
        start: the deployment with nothing given up.
        weigh: what a deployment leaves for its KV cache.
        wish: what must fit.
        policy: the order, and the floors.
    """
    fit, given = weigh(start), frozenset[Step]()
    if not _enough(fit, wish, policy, given):
        for step in policy.order:
            if step not in wish.open:
                continue
            given |= {step}
            fit = _mildest(step, fit, weigh, wish, policy, given)
            if _enough(fit, wish, policy, given):
                fit, given = _take_back(start, fit, weigh, wish, policy, given)
                break
    context = _longest(fit, wish, policy) if "context" in given else wish.context
    conceded = tuple(_accounts(start, weigh, fit, wish, policy, given, context))
    return Outcome(fit, context, conceded, given, _enough(fit, wish, policy, given))


def _enough(fit: Fit, wish: Wish, policy: Policy, given: frozenset[Step]) -> bool:
    """One request of the whole context; where that was conceded, some of the shortest acceptable one."""
    if fit.missing_bytes:
        return False
    if "context" in given:
        return fit.sure_kv_bytes >= fit.needs(wish.least_context, policy.requests)
    # A context that somebody chose needs room for one; several at a time is a wish about a context that's ours.
    several = policy.full_requests if "context" in wish.open else 1
    return fit.sure_kv_bytes >= fit.needs(wish.context, several)


def _mildest(step: Step, fit: Fit, weigh: Weigh, wish: Wish, policy: Policy, given: frozenset[Step]) -> Fit:
    """The first candidate of ``step`` that is enough, or its last."""
    for candidate in _candidates(step, fit.deployment, wish, policy):
        fit = weigh(candidate)
        if _enough(fit, wish, policy, given):
            break
    return fit


def _candidates(step: Step, now: Deployment, wish: Wish, policy: Policy) -> Iterator[Deployment]:
    """From mild to strong. None for the context: that is a matter of what must fit, not of the deployment."""
    if step == "sequences":
        count = now.max_num_seqs // 2
        while count >= policy.sequences:
            yield replace(now, max_num_seqs=count)
            count //= 2
    elif step == "fp8" and wish.fp8 is not None:
        yield replace(now, kv_cache_dtype=wish.fp8)
    elif step == "eager" and not now.enforce_eager and now.device != "cpu":
        yield replace(now, enforce_eager=True)


def _take_back(
    start: Deployment, fit: Fit, weigh: Weigh, wish: Wish, policy: Policy, given: frozenset[Step]
) -> tuple[Fit, frozenset[Step]]:
    """Without those that others made needless, the least welcome first, and with as many sequences as still fit.

    What the policy gives up before the context stays given once that is conceded: it buys context.
    """
    takes_back = policy.order[policy.order.index("context") :] if "context" in given else policy.order
    for step in reversed(takes_back):
        if step not in given:
            continue
        fewer = given - {step}
        without = fit if step == "context" else weigh(_restored(step, start, fit.deployment))
        if _enough(without, wish, policy, fewer):
            fit, given = without, fewer
        elif step == "sequences":
            fit = _more_sequences(start, fit, weigh, wish, policy, given)
    return fit, given


def _more_sequences(
    start: Deployment, fit: Fit, weigh: Weigh, wish: Wish, policy: Policy, given: frozenset[Step]
) -> Fit:
    count = start.max_num_seqs // 2
    while count > fit.deployment.max_num_seqs:
        more = weigh(replace(fit.deployment, max_num_seqs=count))
        if _enough(more, wish, policy, given):
            return more
        count //= 2
    return fit


def _restored(step: Step, start: Deployment, now: Deployment) -> Deployment:
    if step == "sequences":
        return replace(now, max_num_seqs=start.max_num_seqs)
    if step == "fp8":
        return replace(now, kv_cache_dtype=start.kv_cache_dtype)
    return replace(now, enforce_eager=start.enforce_eager)


def _longest(fit: Fit, wish: Wish, policy: Policy) -> int:
    """The longest context, from the shortest acceptable to the wish, that so many requests of fit at once."""
    if fit.demand.kv is None:
        return wish.context
    share = max(0, fit.sure_kv_bytes) // policy.full_requests
    longest = kv_cache.longest_context(fit.demand.kv, fit.deployment, share, wish.context)
    return max(wish.least_context, longest)


def _accounts(
    start: Deployment, weigh: Weigh, fit: Fit, wish: Wish, policy: Policy, given: frozenset[Step], context: int
) -> Iterator[Concession]:
    """What each concession bought: what would be missing, or less, without it."""
    for step in policy.order:
        if step not in given:
            continue
        if step == "context":
            yield Concession(
                f"context of {context:,} tokens instead of {wish.context:,}",
                fit.needs(wish.context) - fit.needs(context),
            )
            continue
        without = weigh(_restored(step, start, fit.deployment))
        if without.deployment == fit.deployment:
            continue  # there was nothing to give up
        # Bytes in both currencies: room for the cache, and cache that the same tokens need.
        gained = fit.kv_bytes - without.kv_bytes + without.needs(context) - fit.needs(context)
        yield Concession(_described(step, start, fit.deployment), max(0, gained))


def sequences(count: int) -> str:
    """``1 sequence``, ``8 sequences``."""
    return f"{count} sequence{'' if count == 1 else 's'}"


def _described(step: Step, start: Deployment, now: Deployment) -> str:
    if step == "sequences":
        return f"{sequences(now.max_num_seqs)} at a time instead of {start.max_num_seqs}"
    if step == "fp8":
        return f"KV cache in {now.kv_cache_dtype} instead of {start.dtype}"
    return "no CUDA graphs (eager mode)"
