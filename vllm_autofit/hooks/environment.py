"""The environment as the user gave it: without what vLLM itself puts into it while it builds a config.

vLLM leaves some of its decisions there (``VLLM_SSM_CONV_STATE_LAYOUT``, 0.32). The next config of the process would
take them for the user's, and its start for another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_changed: dict[str, tuple[str | None, str | None]] = {}
"""By variable: what it was, and what vLLM made of it; None where it isn't set."""


def note_changes(before: Mapping[str, str]) -> None:
    """Remember what changed since the environment was ``before``."""
    for name in before.keys() | os.environ.keys():
        was, now = before.get(name), os.environ.get(name)
        if was != now:
            _changed[name] = (_changed.get(name, (was, None))[0], now)


def users_environment() -> dict[str, str]:
    """What the user set. A variable that somebody changed after vLLM did is theirs."""
    environment = dict(os.environ)
    for name, (was, became) in _changed.items():
        if os.environ.get(name) == became:
            environment.pop(name, None)
            if was is not None:
                environment[name] = was
    return environment
