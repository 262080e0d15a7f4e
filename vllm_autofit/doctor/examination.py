"""All questions asked at once, and all verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_autofit.doctor.asking import Answer, Question, ask
from vllm_autofit.doctor.cache import cache_verdicts
from vllm_autofit.doctor.environment import Surroundings, environment_verdicts
from vllm_autofit.doctor.memory import look_at_memory
from vllm_autofit.doctor.plugin import plugin_verdicts
from vllm_autofit.doctor.verdict import Verdict

READINGS = "vllm_autofit.doctor.readings"
VLLM_SECONDS = 60.0
"""To import vLLM: 8 s of a processor (0.32.0's CPU build), and longer from a cold or a network disk."""
READING_SECONDS = 10.0
"""To read devices, processes or a folder: 0.2 s. A driver without persistence mode takes seconds to wake up."""


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        verdicts: on everything.
        vllm: its version; None where it isn't installed, or can't be imported.
        backend: vLLM's name for it; None where it isn't known.
        devices: the fields of each device's ``DeviceFacts``, and of its ``holders``.
        seams: as ``hooks/report.py`` has them.
    """

    verdicts: list[Verdict]
    vllm: str | None
    backend: str | None
    devices: list[dict[str, Any]]
    seams: list[dict[str, Any]]


def examine(environ: Mapping[str, str]) -> Examination:
    """Look at everything; takes as long as vLLM takes to import, and a minute at most."""
    readings = [Question(READINGS, READING_SECONDS, what) for what in ("nvidia", "host", "cache", "hub")]
    vllm, nvidia, host, cache, hub = ask([Question("vllm_autofit.hooks.report", VLLM_SECONDS), *readings])
    backend = vllm.found.get("backend")
    memory = look_at_memory(backend, nvidia, host, vllm.found.get("host", []))
    around = Surroundings(
        known=frozenset(vllm.found.get("variables", [])),
        backend=backend,
        visible=_visible(nvidia),
        order_matters=nvidia.found.get("order_matters", False),
        hub_models=hub.found.get("models"),
    )
    verdicts = [
        *plugin_verdicts(vllm, environ),
        *memory.verdicts,
        *cache_verdicts(cache),
        *environment_verdicts(environ, cache.found.get("settings", []), around),
    ]
    return Examination(verdicts, vllm.found.get("vllm"), backend, memory.devices, vllm.found.get("seams", []))


def _visible(nvidia: Answer) -> int | None:
    return None if nvidia.trouble or "error" in nvidia.found else len(nvidia.found["devices"])
