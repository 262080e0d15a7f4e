"""From one ``EngineArgs`` to a plan and a start's identity: the upper half of the line, in order.

request, model and devices (facts) -> key -> lessons (experience) -> plan (planning) -> run
"""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from vllm_autofit.errors import AutofitError, DeviceError, NoAnswerError
from vllm_autofit.experience.key import groups, start_key
from vllm_autofit.experience.lessons import lessons_from
from vllm_autofit.experience.pins import check_settings
from vllm_autofit.experience.recall import recall
from vllm_autofit.experience.store import Store
from vllm_autofit.facts.devices import check_sizes
from vllm_autofit.facts.model import ModelIdentity, identify
from vllm_autofit.facts.processes import family_bytes
from vllm_autofit.facts.request import read_request
from vllm_autofit.hooks import lease, platform
from vllm_autofit.hooks.deadline import HOST, folder, of_devices, waits, within
from vllm_autofit.hooks.environment import users_environment
from vllm_autofit.hooks.guard import attempt, logger
from vllm_autofit.hooks.model_config import model_of
from vllm_autofit.hooks.refusal import refusal
from vllm_autofit.hooks.runs import Run, failed_here, new_run
from vllm_autofit.hooks.saying import keep_or_say
from vllm_autofit.planning.certain import certain_failures
from vllm_autofit.planning.defaults import LAUNCHES, NEWEST, Usage, parsed_version
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.render.line import plan_line, remedies_text
from vllm_autofit.settings import Settings, read_settings
from vllm_autofit.values import AUTO_CONTEXT, DeviceFacts, Lessons, Plan, Request

IDENTIFYING_KNOBS = (
    "dtype",
    "quantization",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
)
"""As requested; what vLLM made of ``auto`` stands beside each engine's measurements."""


USAGES: dict[str, Usage] = {context: usage for usage, context in LAUNCHES.items()}
"""By vLLM's usage context."""


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
    settings = read_settings()
    for warning in settings.warnings:
        logger.warning("vllm-autofit: %s.", warning)
    try:
        visible, devices = _devices(engine_args)
    except (DeviceError, NoAnswerError) as error:
        logger.warning("vllm-autofit: %s; nothing is filled in.", error)
        return None
    request = read_request(
        engine_args,
        set_by_user,
        users_environment(),
        visible_devices=visible,
        headless=headless,
        variables=getattr(sys.modules.get("vllm.envs"), "environment_variables", ()),
    )
    model = identify(request.model, getattr(engine_args, "revision", None))
    version = vllm_version()
    key = start_key(model, request, devices, version, launch)
    related = groups(model, request, devices)
    turn, trouble = attempt(lease.PURPOSE, _turn, engine_args, settings, request, devices, model, key) or (None, True)
    if turn is not None:
        devices = _devices_now(engine_args, devices, turn)
    lessons, readable = _lessons(settings, key, related, warned=trouble)
    plan = _plan(engine_args, request, devices, lessons, settings, version, launch)
    identity = _identity(model, request, devices, version, launch, settings) | {"groups": related}
    run = new_run(
        key,
        settings.cache_dir,
        {"identity": identity, "settings": _knobs(request, plan, settings), "plan": _account(plan, devices, settings)},
        trouble_is_known=trouble or not readable,
    )
    if turn is not None and not waits(folder(settings.cache_dir)):  # else it was said
        attempt(lease.PURPOSE, lease.planned, turn, run, request, devices, plan)
    run["skip_profiling"] = _skip_profiling(lessons, plan, request, settings)
    if settings.refuse and settings.mode == "on":
        run["refusal"] = attempt("looking for what can't succeed", _refusal, plan, request, devices, settings, version)
    warnings = list(plan.warnings)
    if not plan.fits and plan.remedies:
        warnings.append(f"what would help: {remedies_text(plan)}")
    keep_or_say(run, warnings, plan_line(plan, run["run_id"], observing=settings.mode == "observe"))
    return Launch(settings, plan, run)


def _turn(
    engine_args: Any, settings: Settings, request: Request, devices: list[DeviceFacts], model: ModelIdentity, key: str
) -> tuple[lease.Turn | None, bool]:
    """Our turn to start on these devices, and whether there was trouble with the folder that the user knows of."""
    name = _without_path(model) if settings.hash_paths else model.name
    engines = int(getattr(engine_args, "data_parallel_size", 1) or 1)
    try:
        return lease.take(settings, request, devices, name, engines), False
    except AutofitError as error:
        if not failed_here(key):
            logger.warning("vllm-autofit: starting without a claim on memory: %s.", error)
        return None, True


def _devices_now(engine_args: Any, devices: list[DeviceFacts], turn: lease.Turn) -> list[DeviceFacts]:
    """The devices as they are when it is our turn, and what others have a claim on."""
    if turn.waited:
        _, devices = attempt("reading the devices again", _devices, engine_args) or (None, devices)
    return lease.without_claimed(turn, devices)


