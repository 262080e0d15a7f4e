"""The tensors of a checkpoint, without its weights: from a folder, the local hub cache, or the hub by range requests.

Which files count is decided as vLLM 0.32 does it (``default_loader._prepare_weights``): safetensors before anything
else, and only what ``model.safetensors.index.json`` names where there is one. One thing differs on purpose: where a
folder holds the same model twice, as ``consolidated*.safetensors`` too, the Hugging Face files are read. vLLM loads the
others, which hold the same weights under other names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_autofit.architecture import Tensor
from vllm_autofit.errors import WeightsError
from vllm_autofit.facts.safetensors import MAX_HEADER_BYTES, open_regular, read_header, read_json, tensors_of

INDEX = "model.safetensors.index.json"
CONSOLIDATED = "consolidated"
CONSOLIDATED_INDEX = "consolidated.safetensors.index.json"
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
"""Left out by vLLM's ``filter_files_not_needed_for_inference``."""

MAX_TENSORS = 1_000_000
"""Over all files; the largest published mixtures have 100,000."""

HUB_TIMEOUT_S = 5.0
HUB_REQUESTS_AT_ONCE = 8

Source = Literal["folder", "hub cache", "hub", "gguf"]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    tensors: tuple[Tensor, ...]
    source: Source
    exact: bool = True
    """False where sizes of files stand in for tensors, or files are missing."""
    notes: tuple[str, ...] = ()
    """What was assumed or is missing: shown to the user."""

    @property
    def bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.bytes * tensor.count for tensor in self.tensors)


def read_tensors(model: str, revision: str | None = None, *, environ: Mapping[str, str] | None = None) -> Checkpoint:
    """The tensors of ``model``: a folder, a GGUF file, or a hub name, whose local copy is preferred to the hub.

    Args:
        revision: branch, tag or commit of a hub name; None: main.
        environ: for the place of the hub cache and ``HF_HUB_OFFLINE``; None: the process's own.

    Raises:
        WeightsError: nothing to read, damaged or hostile headers, no such model, no network.
    """
    path = Path(model).expanduser()
    try:
        if path.is_dir():
            return _from_folder(path, "folder")
        if path.is_file() and path.suffix == ".gguf":
            return _by_size({path.name: path.stat().st_size}, "gguf", "the size of the GGUF file")
    except (OSError, ValueError) as error:
        raise WeightsError(model, str(error)[:120]) from error
    if model.count("/") > 1 or model.startswith(("/", ".", "~")):
        raise WeightsError(model, "no such folder")
    return _from_hub_name(model, revision, os.environ if environ is None else environ)


def _from_folder(folder: Path, source: Source) -> Checkpoint:
    sizes: dict[str, int] = {}
    broken: list[str] = []
    for file in sorted(folder.iterdir()):
        try:
            if file.is_file():
                sizes[file.name] = file.stat().st_size
        except OSError:
            broken.append(file.name)
    index = _index(folder, sizes)
    wanted = _safetensors(sizes, index)
    missing = sorted(set(wanted) - set(sizes))
    if wanted and len(missing) < len(wanted):
        tensors = _read_all([folder / name for name in wanted if name in sizes], read_header)
        return _complete(tensors, source, missing, index)
    if missing or (broken and not sizes):
        raise WeightsError(
            str(folder), f"{len(missing or broken)} files are missing: {(missing or broken)[0][:80]} ..."
        )
    return _other_formats(str(folder), sizes, source)


def _index(folder: Path, sizes: Mapping[str, int]) -> Mapping[str, Any] | None:
    """What the index says, where there is one that applies."""
    only_consolidated = all(name.startswith(CONSOLIDATED) for name in sizes if name.endswith(".safetensors"))
    for name in (INDEX, CONSOLIDATED_INDEX) if only_consolidated else (INDEX,):
        if name in sizes:
            return _checked_index(_small_file(folder / name), str(folder / name))
    return None


def _small_file(file: Path) -> bytes:
    handle, size = open_regular(file)
    with os.fdopen(handle, "rb") as stream:
        if size > MAX_HEADER_BYTES:
            raise WeightsError(str(file), f"it has {size} bytes, more than {MAX_HEADER_BYTES}")
        return stream.read(MAX_HEADER_BYTES)


def _checked_index(text: bytes, place: str) -> Mapping[str, Any]:
    index = read_json(text, place)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise WeightsError(place, "it has no weight_map")
    for name in files.values():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise WeightsError(place, f"it names {str(name)[:80]!r}, which is no safetensors file")
        if "/" in name or "\\" in name or "\0" in name:
            raise WeightsError(place, f"it names {name[:80]!r}, which is not in the same folder")
    return index  # type: ignore[no-any-return]


def _safetensors(sizes: Mapping[str, int], index: Mapping[str, Any] | None) -> list[str]:
    """The safetensors files that vLLM would read, missing ones included."""
    if index is not None:
        return sorted(set(index["weight_map"].values()))
    names = [name for name in sorted(sizes) if name.endswith(".safetensors")]
    return [name for name in names if not name.startswith(CONSOLIDATED)] or names


