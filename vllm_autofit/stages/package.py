"""Which shares in a file are vLLM-Omni's own, so that nobody chose them for this machine.

vLLM-Omni writes the defaults of a model into a file, where they look like anybody's choice. A share counts as its
default where vLLM-Omni's own file of the same name says the same for the same stage.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vllm_autofit.errors import StageFileError
from vllm_autofit.stages.reading import read_stages
from vllm_autofit.stages.stage import Stage, StageFile

PACKAGE = "vllm_omni"
FOLDERS = ("deploy", "model_executor/stage_configs", "platforms/*/stage_configs")
"""Where the package keeps its files: the first since 0.20, the others up to 0.24."""


def shares_of_package(file: StageFile) -> frozenset[int]:
    """The stages of ``file`` whose share is the default of the installed package, or whose file is the package's."""
    return frozenset(stage.id for stage in file.stages if _is_packages(stage))


def package_folder(path: Path | None = None) -> Path | None:
    """The package that holds ``path``, else the installed one; it is not imported. None: there is none."""
    if path is not None:
        around = next((parent for parent in path.resolve().parents if parent.name == PACKAGE), None)
        if around is not None:
            return around
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except (ImportError, ValueError):
        return None
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(place) for place in places), None)


def _is_packages(stage: Stage) -> bool:
    if stage.share is None or stage.share_from is None:
        return False
    package = package_folder(stage.share_from)
    if package is None:
        return False
    if package in stage.share_from.resolve().parents:
        return True
    own = (path for folder in FOLDERS for path in package.glob(f"{folder}/{stage.share_from.name}"))
    return any(_says_the_same(path, stage) for path in own)


def _says_the_same(path: Path, stage: Stage) -> bool:
    try:
        return any(each.id == stage.id and each.share == stage.share for each in read_stages(path).stages)
    except StageFileError:
        return False
