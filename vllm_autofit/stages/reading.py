"""What a file of stages says, read as vLLM-Omni reads it (0.16.0 to 0.30.0), without vLLM-Omni.

Two schemas: ``stage_args`` (up to 0.20, a few files of 0.24), where a stage holds ``runtime`` and ``engine_args``, and
``stages`` (since 0.20), where options stand in the stage itself, and ``base_config`` and ``platforms`` add to them:
``vllm_omni/config/stage_config.py`` of 0.30.0, ``resolve_deploy_yaml`` and ``_apply_platform_overrides``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_autofit.errors import StageFileError
from vllm_autofit.stages.stage import SHARE, Place, Stage, StageFile

PLATFORM = "cuda"
"""vLLM-Omni's name for NVIDIA devices, the only ones that we plan for."""

LEGACY, CURRENT = "stage_args", "stages"
INNER = ("engine_extras", "engine_args")
"""Mappings inside of a stage's entry whose options outdo those of the entry, the first before the second."""

MOST_STAGES = 1000
MOST_DEVICES = 4096


@dataclass(frozen=True)
class _Layer:
    """What one section of one file says about one stage."""

    file: Path
    section: tuple[str, ...]
    entry: Mapping[str, Any]


def read_stages(path: Path) -> StageFile:
    """The stages of ``path``, in the order of their numbers.

    Raises:
        StageFileError: it can't be read, or isn't a file of stages, or says something that can't be.
    """
    text = read_text(path)
    contents = _contents(path, text)
    content = contents[0][1]
    layers = _layers(contents)
    if not layers:
        raise StageFileError(
            str(path),
            f"it names no stages: neither `{CURRENT}` nor `{LEGACY}` is a list with entries in it",
            "Name a file that vLLM-Omni takes as --deploy-config (or --stage-configs-path)",
        )
    stages = tuple(_stage(path, number, layers[number]) for number in sorted(layers))
    pipeline = next((str(each["pipeline"]) for _, each in contents if each.get("pipeline") is not None), None)
    base = content.get("base_config")
    names = tuple(each.name for each, _ in contents)
    return StageFile(path, text, stages, None if base is None else str(base), pipeline, names)


def stage_of(source: Path, entry: Mapping[str, Any]) -> Stage:
    """One stage of the older schema that is in memory already.

    Raises:
        StageFileError: it says something that can't be.
    """
    return _stage(source, entry["stage_id"], [_Layer(source, (LEGACY,), entry)])


def read_text(path: Path) -> str:
    """The text with its line ends as they are.

    Raises:
        StageFileError: it can't be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StageFileError(str(path), f"it can't be read ({reason})", "Name a YAML file of stages") from error


def _content(path: Path, text: str) -> Mapping[str, Any]:
    import yaml  # late, here and in writing: no other plan needs it

    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StageFileError(str(path), f"it isn't YAML ({_one_line(error)})", "Correct it") from error
    if not isinstance(content, dict):
        raise StageFileError(str(path), "it holds no `option: value` lines", "Name a file of stages")
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace(' in "<unicode string>",', "")


# Layers: from the bottom to the top, what is said about each stage


def _layers(contents: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[int, list[_Layer]]:
    """By the number of the stage; what counts more comes later."""
    in_order = list(reversed(contents))
    sections = [_section(file, content, (key,)) for file, content in in_order for key in (LEGACY, CURRENT)]
    layers: dict[int, list[_Layer]] = {}
    for found in sections:
        for number, layer in found.items():
            layers.setdefault(number, []).append(layer)
    for file, content in in_order:  # a platform's section outdoes every file's stages
        for number, layer in _section(file, content, ("platforms", PLATFORM, CURRENT)).items():
            if number in layers:
                layers[number].append(layer)
    return layers


def _contents(path: Path, text: str) -> list[tuple[Path, Mapping[str, Any]]]:
    """A file, the one that it is based on, and so on."""
    contents = [(path, _content(path, text))]
    while (base := contents[-1][1].get("base_config")) is not None:
        last = contents[-1][0]
        other = last.parent / str(base)
        if any(other.resolve() == each.resolve() for each, _ in contents):
            raise StageFileError(str(last), f"`base_config: {base}` leads back to itself", "Correct it")
        contents.append((other, _content(other, read_text(other))))
    return contents


def _section(path: Path, content: Mapping[str, Any], section: tuple[str, ...]) -> dict[int, _Layer]:
    value: Any = content
    for key in section:
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return {}
    place = f"{path}, {'.'.join(section)}"
    if not isinstance(value, list) or len(value) > MOST_STAGES:
        raise StageFileError(place, "it isn't a list of stages", "Begin each with `- stage_id: N`")
    layers: dict[int, _Layer] = {}
    for position, entry in enumerate(value):
        number = entry.get("stage_id") if isinstance(entry, Mapping) else None
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise StageFileError(f"{place}, entry {position}", f"its stage_id is {number!r}", "Number it: 0, 1, ...")
        if number in layers:
            raise StageFileError(place, f"stage {number} stands there twice", "Give each its own stage_id")
        layers[number] = _Layer(path, section, entry)
    return layers


# One stage


def _stage(path: Path, number: int, layers: Sequence[_Layer]) -> Stage:
    where = f"{path}, stage {number}"
    options = _options(layers)
    runtime = _merged(layers, "runtime")
    place, share, file = _share(where, layers)
    ranks = _ranks(where, options)
    seqs = options.get("max_num_seqs", runtime.get("max_batch_size"))
    named = options.get("model_stage")
    return Stage(
        id=number,
        name="" if named is None else str(named),
        devices=_devices(where, _wrapped("devices", options, runtime), _replicas(where, options, runtime), ranks),
        place=place,
        share=share,
        share_from=file,
        eager=bool(options.get("enforce_eager")),
        max_num_seqs=seqs if isinstance(seqs, int) and seqs > 0 else None,
        kv_cache_bytes=_whole_number(where, "kv_cache_memory_bytes", options.get("kv_cache_memory_bytes"), 0),
        diffusion=options.get("stage_type") == "diffusion",
        ranks=ranks,
        config_name=None if options.get("hf_config_name") is None else str(options["hf_config_name"]),
        options=tuple(options.items()),
    )


def _options(layers: Sequence[_Layer]) -> dict[str, Any]:
    """All options of a stage, from whatever mapping. Nothing in between is merged: only plain values matter here."""
    options: dict[str, Any] = {}
    for layer in layers:
        options.update((key, value) for key, value in layer.entry.items() if key not in INNER)
    for inner in reversed(INNER):
        options.update(_merged(layers, inner))
    return options


def _merged(layers: Sequence[_Layer], key: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        value = layer.entry.get(key)
        merged.update(value if isinstance(value, Mapping) else {})
    return merged


def _wrapped(key: str, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> Any:
    """An option of vLLM-Omni's own, which stands in ``runtime`` or in the entry."""
    return runtime.get(key, options.get(key))