def _read_all(files: Sequence[Path], read: Callable[[Path], tuple[Tensor, ...]]) -> list[Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in files:
        _add(tensors, read(file), str(file))
    return list(tensors.values())


def _add(tensors: dict[str, Tensor], more: Sequence[Tensor], place: str) -> None:
    """A tensor that two files hold is loaded once."""
    for tensor in more:
        tensors[tensor.name] = tensor
    if len(tensors) > MAX_TENSORS:
        raise WeightsError(place, f"more than {MAX_TENSORS} tensors")


def _complete(tensors: list[Tensor], source: Source, missing: list[str], index: Mapping[str, Any] | None) -> Checkpoint:
    """With what the index says of missing files: their bytes as one tensor of no known shape."""
    if not missing:
        return Checkpoint(tuple(tensors), source)
    notes = [f"{len(missing)} weight files are missing, {missing[0]} first: the engine won't start"]
    metadata = index.get("metadata") if index else None
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    rest = total - sum(tensor.bytes for tensor in tensors) if type(total) is int and 0 < total < 2**63 else 0
    if rest > 0:
        tensors = [*tensors, Tensor("missing files", (rest,), "U8", rest)]
    else:
        notes.append("their size is not known")
    return Checkpoint(tuple(tensors), source, exact=False, notes=tuple(notes))


def _other_formats(place: str, sizes: Mapping[str, int], source: Source) -> Checkpoint:
    """Formats whose tensors take more than a header to list: the size of the files."""
    for suffix in (".bin", ".pt", ".pth"):
        chosen = {
            name: size for name, size in sizes.items() if name.endswith(suffix) and not name.endswith(NOT_WEIGHTS)
        }
        if chosen:
            return _by_size(chosen, source, f"the sizes of {len(chosen)} {suffix} files")
    chosen = {name: size for name, size in sizes.items() if name.endswith(".gguf")}
    if len(chosen) == 1:
        return _by_size(chosen, "gguf", "the size of the GGUF file")
    if chosen:
        raise WeightsError(place, f"it holds {len(chosen)} GGUF files: name the one to load")
    raise WeightsError(place, "it holds no weights")


def _by_size(sizes: Mapping[str, int], source: Source, what: str) -> Checkpoint:
    tensors = tuple(Tensor(name, (size,), "U8", size) for name, size in sizes.items())
    return Checkpoint(tensors, source, exact=False, notes=(f"weights counted by {what}",))


def _from_hub_name(model: str, revision: str | None, environ: Mapping[str, str]) -> Checkpoint:
    cached: Checkpoint | None = None
    problem: WeightsError | None = None
    snapshot = _snapshot(model, revision, environ)
    if snapshot is not None:
        try:
            cached = _from_folder(snapshot, "hub cache")
        except WeightsError as error:
            problem = error  # a config may be all that is here
        except OSError as error:
            problem = WeightsError(str(snapshot), str(error)[:120])
    if cached is not None and not any(tensor.name == "missing files" for tensor in cached.tensors) and cached.exact:
        return cached
    try:
        return _from_hub(model, revision, environ)
    except WeightsError as error:
        if cached is not None:
            return cached
        raise error from problem


def _snapshot(model: str, revision: str | None, environ: Mapping[str, str]) -> Path | None:
    """Where the local hub cache keeps this revision, by the rules of huggingface_hub."""
    repository = hub_cache(environ) / f"models--{model.replace('/', '--')}"
    wanted = revision or "main"
    if ".." in Path(wanted).parts or Path(wanted).is_absolute():
        raise WeightsError(model, f"{wanted[:80]!r} is no revision")
    try:
        reference = repository / "refs" / wanted
        commit = reference.read_text()[:100].strip() if reference.is_file() else wanted
        folder = repository / "snapshots" / commit
        return folder if commit and "/" not in commit and folder.is_dir() else None
    except (OSError, ValueError):
        return None


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The folder of the local hub cache, by the rules of huggingface_hub."""
    home = environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or Path(home) / "hub"
    return Path(cache).expanduser()


def _from_hub(model: str, revision: str | None, environ: Mapping[str, str]) -> Checkpoint:
    """By range requests for headers. What is downloaded is the index, if there is one."""
    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise WeightsError(model, "not in the local hub cache, and HF_HUB_OFFLINE is set")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise WeightsError(model, "not a local folder, and huggingface_hub is not installed") from error
    api = HfApi(endpoint=environ.get("HF_ENDPOINT"), token=environ.get("HF_TOKEN"))
    try:
        info = api.model_info(model, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT_S)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if "/" not in file.rfilename}
        index = None
        if INDEX in sizes:
            if sizes[INDEX] > MAX_HEADER_BYTES:
                raise WeightsError(model, f"its index has {sizes[INDEX]} bytes, more than {MAX_HEADER_BYTES}")
            file = api.hf_hub_download(model, INDEX, revision=info.sha, cache_dir=hub_cache(environ))
            index = _checked_index(_small_file(Path(file)), model)
        wanted = _safetensors(sizes, index)
        if not wanted:
            return _other_formats(model, sizes, "hub")
        missing = sorted(set(wanted) - set(sizes))
        here = [name for name in wanted if name in sizes]
        with ThreadPoolExecutor(HUB_REQUESTS_AT_ONCE) as pool:
            headers = pool.map(lambda name: api.parse_safetensors_file_metadata(model, name, revision=info.sha), here)
            tensors: dict[str, Tensor] = {}
            for name, header in zip(here, headers, strict=True):
                _add(tensors, _of_hub_header(header, f"{model}/{name}"), model)
    except WeightsError:
        raise
    except Exception as error:  # its HTTP client, its own errors and its validators share no base class
        raise WeightsError(model, f"the hub did not answer ({type(error).__name__}: {str(error)[:120]})") from error
    return _complete(list(tensors.values()), "hub", missing, index)


def _of_hub_header(header: Any, place: str) -> tuple[Tensor, ...]:
    """huggingface_hub's view of a header, through our own checks."""
    return tensors_of(
        {
            name: {"dtype": each.dtype, "shape": list(each.shape), "data_offsets": list(each.data_offsets)}
            for name, each in header.tensors.items()
        },
        place,
    )
