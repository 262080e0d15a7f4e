"""Stages of vLLM-Omni that start by themselves: who gives no share gets one that leaves the others theirs.

vLLM-Omni makes the configs of all its stages in one process before any of them starts, each through an ``EngineArgs``
of its own (``OmniEngineArgs``, which overrides ``create_model_config``). By then nothing is taken of any device, so
planned like a start of its own each of them would ask for all that is free. Nothing else is decided for a stage, and
nothing is learned from it: it runs a part of a model, with workers of vLLM-Omni's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vllm_autofit.errors import DeviceError
from vllm_autofit.hooks.guard import logger

if TYPE_CHECKING:
    from vllm_autofit.planning.stage_shares import Room
    from vllm_autofit.settings import Settings
    from vllm_autofit.stages.stage import Stage
    from vllm_autofit.values import FieldValue

PACKAGE = "vllm_omni"
HOLDERS = ("_stage_configs", "stage_configs")
"""Where the caller keeps its stages: ``StageRuntime`` in 0.24 and 0.30, ``AsyncOmniEngine`` in 0.20. In 0.16 each stage
makes its config in a process of its own, which doesn't know the others: there vLLM-Omni decides."""

PARTS = ("cache_config", "model_config", "parallel_config", "runtime_config", "scheduler_config")
"""Of a stage's typed config (0.30)."""
OPTIONS = (
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "enforce_eager",
    "max_num_seqs",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "devices",
    "num_replicas",
)


def is_stage(engine_args: Any) -> bool:
    """Whether these are the arguments of one of vLLM-Omni's stages."""
    return any(cls.__module__.partition(".")[0] == PACKAGE for cls in type(engine_args).__mro__)


def fill(engine_args: Any, chosen_by_user: frozenset[str]) -> dict[str, FieldValue]:
    """The share of a stage that was given none; nothing where it can't be told.

    Raises:
        AutofitError: the devices can't be read, or what is said about the stages can't be.
    """
    from vllm_autofit.hooks import platform
    from vllm_autofit.planning.stage_shares import share_out
    from vllm_autofit.settings import read_settings
    from vllm_autofit.stages.claims import claims_of
    from vllm_autofit.stages.stage import SHARE

    settings, configs = read_settings(), _known_stages(sys._getframe(1))
    if SHARE in chosen_by_user or settings.mode != "on" or not configs or platform.device_type() != "cuda":
        return {}
    stages = [_stage(config) for config in configs]
    fixed = frozenset(stage.id for stage in stages if stage.share is not None)
    sharing = share_out(claims_of(stages, fixed, {}), _rooms(stages, settings))
    own = next((stage for stage in stages if stage.id == getattr(engine_args, "stage_id", None)), None)
    if own is None or not own.devices:
        return {}
    if not sharing.fits:
        logger.warning("vllm-autofit: the stages of vLLM-Omni don't fit together; %s is left as it is.", own.label)
        return {}
    share = sharing.shares[own.id]
    logger.info(
        "vllm-autofit: set %s=%s for %s on device %s, shared by %d stage(s); a value of its own in the stage's "
        "config stays.",
        SHARE,
        share,
        own.label,
        ", ".join(map(str, own.devices)),
        sum(bool(set(own.devices) & set(stage.devices)) for stage in stages),
    )
    return {SHARE: share}


def _known_stages(frame: FrameType | None) -> Sequence[Any]:
    """The stages that vLLM-Omni is making configs of, from whoever called; empty where nobody knows.

    We are often loaded by the first of these calls, so that no function further out can be hooked any more.
    """
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] == PACKAGE:
            caller = frame.f_locals.get("self")
            for name in HOLDERS:
                found = getattr(caller, name, None)
                if isinstance(found, list | tuple) and all(hasattr(each, "stage_id") for each in found):
                    return found
        frame = frame.f_back
    return ()


def _stage(config: Any) -> Stage:
    """One stage's config, typed or as in the older files, read as a file's entry."""
    from vllm_autofit.stages.reading import stage_of

    arguments = getattr(config, "engine_args", None)
    if isinstance(arguments, Mapping):
        entry = {"engine_args": dict(arguments), "runtime": dict(getattr(config, "runtime", None) or {})}
    else:
        parts = [getattr(config, name, None) for name in PARTS]
        found = {name: [getattr(part, name) for part in parts if hasattr(part, name)] for name in OPTIONS}
        entry = {"engine_args": {name: values[0] for name, values in found.items() if values}}
        entry["engine_args"]["model_stage"] = getattr(config, "model_stage", None)
    return stage_of(Path(PACKAGE), {"stage_id": int(config.stage_id), **entry})


def _rooms(stages: Sequence[Stage], settings: Settings) -> dict[int, Room]:
    from vllm_autofit.facts.devices import nvidia_devices
    from vllm_autofit.hooks.deadline import of_devices, within
    from vllm_autofit.stages.claims import room_of

    devices = within(of_devices("cuda"), lambda: nvidia_devices(os.environ, 0))
    missing = next((device for stage in stages for device in stage.devices if device >= len(devices)), None)
    if missing is not None:
        raise DeviceError(f"device {missing}", f"{len(devices)} are visible", "Correct the devices of the stages")
    return {number: room_of(device, settings.rules) for number, device in enumerate(devices)}
