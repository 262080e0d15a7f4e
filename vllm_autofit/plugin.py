"""What vLLM calls in every process: ``register``, the entry point in the group ``vllm.general_plugins``.

Standard library only, and quick: front ends, engine cores, workers and helper processes all run it. It decides
whether we take part in this process, and loads the hooks only then.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from vllm_autofit import VARIABLES, switched_off

_MODEL_INSPECTION = "vllm.model_executor.models.registry"
"""vLLM's helper process that only looks at a model class (``python -m ...``); nothing of ours belongs in it."""


def register() -> None:
    """Load the hooks, once, if they belong in this process. Never raises: vLLM doesn't catch what we raise."""
    try:
        _make_variables_known()
        if switched_off(os.environ) or _main_module() == _MODEL_INSPECTION:
            return
        from vllm_autofit import hooks

        hooks.install()
    except Exception as error:
        logging.getLogger("vllm.autofit").warning(
            "vllm-autofit is not loaded (%s: %s); vLLM runs without it.", type(error).__name__, error
        )


class KnownVariables(dict[str, Callable[[], Any]]):
    """vLLM's table of environment variables, with ours known but not listed.

    ``validate_environ`` asks ``name in table``, and must find ours. The key of the compile cache iterates over the
    table, and must not: installing us, or changing a setting of ours, must not recompile a model.
    """

    def __contains__(self, name: object) -> bool:
        return name in VARIABLES or super().__contains__(name)

    def __missing__(self, name: str) -> Callable[[], Any]:
        if name in VARIABLES:
            return lambda: os.environ.get(name)
        raise KeyError(name)


def _make_variables_known() -> None:
    """Let vLLM's check for unknown ``VLLM_*`` variables pass ours (vLLM >= 0.18 has that check)."""
    envs = sys.modules.get("vllm.envs")
    table = getattr(envs, "environment_variables", None)
    if type(table) is dict:
        envs.environment_variables = KnownVariables(table)  # type: ignore[union-attr]


def _main_module() -> str | None:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None)
