"""The models of the proof: real configs with a tokenizer of bytes, and no weights (``--load-format dummy``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.experience import write_model
from dev.architectures import recipes
from dev.tiny_model import make_tiny_model
from vllm_autofit.facts.config import model_facts
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.units import GIB

TABLE = Path(__file__).with_name("models.json")
TINY = "tiny"
LEAST_BESIDE_BYTES = 2 * GIB
"""Of the device, beside the weights: less leaves no engine a KV cache worth a measurement."""


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: what the table calls it.
        says: what it stands for.
        source: whose config it is, and where that was published.
        config: ``config.json``.
        options: of ``vllm serve``, beside ``--load-format dummy``.
        draft: name of the model that drafts for it.
        tokens: special tokens of its tokenizer, by role.
        chat_template: for requests with images.
        files: other JSON files of its folder.
        images: whether its load has images in it.
    """

    name: str
    says: str
    source: str
    config: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    draft: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict)
    chat_template: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    images: bool = False

    @property
    def weights_bytes(self) -> int:
        """Of its tensors and its draft model's, worked out from the configs. 0 for a tiny model."""
        if not self.config:
            return 0
        own = sum(tensor.bytes * tensor.count for tensor in tensors_from_facts(model_facts(dict(self.config))))
        return own + (entries()[self.draft].weights_bytes if self.draft else 0)

    def unfit(self, total_bytes: int) -> str:
        """Why a device with so much memory can't run it; empty if it can."""
        needed = self.weights_bytes + LEAST_BESIDE_BYTES
        if not self.config or needed <= total_bytes:
            return ""
        return f"{self.weights_bytes / GIB:.1f} GiB of weights; this device has {total_bytes / GIB:.1f} GiB"


@cache
def entries() -> dict[str, Entry]:
    """All of them by name, in the order in which they are measured."""
    table: dict[str, dict[str, Any]] = json.loads(TABLE.read_text())
    return {name: Entry(name, config=_config(table, raw), **_rest(raw)) for name, raw in table.items()}


def tiny() -> Entry:
    """The model with which the proof proves itself on a machine without a device: 6.6 million random weights."""
    return Entry(TINY, "dense, 6.6 M, to try this command on a CPU", "dev.tiny_model", {})


def make(entry: Entry, folder: Path) -> list[str]:
    """Write the model's folder, once, and name the arguments of ``vllm serve`` that load it.

    Args:
        entry: which.
        folder: where the folders of all models are.
    """
    if not entry.config:
        return [str(make_tiny_model(folder / entry.name)), "--enforce-eager"]
    place = _written(entry, folder)
    options = dict(entry.options)
    if entry.draft:
        draft = _written(entries()[entry.draft], folder)
        options["speculative-config"] = {**options["speculative-config"], "model": str(draft)}
    flags = [
        part
        for name, value in options.items()
        for part in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]
    return [str(place), "--load-format", "dummy", *flags]


def _written(entry: Entry, folder: Path) -> Path:
    place = folder / entry.name
    if not (place / "complete").is_file():
        write_model(place, entry.config, dict(entry.tokens), entry.chat_template)
        for name, content in entry.files.items():
            (place / name).write_text(json.dumps(content))
        (place / "complete").touch()
    return place


def _config(table: Mapping[str, Any], raw: Mapping[str, Any]) -> Mapping[str, Any]:
    if "recipe" in raw:
        return recipes()[raw["recipe"]].published
    config: Mapping[str, Any] = table[raw["like"]]["config"] if "like" in raw else raw["config"]
    return config


def _rest(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name not in ("config", "recipe", "like")}
