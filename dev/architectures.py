"""Small models with random weights of many architectures, from real ``transformers`` classes, to load in real vLLM.

    python -m dev.architectures NAME FOLDER
    python -m dev.architectures --list

Nothing is fetched, and the same name always gives the same model. The recipes are in architectures.json: widths differ
wherever an architecture lets them, so that a sum that takes one for another comes out wrong; head sizes are those that
vLLM's CPU attention has kernels for.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dev.quantized import quantize
from dev.tiny_model import byte_tokenizer

CONTEXT_TOKENS = 5000
"""No multiple of a block; small, so that rotary tables don't drown the weights in a comparison."""
COMMON = {
    "max_position_embeddings": CONTEXT_TOKENS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "bfloat16",
}


@dataclass(frozen=True)
class Recipe:
    """One small model."""

    model_class: str
    """A class of ``transformers``; its config class comes with it. Empty: a published config, without weights."""
    says: str
    """What it stands for."""
    config: dict[str, Any]
    """Arguments of the config class; nested configs are dictionaries."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What vLLM's ``LLM`` must be told to load it."""
    published: dict[str, Any] = field(default_factory=dict)
    """What published files of this kind say and ``transformers`` doesn't write."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Beginnings of tensors' names -> what published checkpoints have instead."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Special tokens of the tokenizer, by role."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other JSON files of the checkpoint, by name."""
    tensors: dict[str, tuple[str, list[int]] | None] = field(default_factory=dict)
    """What published checkpoints of this kind hold beside these, once renamed: torch's dtype and a shape. None: what
    they leave out."""
    copies: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Tensors that are another recipe's: name -> that recipe, and their name there."""
    drafts: bool = False
    """It only drafts for another, and can't be loaded by itself."""
    quantization: dict[str, Any] = field(default_factory=dict)
    """``quantization_config`` of the checkpoint."""


def recipes() -> dict[str, Recipe]:
    """All of them, by name."""
    table = json.loads(Path(__file__).with_suffix(".json").read_text())
    return {name: Recipe(**recipe) for name, recipe in table.items()}


def make_model(name: str, folder: Path) -> Path:
    """The model called ``name`` in ``folder``; made once, then found there.

    Raises KeyError for a name without a recipe.
    """
    recipe = recipes()[name]
    if (folder / "complete").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.model_class:
        _save(recipe, folder)
    for file, content in {**recipe.files, "config.json": recipe.published}.items():
        path = folder / file
        written = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**written, **content}, indent=2) + "\n")
    if recipe.renamed or recipe.tensors or recipe.copies:
        _amend(folder / "model.safetensors", recipe)
    if recipe.quantization:
        quantize(folder, recipe.quantization)
    (folder / "complete").touch()
    return folder


def _save(recipe: Recipe, folder: Path) -> None:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    model_class = getattr(transformers, recipe.model_class)
    model = model_class(model_class.config_class(**{**COMMON, **recipe.config}))
    model.to(torch.bfloat16).save_pretrained(folder)
    if not recipe.arguments.get("skip_tokenizer_init", True):
        byte_tokenizer(model.get_input_embeddings().num_embeddings, recipe.tokens).save_pretrained(folder)


def _amend(file: Path, recipe: Recipe) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {}
    for name, tensor in load_file(file).items():
        old = next((each for each in recipe.renamed if name.startswith(each)), "")
        tensors[recipe.renamed.get(old, "") + name.removeprefix(old)] = tensor
    for name, kind in recipe.tensors.items():
        if kind is None:
            del tensors[name]
        else:
            dtype, shape = kind
            tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
    for name, (other, there) in recipe.copies.items():
        with TemporaryDirectory() as place:
            tensors[name] = load_file(make_model(other, Path(place)) / file.name)[there]
    save_file(tensors, file, metadata={"format": "pt"})


def main() -> None:
    """See the module's description."""
    if sys.argv[1:] == ["--list"]:
        for name, recipe in recipes().items():
            print(f"{name:20} {recipe.model_class:36} {recipe.says}")
        return
    name, folder = sys.argv[1:]
    print(make_model(name, Path(folder)))


if __name__ == "__main__":
    main()
