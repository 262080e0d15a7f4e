"""What the commands say beside their output."""

from __future__ import annotations

import sys
from contextlib import suppress


def say(text: str) -> None:
    """One sentence on stderr, where there is one: nothing is lost because nobody can be told about it."""
    if sys.stderr is not None:  # print() would take None for stdout
        with suppress(OSError):
            print(f"vllm-autofit: {text}" + ("" if text.endswith("?") else "."), file=sys.stderr)
