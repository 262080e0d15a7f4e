"""Seam ``FlexibleArgumentParser.load_config_file``: hears what a ``--config`` file says of our switches.

vLLM turns ``enforce-eager: false`` into no argument at all, so nothing of it reaches the parser.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm_autofit import FIELDS
from vllm_autofit.hooks.guard import attempt
from vllm_autofit.hooks.marks import set_in_config_file
from vllm_autofit.hooks.seams import Seam


def load_config_file(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM's arguments from the file, unchanged."""
    arguments = wrapped(*args, **kwargs)
    path = args[0] if args else kwargs["file_path"]
    attempt("reading the --config file", _note_switches, Path(path))
    return arguments


def _note_switches(path: Path) -> None:
    import yaml  # vLLM's own dependency; it has just read the file with it

    settings = yaml.safe_load(path.read_text())
    if isinstance(settings, dict):
        names = (str(key).replace("-", "_") for key, value in settings.items() if value is False)
        set_in_config_file.update(name for name in names if name in FIELDS)


SEAMS = (
    Seam(
        "vllm.utils.argparse_utils",
        "FlexibleArgumentParser.load_config_file",
        ("file_path",),
        load_config_file,
        "knowing what your --config file says",
        elsewhere=("vllm.utils",),  # up to 0.11.0
    ),
)