def _share(where: str, layers: Sequence[_Layer]) -> tuple[Place, float | None, Path | None]:
    """Where the share in force stands, or where one belongs; the share; the file that says it."""
    for inner in (*INNER, None):
        for layer in reversed(layers):
            holder = layer.entry if inner is None else layer.entry.get(inner)
            if isinstance(holder, Mapping) and SHARE in holder:
                value = holder[SHARE]
                share = None if value is None else _checked_share(where, value)
                return Place(layer.section, inner), share, layer.file
    legacy = layers[0].section == (LEGACY,)
    return Place((LEGACY,), "engine_args") if legacy else Place((CURRENT,)), None, None


def _checked_share(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise StageFileError(
            where,
            f"{SHARE} is {value!r}, not a number above 0 and up to 1",
            "Correct it, or leave it out to have it filled",
        )
    return float(value)


def _ranks(where: str, options: Mapping[str, Any]) -> int:
    """Processes of one replica that take memory."""
    inner = options.get("parallel_config")
    sizes = {**options, **(inner if isinstance(inner, Mapping) else {})}
    ranks = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        ranks *= max(1, _whole_number(where, name, sizes.get(name), 1))
    return ranks


def _replicas(where: str, options: Mapping[str, Any], runtime: Mapping[str, Any]) -> int:
    return max(1, _whole_number(where, "num_replicas", _wrapped("num_replicas", options, runtime), 1))


def _whole_number(where: str, name: str, value: object, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise StageFileError(where, f"{name} is {value!r}, not a whole number", "Correct it")
    return value


def _devices(where: str, value: object, replicas: int, ranks: int) -> tuple[int, ...]:
    """The devices of every process; empty for a stage that lives on the host.

    Without ``devices`` a stage sees all and takes the first. Several replicas share out the list, or, where it is just
    long enough for one of them, move on by its length (``split_devices_for_replicas`` of 0.30.0).
    """
    if value == "cpu":
        return ()
    listed = list(range(ranks)) if value is None else _numbers(where, value)
    if replicas > 1 and len(listed) == ranks:
        listed = [replica * ranks + device for replica in range(replicas) for device in listed]
    if not listed or len(listed) > MOST_DEVICES:
        raise StageFileError(where, f"devices is {value!r}, which names none", 'Name them as in devices: "0,1"')
    return tuple(listed)


def _numbers(where: str, value: object) -> list[int]:
    words = [str(value)] if isinstance(value, int) else value.split(",") if isinstance(value, str) else [repr(value)]
    names = [word.strip() for word in words if word.strip()]
    wrong = next(
        (name for name in names if not (name.isascii() and name.isdecimal() and int(name) < MOST_DEVICES)), None
    )
    if wrong is not None:
        raise StageFileError(
            where,
            f"devices is {value!r}, and {wrong!r} is not the number of a device",
            'Name them as in devices: "0,1"',
        )
    return [int(name) for name in names]
