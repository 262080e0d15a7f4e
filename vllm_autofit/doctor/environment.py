"""Verdicts on environment variables: misspelt ones, and ones that fight each other.

Values are told of variables of ours and of vLLM's that choose devices or memory. Of all others, only names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from vllm_autofit import VARIABLES, switched_off
from vllm_autofit.doctor.verdict import Verdict
from vllm_autofit.facts.client_limits import MPS_LIMIT

CHECK = "environment"
ALIKE = 0.8
"""How alike two names must be (``difflib``'s ratio) for one to be a slip of the other."""
TRUE = ("1", "on", "yes", "true")
"""What huggingface_hub takes for yes."""


@dataclass(frozen=True)
class Surroundings:
    """What the meaning of a variable depends on.

    Attributes:
        known: the variables that the installed vLLM reads; none where that isn't known.
        backend: vLLM's; None where it isn't known.
        visible: NVIDIA devices that CUDA will show; None where the driver doesn't tell.
        order_matters: a number in ``CUDA_VISIBLE_DEVICES`` may mean devices of different kinds.
        hub_models: models in the local hub cache; None where it can't be read.
    """

    known: frozenset[str] = frozenset()
    backend: str | None = None
    visible: int | None = None
    order_matters: bool = False
    hub_models: int | None = None


def environment_verdicts(
    environ: Mapping[str, str], settings_warnings: Iterable[str], around: Surroundings
) -> list[Verdict]:
    """Every verdict; a single "ok" where there is nothing to say.

    Args:
        environ: the process's environment.
        settings_warnings: what is wrong with the values of our own variables.
        around: what else is known.
    """
    found = [*_settings(settings_warnings), *_names(environ, around.known), *_switched_off(environ)]
    found += [*_sizes(environ, around.backend), *_devices(environ, around), *_start(environ, around)]
    return found or [Verdict("ok", CHECK, "no variable is misspelt or in another's way")]


def _settings(warnings: Iterable[str]) -> Iterator[Verdict]:
    for warning in warnings:
        yield Verdict(
            "problem" if warning.startswith("VLLM_AUTOFIT") else "note", CHECK, warning, "Correct or unset it"
        )


def _names(environ: Mapping[str, str], known: frozenset[str]) -> Iterator[Verdict]:
    """vLLM itself warns of ``VLLM_*`` names that it doesn't know, in the log of a start (0.18 on)."""
    for name in sorted(environ):
        if not name.startswith("VLLM_") or name in VARIABLES or name in known:
            continue
        ours = name.startswith("VLLM_AUTOFIT")
        nearest = difflib.get_close_matches(name, [*VARIABLES, *sorted(known)], 1, 0.0 if ours else ALIKE)
        if ours or nearest:
            meant = ours or nearest[0] in VARIABLES
            says = f"{name} means nothing to {'vllm-autofit' if meant else 'this vLLM'}"
            yield Verdict("problem" if meant else "note", CHECK, says, f"Did you mean {nearest[0]}?")


def _switched_off(environ: Mapping[str, str]) -> Iterator[Verdict]:
    others = sorted(name for name in environ if name in VARIABLES and name != "VLLM_AUTOFIT")
    if switched_off(environ) and others:
        says = f"VLLM_AUTOFIT={environ['VLLM_AUTOFIT']} turns vllm-autofit off: launches don't see {', '.join(others)}"
        yield Verdict("note", CHECK, says, "Unset VLLM_AUTOFIT, or the others")


def _sizes(environ: Mapping[str, str], backend: str | None) -> Iterator[Verdict]:
    if size := environ.get("VLLM_CPU_KVCACHE_SPACE"):
        says = f"VLLM_CPU_KVCACHE_SPACE={size} (GiB) "
        if backend in ("cpu", None):
            says += "fixes the KV cache of the CPU backend, so no share of the memory is chosen"
        else:
            says += f"does nothing: the backend is {backend or 'none'}"
        yield Verdict("note", CHECK, says, "Unset it to leave the size to vllm-autofit")
    if environ.get("VLLM_ENABLE_STARTUP_PLAN", "0") not in ("", "0"):
        says = "VLLM_ENABLE_STARTUP_PLAN lets vLLM use the KV cache size of an earlier start, so no share is chosen"
        yield Verdict("note", CHECK, says, "Unset it to leave the size to vllm-autofit, which remembers starts too")


def _devices(environ: Mapping[str, str], around: Surroundings) -> Iterator[Verdict]:
    if limit := environ.get(MPS_LIMIT):
        says = f"{MPS_LIMIT}={limit} keeps every process to less than the device has, and vLLM's share with it"
        yield Verdict("note", CHECK, says, "Unset it where the device isn't shared")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or around.visible is None:
        return
    if around.order_matters:
        says = f"CUDA_VISIBLE_DEVICES={visible} counts devices from the fastest, nvidia-smi by their slot: they differ"
        yield Verdict("problem", CHECK, says, "Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name devices by their UUID")
    if 0 < around.visible < (named := len(visible.split(","))):
        says = f"CUDA_VISIBLE_DEVICES={visible} names {named} devices and shows {around.visible}: "
        says += "CUDA stops at the first name that it doesn't know"
        yield Verdict("problem", CHECK, says, "Compare with what nvidia-smi -L lists")


def _start(environ: Mapping[str, str], around: Surroundings) -> Iterator[Verdict]:
    if environ.get("VLLM_USE_V1") == "0":
        if "VLLM_USE_V1" in around.known:
            says = "VLLM_USE_V1=0 asks for vLLM's old engine, which vllm-autofit doesn't know"
            yield Verdict("problem", CHECK, says, "Unset it")
        elif around.known:
            yield Verdict("note", CHECK, "VLLM_USE_V1=0 does nothing: this vLLM has no other engine", "Unset it")
    if "://" in environ.get("VLLM_PORT", ""):
        says = (
            "VLLM_PORT is an address, not a number, and vLLM won't start: Kubernetes sets it for a service called vllm"
        )
        yield Verdict("problem", CHECK, says, "Give the service another name, or set enableServiceLinks: false")
    offline = [name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if environ.get(name, "").lower() in TRUE]
    if offline and around.hub_models == 0:
        says = f"{' and '.join(offline)}: nothing is downloaded, and the local hub cache has no model"
        yield Verdict("note", CHECK, says, "Only models in folders can be served; HF_HOME names another cache")
