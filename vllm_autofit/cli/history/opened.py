"""What every history command begins and ends with: the records as they are, and an answer as text or as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vllm_autofit.cli.output import say
from vllm_autofit.experience.ending import ending
from vllm_autofit.experience.grade import grade
from vllm_autofit.experience.store import Store
from vllm_autofit.render.history import Start
from vllm_autofit.settings import read_settings

HOW_TO_LIST = "`vllm-autofit history` lists what there is"
DOCUMENT_SCHEMA = 1
"""Of every JSON answer; raised when a key changes its meaning."""


class History:
    """The store of this user, and what it remembers."""

    def __init__(self, folder: Path, layers: Sequence[Path]) -> None:
        self.folder = folder
        self.layers = layers
        self.store = Store(folder, layers)
        self._told = 0

    @cached_property
    def starts(self) -> list[Start]:
        """All of them, newest first, graded. What can't be read is named on stderr.

        Raises:
            StoreError: the folder can't be read.
        """
        starts = [
            Start(record, grade(record, ending(record)), self.store.origin(record))
            for record in self.store.everything()
        ]
        self.tell_skipped()
        return starts

    @cached_property
    def pins(self) -> dict[str, dict[str, Any]]:
        """All pins, by key.

        Raises:
            StoreError: the folder can't be read.
        """
        pins = self.store.pins()
        self.tell_skipped()
        return pins

    def tell_skipped(self) -> None:
        """Name on stderr what couldn't be read, each once."""
        for message in self.store.skipped[self._told :]:
            say(message)
        self._told = len(self.store.skipped)


def open_history() -> History:
    """The history that this process's environment names; what is wrong with that is said."""
    settings = read_settings()
    for warning in settings.warnings:
        say(warning)
    return History(settings.cache_dir, settings.profiles)


def reply(options: argparse.Namespace, text: str, document: dict[str, Any]) -> None:
    """Print the answer in the format that was asked for."""
    if options.format == "json":
        print(json.dumps({"schema": DOCUMENT_SCHEMA, **document}, indent=1))
    else:
        print(text)


def screen_width() -> int | None:
    """Of the terminal that stdout is; None where it is a file or a pipe, which take lines of any width."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns
