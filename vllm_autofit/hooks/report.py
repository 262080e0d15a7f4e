"""What of us holds in the installed vLLM, as JSON on stdout: ``python -m vllm_autofit.hooks.report``.

A process of its own, because vLLM takes long to import, may fail at it, and may hang. Plugins are loaded as vLLM loads
them in each of its processes, so this is what a launch would see.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from vllm_autofit import FIELDS, hooks
from vllm_autofit.errors import AutofitError, SeamError
from vllm_autofit.facts import knobs, variables

if TYPE_CHECKING:
    from vllm_autofit.hooks.seams import Seam

GROUP = "vllm.general_plugins"
State = Literal["holds", "changed", "missing", "absent"]
"""``absent``: not in this vLLM, and it needn't be."""


def main() -> None:
    """Write the report to what stdout was: vLLM and its libraries write there too."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        json.dump(report(), answer)


def report() -> dict[str, Any]:
    """Whether we are found and loaded, and every seam. ``error`` says why there is no more than that."""
    plugins = sorted(entry.name for entry in metadata.entry_points(group=GROUP))
    found: dict[str, Any] = {"installed": importlib.util.find_spec("vllm") is not None, "plugins": plugins}
    if not found["installed"]:
        return found
    try:
        found.update(_loaded())
        found.update(_state())
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _loaded() -> dict[str, Any]:
    import vllm
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return {"vllm": str(vllm.__version__), "loaded": hooks._installed}


def _state() -> dict[str, Any]:
    from vllm import envs
    from vllm.engine.arg_utils import AsyncEngineArgs

    from vllm_autofit.hooks.platform import device_type

    backend = device_type()
    return {
        "backend": backend,
        "host": _host() if backend == "cpu" else [],
        "missing_fields": [name for name in FIELDS if name not in AsyncEngineArgs.__dataclass_fields__],
        "unknown_fields": knobs.unknown_fields(AsyncEngineArgs),
        "unknown_variables": variables.unknown_variables(envs.environment_variables),
        "variables": sorted(envs.environment_variables),
        "seams": list(_seams()),
    }


def _host() -> list[dict[str, Any]]:
    """The host's memory as vLLM's own CPU workers read it, limits of a container included."""
    from vllm_autofit.hooks.platform import read_devices

    try:
        return [asdict(device) for device in read_devices(SimpleNamespace())]
    except AutofitError:
        return []


def _seams() -> Iterator[dict[str, Any]]:
    from vllm_autofit.hooks.seams import declared  # needs wrapt: what can be said without it is said first

    for room, seam in declared():
        state, place, detail = _probed(seam)
        yield {
            "seam": room,
            "function": f"{place}:{seam.name}",
            "state": state,
            "detail": detail,
            "without": seam.purpose,
        }


def _probed(seam: Seam) -> tuple[State, str, str]:
    """How it is, in which module, and what is wrong with it."""
    from vllm_autofit.hooks.seams import probe

    gone: State = "absent" if seam.optional else "missing"
    answers: list[tuple[State, str, str]] = []
    for place in seam.modules:
        try:
            probe(seam, importlib.import_module(place))
        except SeamError as error:
            answers.append((gone, place, "") if error.found == "missing" else ("changed", place, error.found))
        except Exception as error:  # modules of other backends may need what isn't installed
            answers.append((gone, place, f"{type(error).__name__}: {error}"))
        else:
            return "holds", place, ""
    return next((each for each in answers if each[0] == "changed"), answers[0])


if __name__ == "__main__":
    main()
