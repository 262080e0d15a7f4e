"""Options of vLLM's as a user would type them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from vllm_autofit.values import AUTO_CONTEXT


def shown(name: str, value: object) -> str:
    """A value as text: ``auto`` for a context that vLLM fits, JSON for what is structured."""
    if name == "max_model_len" and value == AUTO_CONTEXT:
        return "auto"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list) else str(value)


def option_words(name: str, value: object) -> list[str]:
    """The words of one option on a command line, unquoted."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if isinstance(value, tuple):
        return [option, *(shown(name, each) for each in value)]
    return [option, shown(name, value)]
