"""What each config was made from, kept in the process that made it: a failed start is planned again from it."""

from __future__ import annotations

import contextlib
import copy
import weakref
from dataclasses import dataclass
from typing import Any

from vllm_autofit.hooks.runs import Run
from vllm_autofit.hooks.saying import said_later


@dataclass(frozen=True)
class Origin:
    """An ``EngineArgs`` as its user gave it, and how it was asked for a config."""

    engine_args: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def config(self) -> Any:
        """Another config, planned anew. What vLLM changes in its ``EngineArgs`` meanwhile changes a copy."""
        with said_later():
            return copy.deepcopy(self.engine_args).create_engine_config(*self.args, **self.kwargs)


_origins: dict[str, Origin] = {}


def copied(engine_args: Any) -> Any:
    """None where it holds something that can't be copied; then there is no second attempt."""
    with contextlib.suppress(Exception):
        return copy.deepcopy(engine_args)
    return None


def keep(config: Any, run: Run, origin: Origin) -> None:
    """Remember what a start's config was made from, as long as that config is in use."""
    _origins[run["run_id"]] = origin
    weakref.finalize(config, _origins.pop, run["run_id"], None)


def origin_of(run: Run) -> Origin | None:
    """What this process made the config of a start from."""
    return _origins.get(run["run_id"])
