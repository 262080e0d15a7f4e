"""The ``VLLM_AUTOFIT*`` environment variables -> ``Settings``, validated here and nowhere else.

A bad value never stops vLLM: it becomes one warning (value, what was expected, what is used) and the default.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from vllm_autofit import OFF
from vllm_autofit.units import share, size, tokens
from vllm_autofit.values import Rules, Share

POLICIES = ("balanced", "throughput", "context", "safe")
ON = ("", "1", "on", "true", "yes")
DEFAULT_MIN_CONTEXT_TOKENS = 4096
"""llama.cpp's ``--fit`` keeps 4096 tokens by default too (common/fit, 2026); most chats fit in it."""
DEFAULT_RETRIES = 2
MOST_RETRIES = 10
SHARES = "a fraction of the device such as 0.5, or a size such as 20GiB or 20 (GiB)"

Mode = Literal["on", "observe", "off"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Settings:
    """What the user wants of us.

    Attributes:
        mode: whether we plan, only watch, or do neither.
        policy: what is given up first where memory is short.
        min_context_tokens: what a context is never cut below.
        headroom_bytes: kept free; None means that the planner decides.
        cache_dir: where the user's own starts are remembered.
        profiles: read-only folders, or exported files, of other starts.
        hash_paths: remember the path of a model's folder only as a hash.
        retries: how often a start that failed for memory is made again with other settings.
        refuse: whether a start that can't succeed is refused at once.
        share: what the engine may take of each device; None means all that is free.
        warnings: what was wrong with the variables, for the user.
    """

    mode: Mode
    policy: str
    min_context_tokens: int
    headroom_bytes: int | None
    cache_dir: Path
    profiles: tuple[Path, ...] = ()
    hash_paths: bool = False
    retries: int = DEFAULT_RETRIES
    refuse: bool = True
    share: Share | None = None
    warnings: tuple[str, ...] = ()

    @property
    def rules(self) -> Rules:
        """The part that planning needs."""
        return Rules(self.policy, self.min_context_tokens, self.headroom_bytes, self.share)


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """All settings from ``environ`` (default: the process's). Never raises for a bad value; see ``warnings``."""
    env = os.environ if environ is None else environ
    warnings: list[str] = []

    def read(
        name: str, parse: Callable[[str], _T], default: _T, expected: str, unset: str = "chosen by the planner"
    ) -> _T:
        text = env.get(name, "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except (ValueError, OSError, RuntimeError):
            shown = default if default is not None else unset
            warnings.append(f"{name}={text!r} is not {expected}; using the default ({shown})")
            return default

    no_headroom: int | None = None
    no_share: Share | None = None
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
    may_take = read("VLLM_AUTOFIT_SHARE", lambda text: Share(*share(text)), no_share, SHARES, "all that is free")
    cache_dir = read("VLLM_AUTOFIT_CACHE_DIR", _folder, home, "a folder")
    if cache_dir is home and homeless:
        warnings.append(homeless)
    profiles, missing = _profiles(env.get("VLLM_AUTOFIT_PROFILES", ""))
    if missing:
        warnings.append(f"VLLM_AUTOFIT_PROFILES: {', '.join(missing)} can't be read; going on without")
    hash_paths = read("VLLM_AUTOFIT_HASH_PATHS", _switch, False, "1 or 0")
    retries = read("VLLM_AUTOFIT_RETRIES", _count, DEFAULT_RETRIES, f"a whole number from 0 to {MOST_RETRIES}")
    refuse = read("VLLM_AUTOFIT_REFUSE", _switch, True, "1 or 0")
    return Settings(
        mode, policy, min_context, headroom, cache_dir, profiles, hash_paths, retries, refuse, may_take, tuple(warnings)
    )


def _mode(text: str) -> Mode:
    word = text.lower()
    if word in ON:
        return "on"
    if word in OFF:
        return "off"
    if word == "observe":
        return "observe"
    raise ValueError(text)


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= MOST_RETRIES:
        raise ValueError(text)
    return number


def _switch(text: str) -> bool:
    word = text.lower()
    if word not in ON + OFF:
        raise ValueError(text)
    return word in ON


def _profiles(text: str) -> tuple[tuple[Path, ...], list[str]]:
    """The entries of a path list that can be read, and those that can't, as they were written."""
    readable, missing = [], []
    for entry in filter(None, map(str.strip, text.split(os.pathsep))):
        try:
            path = Path(entry).expanduser().absolute()
            found = os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
        except (ValueError, OSError, RuntimeError):
            found = False
        if found:
            readable.append(path)
        else:
            missing.append(entry)
    return tuple(readable), missing


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
        if not _may_be_ours(folder):
            folder = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}")
        return folder, f"no home folder, so starts are remembered in {folder}; VLLM_AUTOFIT_CACHE_DIR names another"


def _may_be_ours(folder: Path) -> bool:
    """Whether no other user has made, or can write to, a folder where everybody can make one."""
    try:
        status = folder.lstat()
    except OSError:
        return True  # there is none yet
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
