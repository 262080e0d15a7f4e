"""Which model it is: a name that stays the same when a folder moves, and changes when its content does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


@dataclass(frozen=True)
class ModelIdentity:
    """Who a model is.

    ``fingerprint`` is ``sha256:...`` over the config and the names and sizes of the weight files of a local folder or
    file, or ``hub:NAME@REVISION`` for a hub model: the same before its first download and after. ``commit`` is what the
    local hub cache holds of it, None before.
    """

    name: str
    revision: str | None
    fingerprint: str
    commit: str | None = None


def identify(model: str, revision: str | None = None) -> ModelIdentity:
    """The identity of ``model`` (a folder, a GGUF file or a hub name) at ``revision``.

    Raises:
        OSError: a local folder exists but can't be read.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelIdentity(model, revision, _folder_fingerprint(path))
    if path.is_file():
        return ModelIdentity(model, revision, _digest([f"{path.name}:{path.stat().st_size}"]))
    return ModelIdentity(model, revision, f"hub:{model}@{revision or 'main'}", _cached_commit(model, revision))


def _folder_fingerprint(folder: Path) -> str:
    parts = [
        f"{file.name}:{file.stat().st_size}"
        for file in sorted(folder.iterdir())
        if file.suffix in WEIGHT_SUFFIXES and file.is_file()
    ]
    for name in ("config.json", "params.json"):
        config = folder / name
        if config.is_file():
            parts.append(f"{name}:{hashlib.sha256(config.read_bytes()).hexdigest()}")
    return _digest(parts)


def _digest(parts: list[str]) -> str:
    return "sha256:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _cached_commit(model: str, revision: str | None) -> str | None:
    """The commit that the local hub cache holds for a name, without the network."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None
    repository = Path(constants.HF_HUB_CACHE) / ("models--" + model.replace("/", "--"))
    reference = repository / "refs" / (revision or "main")
    if reference.is_file():
        return reference.read_text().strip() or None
    if revision and (repository / "snapshots" / revision).is_dir():
        return revision
    return None
