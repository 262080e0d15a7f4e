"""With several API servers, the launcher plans and its children apply the same values without planning again.

Each child builds a config of its own, while the engines are already taking memory: planning there would see a fuller
device and disagree with the engines. The launcher's values reach its children in an environment variable, which is
believed only if it comes from the parent process.
"""

from __future__ import annotations

import json
import os
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.values import FieldValue

VARIABLE = "_VLLM_AUTOFIT_HANDOVER"
"""Not ``VLLM_...``: vLLM would take it for one of its own."""


def is_api_server_child(engine_args: Any) -> bool:
    """Whether this config is for one of several API servers, whose engines another process starts."""
    count = getattr(engine_args, "_api_process_count", 1)
    rank = getattr(engine_args, "_api_process_rank", 0)
    return bool(count > 1 and rank >= 0)


def send(engine_args: Any, filled: dict[str, FieldValue]) -> None:
    """Leave the values for this process's API servers, if it is a launcher of several."""
    if getattr(engine_args, "_api_process_count", 1) > 1:
        os.environ[VARIABLE] = json.dumps({"pid": os.getpid(), "filled": filled})


def receive() -> dict[str, FieldValue]:
    """The launcher's values, or none if it left none.

    Raises:
        ValueError: the variable holds something else than a launcher writes.
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return {}
    document = json.loads(text)
    if document["pid"] != os.getppid():
        return {}
    return {name: value for name, value in document["filled"].items() if name in FIELDS}
