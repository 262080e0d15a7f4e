"""Writes ``facts/families/defaults.json``: what config classes fill in where a config.json leaves a field out.

    python -m dev.config_defaults

Only fields that the rules read are kept, of the model types that they know, as the classes of the installed
transformers and vLLM declare them: a default that the class derives from other fields is left to the rules.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import logging
import warnings
from pathlib import Path
from typing import Any

FAMILIES = Path(__file__).resolve().parent.parent / "vllm_autofit" / "facts" / "families"
OUTPUT = FAMILIES / "defaults.json"
DERIVED = {"layer_types", "layers_block_type", "rope_parameters", "rope_scaling", "per_layer_config", "model_type"}
"""Left to the rules, or no default at all."""


def names_read() -> set[str]:
    """Every word in the rules: a superset of the fields that they read."""
    words = set()
    for file in [*FAMILIES.glob("*.py"), FAMILIES.parent / "config.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    return words - DERIVED


def declared(config_class: Any) -> dict[str, Any]:
    """What a config class declares, before it derives anything."""
    if config_class.__module__.startswith("vllm."):
        parameters = inspect.signature(config_class.__init__).parameters.values()
        return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    values = {}
    for one in dataclasses.fields(config_class):
        if one.default is not dataclasses.MISSING:
            values[one.name] = list(one.default) if isinstance(one.default, tuple) else one.default
        elif one.default_factory is not dataclasses.MISSING:
            values[one.name] = one.default_factory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = config_class()
    fraction = getattr(made, "partial_rotary_factor", None)
    if fraction is not None:  # set from keyword arguments, the same whatever the other fields say
        values["partial_rotary_factor"] = fraction
    return values


def is_plain(value: Any) -> bool:
    """A word, a number, or a short list of numbers."""
    if isinstance(value, list):
        return 0 < len(value) <= 16 and all(isinstance(item, int) for item in value)
    return isinstance(value, (bool, int, float, str)) and value != ""


def collect() -> dict[str, dict[str, Any]]:
    """Defaults by model type."""
    from transformers import CONFIG_MAPPING
    from vllm.transformers_utils.config import _CONFIG_REGISTRY
    from vllm.transformers_utils.configs.minimax_m3 import MiniMaxM3TextConfig

    from vllm_autofit.facts.families.table import BY_MODEL_TYPE
    from vllm_autofit.facts.families.towers import AUDIO_TYPES, TOWER_TYPES
    from vllm_autofit.facts.families.wrappers import WRAPPERS

    words = names_read()
    found = {}
    for model_type in sorted({*BY_MODEL_TYPE, *WRAPPERS, *TOWER_TYPES.values(), *AUDIO_TYPES.values()}):
        if model_type == "minimax_m3_text":  # the text part of a class that the registry knows by another name
            config_class = MiniMaxM3TextConfig
        elif model_type in _CONFIG_REGISTRY:
            config_class = _CONFIG_REGISTRY[model_type]
        elif model_type in CONFIG_MAPPING:
            config_class = CONFIG_MAPPING[model_type]
        else:
            continue
        values = {name: value for name, value in declared(config_class).items() if name in words and is_plain(value)}
        if values:
            found[model_type] = values
    return found


def main() -> None:
    """Write the file."""
    import transformers
    import vllm

    logging.disable(logging.CRITICAL)
    source = f"config classes of transformers {transformers.__version__} and vLLM {vllm.__version__.split('+')[0]}"
    lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in collect().items()]
    OUTPUT.write_text(
        "{\n"
        + f'  "source": {json.dumps(source)},\n  "made_by": "python -m dev.config_defaults",\n'
        + '  "defaults": {\n'
        + ",\n".join(lines)
        + "\n  }\n}\n"
    )


if __name__ == "__main__":
    main()