def _devices(engine_args: Any) -> tuple[int | None, list[DeviceFacts]]:
    """How many devices are visible (None where nothing is bound to them), and the memory of those that will be used.

    Raises:
        DeviceError: the memory can't be read, or isn't what a device can have.
        NoAnswerError: the driver, or the system, doesn't answer.
    """
    limit = of_devices(platform.device_type())
    visible, devices = within(limit, lambda: (platform.visible_devices(), platform.read_devices(engine_args)))
    for device in devices:
        check_sizes(device)
    return visible, devices


def _plan(
    engine_args: Any,
    request: Request,
    devices: list[DeviceFacts],
    lessons: Lessons,
    settings: Settings,
    version: str,
    launch: str,
) -> Plan:
    """With the model weighed; should that fail, a plan for the devices alone, which asks for all that is free too."""
    decide = partial(
        _checked_plan,
        request,
        devices,
        lessons,
        settings.rules,
        version=parsed_version(version) or NEWEST,
        usage=USAGES.get(launch, "engine"),
        separate_processes=_separate_processes(launch),
        context_automatic=_context_automatic(),
    )
    model = attempt("reading the model", model_of, engine_args, request)
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


def _refusal(
    plan: Plan, request: Request, devices: list[DeviceFacts], settings: Settings, version: str
) -> dict[str, Any] | None:
    known = parsed_version(version) or NEWEST
    return refusal(certain_failures(plan, request, devices, settings.rules, known), plan)


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
        return lessons_from(failed), False
    if store.skipped:
        logger.warning(
            "vllm-autofit: %d record(s) could not be used: %s.",
            len(store.skipped),
            "; ".join(store.skipped[:3]),
        )
    return lessons, True


def vllm_version() -> str:
    """The installed vLLM, as it names itself."""
    return str(getattr(sys.modules.get("vllm.version"), "__version__", "unknown"))


def _separate_processes(launch: str) -> bool:
    """Whether the engine gets a process of its own. Only ``LLM`` can do without, and only when told to."""
    return launch != "LLM_CLASS" or os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0"


def _context_automatic() -> bool:
    """Whether vLLM can fit the context and tells its API server what came of it (vLLM >= 0.20)."""
    try:
        engine: Any = importlib.import_module("vllm.v1.engine")
        return "max_model_len" in engine.EngineCoreReadyResponse.__annotations__
    except (ImportError, AttributeError):
        return False


def _skip_profiling(lessons: Lessons, plan: Plan, request: Request, settings: Settings) -> dict[str, Any] | None:
    """What a worker needs to do without vLLM's measurement; it looks again whether its settings are the same."""
    known = lessons.skip_profiling
    if known is None or known.settings is None or settings.mode == "observe" or request.kv_cache_fixed_by is not None:
        return None
    if request.planned_in_parts:
        return None  # ranks measure together, all or none: another part may know less
    then = asdict(known.settings)
    context = plan.decision("max_model_len").value
    if then.pop("max_model_len") != context and context not in (AUTO_CONTEXT, None):
        return None
    return {"consumed_bytes": known.bytes, "record": known.record_id, "settings": then}


def _identity(
    model: ModelIdentity,
    request: Request,
    devices: list[DeviceFacts],
    version: str,
    launch: str,
    settings: Settings,
) -> dict[str, Any]:
    return {
        "vllm": version,
        "model": _without_path(model) if settings.hash_paths else model.name,
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "commit": model.commit,
        **{name: request.knobs.get(name) for name in IDENTIFYING_KNOBS},
        "launch": launch,
        "ranks": request.local_ranks,
        "devices": [_account_of(device) for device in devices],
    }


def _account_of(device: DeviceFacts) -> dict[str, Any]:
    """Records are handed on, and no business of theirs is which device of its kind it was."""
    return {name: value for name, value in asdict(device).items() if name != "uuid"}


def _without_path(model: ModelIdentity) -> str:
    """A hub model's name; of a folder only what its fingerprint tells."""
    return model.name if model.fingerprint.startswith("hub:") else model.fingerprint


def _knobs(request: Request, plan: Plan, settings: Settings) -> dict[str, Any]:
    """Every memory knob with its value and who chose it; when only observing, what vLLM goes on with."""
    observing = settings.mode == "observe"
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


def _own_bytes() -> int | None:
    return within(HOST, family_bytes, os.getpid())


def _account(plan: Plan, devices: list[DeviceFacts], settings: Settings) -> dict[str, Any]:
    on_host = any(device.kind == "cpu" for device in devices)
    return {
        "own_bytes": attempt("reading what this process holds", _own_bytes) if on_host else None,
        "mode": settings.mode,
        "policy": settings.policy,
        "min_context_tokens": settings.min_context_tokens,
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
