"""The ``VLLM_AUTOFIT*`` environment variables -> ``Settings``, validated here and nowhere else.

A bad value never stops vLLM: it becomes one warning (value, what was expected, what is used) and the default.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from vllm_autofit import OFF
from vllm_autofit.units import size, tokens
from vllm_autofit.values import Rules

POLICIES = ("balanced", "throughput", "context", "safe")
ON = ("", "1", "on", "true", "yes")
DEFAULT_MIN_CONTEXT_TOKENS = 4096
"""llama.cpp's ``--fit`` keeps 4096 tokens by default too (common/fit, 2026); most chats fit in it."""

Mode = Literal["on", "observe", "off"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """What the user wants of us. ``headroom_bytes`` None means that the planner decides."""

    mode: Mode
    policy: str
    min_context_tokens: int
    headroom_bytes: int | None
    cache_dir: Path
    warnings: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules:
        """The part that planning needs."""
        return Rules(self.policy, self.min_context_tokens, self.headroom_bytes)


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """All settings from ``environ`` (default: the process's). Never raises for a bad value; see ``warnings``."""
    env = os.environ if environ is None else environ
    warnings: list[str] = []

    def read(name: str, parse: Callable[[str], _T], default: _T, expected: str) -> _T:
        text = env.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except (ValueError, OSError, RuntimeError):
            shown = default if default is not None else "chosen by the planner"
            warnings.append(f"{name}={text!r} is not {expected}; using the default ({shown})")
            return default

    no_headroom: int | None = None
    home, homeless = _default_cache_dir()
    on: Mode = "on"
    mode = read("VLLM_AUTOFIT", _mode, on, "1, 0 or observe")
    policy = read("VLLM_AUTOFIT_POLICY", _policy, "balanced", "one of " + ", ".join(POLICIES))
    min_context = read(
        "VLLM_AUTOFIT_MIN_CONTEXT",
        tokens,
        DEFAULT_MIN_CONTEXT_TOKENS,
        "a positive number of tokens such as 8192 or 8K",
    )
    headroom = read("VLLM_AUTOFIT_HEADROOM", size, no_headroom, "a size such as 1.5GiB, 800MiB or 2 (GiB)")
    cache_dir = read("VLLM_AUTOFIT_CACHE_DIR", _folder, home, "a folder")
    if cache_dir is home and homeless:
        warnings.append(homeless)
    return Settings(mode, policy, min_context, headroom, cache_dir, tuple(warnings))


def _mode(text: str) -> Mode:
    word = text.lower()
    if word in ON:
        return "on"
    if word in OFF:
        return "off"
    if word == "observe":
        return "observe"
    raise ValueError(text)


def _policy(text: str) -> str:
    if text.lower() not in POLICIES:
        raise ValueError(text)
    return text.lower()


def _folder(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(text)
    return path


def _default_cache_dir() -> tuple[Path, str]:
    """The user's cache folder, or one in the temporary folder and a warning that says so."""
    # Imported here: the switched-off path must not pay for it.
    from platformdirs import user_cache_path

    try:
        return user_cache_path("vllm-autofit", appauthor=False), ""
    except RuntimeError:  # a user without a home, as in many containers
        folder = Path(tempfile.gettempdir()) / f"vllm-autofit-{os.getuid()}"
        return folder, f"no home folder, so starts are remembered in {folder}; VLLM_AUTOFIT_CACHE_DIR names another"
