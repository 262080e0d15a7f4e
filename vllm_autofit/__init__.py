"""vllm-autofit: plain ``vllm serve MODEL`` starts the first time, and gets better with every start.

Here are the names that every process of vLLM's needs, even one in which we are switched off. Importing this package
imports nothing else: each further module would cost a third of a millisecond in every such process. ``plan`` is
imported when it is first asked for.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllm_autofit.values import Plan

    plan: Callable[..., Plan]
    """``vllm_autofit.api.plan``: what a model will take, and which settings fit."""
else:

    def __getattr__(name: str) -> object:
        if name != "plan":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return import_module("vllm_autofit.api").plan


__version__ = "0.1.0"

FIELDS = (
    "gpu_memory_utilization",
    "max_model_len",
    "enforce_eager",
    "kv_cache_dtype",
    "max_num_seqs",
)
"""The five fields of vLLM's ``EngineArgs`` that we may fill. No other field is ever touched."""

VARIABLES = (
    "VLLM_AUTOFIT",
    "VLLM_AUTOFIT_POLICY",
    "VLLM_AUTOFIT_MIN_CONTEXT",
    "VLLM_AUTOFIT_HEADROOM",
    "VLLM_AUTOFIT_SHARE",
    "VLLM_AUTOFIT_CACHE_DIR",
    "VLLM_AUTOFIT_PROFILES",
    "VLLM_AUTOFIT_HASH_PATHS",
    "VLLM_AUTOFIT_RETRIES",
    "VLLM_AUTOFIT_REFUSE",
)
"""Our environment variables; ``settings`` says what they may hold."""

OFF = ("0", "off", "false", "no")


def switched_off(environ: Mapping[str, str]) -> bool:
    """Whether ``VLLM_AUTOFIT`` turns us off. The only question asked before anything else is imported."""
    return environ.get("VLLM_AUTOFIT", "").strip().lower() in OFF
