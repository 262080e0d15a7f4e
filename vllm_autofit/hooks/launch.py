"""From one ``EngineArgs`` to a plan and a start's identity: the upper half of the line, in order.

request, model and devices (facts) -> key -> turn -> lessons (experience) -> plan (planning) -> run -> one line
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vllm_autofit.errors import AutofitError
from vllm_autofit.experience.key import groups, start_key
from vllm_autofit.experience.lessons import lessons_from
from vllm_autofit.experience.pins import check_settings
from vllm_autofit.experience.recall import recall
from vllm_autofit.experience.store import Store
from vllm_autofit.hooks import lease, refusal, warm_start
from vllm_autofit.hooks.account import sections
from vllm_autofit.hooks.deadline import folder, waits, within
from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.model_config import model_of
from vllm_autofit.hooks.runs import Run, failed_here, new_run
from vllm_autofit.hooks.saying import keep_or_say
from vllm_autofit.hooks.start_facts import StartFacts, read_devices, read_start
from vllm_autofit.planning.certain import certain_failures
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.render.line import plan_line, remedies_text
from vllm_autofit.settings import Settings
from vllm_autofit.values import Lessons, Plan


@dataclass(frozen=True)
class Launch:
    """What we decided about one start."""

    settings: Settings
    plan: Plan
    run: Run


def plan_launch(engine_args: Any, set_by_user: frozenset[str], launch: str, headless: bool) -> Launch | None:
    """Decide, and say so in one line. None when we have nothing to say about this backend.

    Args:
        engine_args: the instance, its five fields plain.
        set_by_user: which of them the user set.
        launch: vLLM's usage context, as text.
        headless: whether this node only serves engines to another.
    """
    facts = read_start(engine_args, set_by_user, launch, headless)
    if facts is None:
        return None
    settings = facts.settings
    key = start_key(facts.model, facts.request, facts.devices, facts.vllm, launch)
    related = groups(facts.model, facts.request, facts.devices)
    turn, trouble = attempt(lease.PURPOSE, _turn, facts, key) or (None, True)
    if turn is not None:
        facts = _in_turn(facts, turn)
    lessons, readable = _lessons(settings, key, related, warned=trouble)
    plan = _plan(facts, lessons)
    contents = sections(facts, related, plan)
    run = new_run(key, settings.cache_dir, contents, trouble_is_known=trouble or not readable)
    if turn is not None and not waits(folder(settings.cache_dir)):  # else it was said
        attempt(lease.PURPOSE, lease.planned, turn, run, facts.request, facts.devices, plan)
    run |= _for_later(facts, lessons, plan)
    _say(run, plan, settings)
    return Launch(settings, plan, run)


def _turn(facts: StartFacts, key: str) -> tuple[lease.Turn | None, bool]:
    """Our turn to start on these devices, and whether there was trouble with the folder that the user knows of."""
    engines = int(getattr(facts.engine_args, "data_parallel_size", 1) or 1)
    try:
        return lease.take(facts.settings, facts.request, facts.devices, facts.model_name, engines), False
    except AutofitError as error:
        if not failed_here(key):
            logger.warning("vllm-autofit: starting without a claim on memory: %s.", error)
        return None, True


def _in_turn(facts: StartFacts, turn: lease.Turn) -> StartFacts:
    """With the devices as they are when it is our turn, and what others have a claim on."""
    devices = facts.devices
    if turn.waited:
        _, devices = attempt("reading the devices again", read_devices, facts.engine_args) or (None, devices)
    return replace(facts, devices=lease.without_claimed(turn, devices))


def _lessons(settings: Settings, key: str, related: dict[str, str], *, warned: bool = False) -> tuple[Lessons, bool]:
    """What past starts taught, and whether they could be read: if not, there was a warning, and only attempts of this
    process count."""
    store = Store(settings.cache_dir, settings.profiles)
    failed = failed_here(key)
    try:
        lessons = within(folder(settings.cache_dir), recall, store, key, related, failed)
    except AutofitError as error:
        if not (failed or warned):
            logger.warning("vllm-autofit: planning without past starts: %s.", error)
        return lessons_from(failed, attempts=failed), False
    if store.skipped:
        logger.warning(
            "vllm-autofit: %d record(s) could not be used: %s.",
            len(store.skipped),
            "; ".join(store.skipped[:3]),
        )
    return lessons, True


def _plan(facts: StartFacts, lessons: Lessons) -> Plan:
    """With the model weighed; should that fail, a plan for the devices alone, which asks for all that is free too."""
    decide = partial(
        _checked_plan,
        facts.request,
        facts.devices,
        lessons,
        facts.settings.rules,
        version=facts.version,
        usage=facts.usage,
        separate_processes=facts.separate_processes,
        context_automatic=_context_automatic(),
    )
    model = attempt("reading the model", model_of, facts.engine_args, facts.request)
    weighed = None if model is None else attempt("weighing the model", decide, model=model)
    return weighed or decide()


def _checked_plan(*args: Any, **kwargs: Any) -> Plan:
    """``make_plan``'s, if vLLM can take it.

    Raises:
        PinError: a value that it fills in is no value of its field.
    """
    plan = make_plan(*args, **kwargs)
    if plan.filled:
        check_settings(plan.filled)
    return plan


def _context_automatic() -> bool:
    """Whether vLLM can fit the context and tells its API server what came of it (vLLM >= 0.20)."""
    try:
        engine: Any = importlib.import_module("vllm.v1.engine")
        return "max_model_len" in engine.EngineCoreReadyResponse.__annotations__
    except (ImportError, AttributeError):
        return False


def _for_later(facts: StartFacts, lessons: Lessons, plan: Plan) -> Run:
    """What a run carries to the front end, which refuses, and to workers, which may do without measuring."""
    observing = facts.settings.mode == "observe"
    carried: Run = {warm_start.NAME: None if observing else warm_start.skipping(lessons, plan, facts.request)}
    if facts.settings.refuse and facts.settings.mode == "on":
        carried[refusal.NAME] = attempt("looking for what can't succeed", _refusal, facts, plan)
    return carried


def _refusal(facts: StartFacts, plan: Plan) -> dict[str, Any] | None:
    reasons = certain_failures(plan, facts.request, facts.devices, facts.settings.rules, facts.version)
    return refusal.refusal(reasons, plan)


def _say(run: Run, plan: Plan, settings: Settings) -> None:
    """Warnings, what would help, and the line."""
    warnings = list(plan.warnings)
    if not plan.fits and plan.remedies:
        warnings.append(f"what would help: {remedies_text(plan)}")
    keep_or_say(run, warnings, plan_line(plan, run["run_id"], observing=settings.mode == "observe"))
