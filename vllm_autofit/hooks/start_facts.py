"""What is known of one start before anything is decided: its ``EngineArgs``, the devices and the installed vLLM."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

from vllm_autofit.errors import DeviceError, NoAnswerError
from vllm_autofit.facts.devices import check_sizes
from vllm_autofit.facts.model import ModelIdentity, identify
from vllm_autofit.facts.request import read_request
from vllm_autofit.hooks import platform
from vllm_autofit.hooks.deadline import of_devices, within
from vllm_autofit.hooks.environment import users_environment
from vllm_autofit.hooks.guard import logger
from vllm_autofit.planning.defaults import LAUNCHES, NEWEST, Usage, Version, parsed_version
from vllm_autofit.settings import Settings, read_settings
from vllm_autofit.values import DeviceFacts, Request

USAGES: dict[str, Usage] = {context: usage for usage, context in LAUNCHES.items()}
"""By vLLM's usage context."""


@dataclass(frozen=True)
class StartFacts:
    """One start, as it was asked for and where it will run."""

    engine_args: Any
    settings: Settings
    request: Request
    devices: list[DeviceFacts]
    model: ModelIdentity
    vllm: str
    """The installed one, as it names itself."""
    launch: str
    """vLLM's usage context, as text."""

    @property
    def version(self) -> Version:
        """Of vLLM, or the newest known where its name tells none."""
        return parsed_version(self.vllm) or NEWEST

    @property
    def usage(self) -> Usage:
        """Which of vLLM's defaults apply."""
        return USAGES.get(self.launch, "engine")

    @property
    def separate_processes(self) -> bool:
        """Whether the engine gets a process of its own. Only ``LLM`` can do without, and only when told to."""
        return self.launch != "LLM_CLASS" or os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") != "0"

    @property
    def model_name(self) -> str:
        """As others may read it: with ``VLLM_AUTOFIT_HASH_PATHS``, of a folder only what its fingerprint tells."""
        hidden = self.settings.hash_paths and not self.model.fingerprint.startswith("hub:")
        return self.model.fingerprint if hidden else self.model.name


def read_start(engine_args: Any, set_by_user: frozenset[str], launch: str, headless: bool) -> StartFacts | None:
    """The facts of a start; None where those of its devices can't be had, which is said.

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
        visible, devices = read_devices(engine_args)
    except (DeviceError, NoAnswerError) as error:
        logger.warning("vllm-autofit: %s; nothing is filled in.", error)
        return None
    vllm = str(getattr(sys.modules.get("vllm.version"), "__version__", "unknown"))
    request = read_request(
        engine_args,
        set_by_user,
        users_environment(),
        visible_devices=visible,
        headless=headless,
        variables=getattr(sys.modules.get("vllm.envs"), "environment_variables", ()),
        version=parsed_version(vllm) or NEWEST,
        kind=devices[0].kind,
    )
    model = identify(request.model, getattr(engine_args, "revision", None))
    return StartFacts(engine_args, settings, request, devices, model, vllm, launch)


def read_devices(engine_args: Any) -> tuple[int | None, list[DeviceFacts]]:
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
