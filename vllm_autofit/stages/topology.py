"""What part of a model each stage runs. Since vLLM-Omni 0.20 its files don't say: its Python code does.

That code is read, never run: constants in the calls of ``PipelineConfig`` and ``StagePipelineConfig`` in the package's
``pipeline.py`` files (0.20 to 0.30). Without the package, stages have numbers and no names.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vllm_autofit.stages.package import package_folder
from vllm_autofit.stages.stage import Stage, StageFile

SOURCES = "model_executor/models/*/pipeline.py"
LARGEST_SOURCE_BYTES = 2**20


class Part(NamedTuple):
    """What the package's code says about one stage."""

    name: str
    config_name: str | None
    diffusion: bool


def parts_of(file: StageFile, model_type: str | None = None) -> dict[int, Part]:
    """By the number of the stage; empty where the package isn't there, or has no such pipeline.

    Args:
        file: of stages.
        model_type: as the model's config names it.
    """
    package = package_folder(file.path)
    if package is None:
        return {}
    words = [file.pipeline] if file.pipeline else [*(Path(name).stem for name in file.names), model_type]
    calls = [call for path in sorted(package.glob(SOURCES)) for call in _pipelines(path, tuple(filter(None, words)))]
    ours = next((call for fits in _ways_to_fit(file, model_type) for call in calls if fits(call)), None)
    stages = None if ours is None else _argument(ours, "stages")
    parts = dict(_stage_parts(stages.elts)) if isinstance(stages, ast.Tuple | ast.List) else {}
    return parts if {stage.id for stage in file.stages} <= parts.keys() else {}


def with_names(stages: Sequence[Stage], parts: Mapping[int, Part]) -> tuple[Stage, ...]:
    """The stages, those without a name with what the package's code says."""
    return tuple(
        replace(
            stage,
            name=parts[stage.id].name,
            config_name=stage.config_name or parts[stage.id].config_name,
            diffusion=stage.diffusion or parts[stage.id].diffusion,
        )
        if not stage.name and stage.id in parts
        else stage
        for stage in stages
    )


def _ways_to_fit(file: StageFile, model_type: str | None) -> Sequence[Callable[[ast.Call], bool]]:
    """Whether a pipeline is the file's: as vLLM-Omni finds it, or, without a model, by the names of files."""
    if file.pipeline is not None:
        return (lambda call: _text(call, "model_type") == file.pipeline,)
    return (
        lambda call: model_type is not None and _text(call, "model_type") == model_type,
        lambda call: _text(call, "default_deploy_config_name") in file.names,
        lambda call: f"{_text(call, 'model_type')}.yaml" in file.names,
    )


def _pipelines(path: Path, words: Sequence[str]) -> Iterator[ast.Call]:
    """The calls of ``PipelineConfig`` in a source that has one of the words."""
    try:
        if path.stat().st_size > LARGEST_SOURCE_BYTES:
            return
        source = path.read_text(encoding="utf-8")
        if any(word in source for word in words):
            yield from (
                node
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "PipelineConfig"
            )
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return


def _stage_parts(nodes: Sequence[ast.expr]) -> Iterator[tuple[int, Part]]:
    for node in nodes:
        number = _argument(node, "stage_id") if isinstance(node, ast.Call) else None
        if isinstance(node, ast.Call) and isinstance(number, ast.Constant) and isinstance(number.value, int):
            kind = _argument(node, "execution_type")
            diffusion = isinstance(kind, ast.Attribute) and kind.attr == "DIFFUSION"
            config_name = _text(node, "hf_config_name") or None
            yield number.value, Part(_text(node, "model_stage"), config_name, diffusion)


def _argument(call: ast.Call, name: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _text(call: ast.Call, name: str) -> str:
    value = _argument(call, name)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
