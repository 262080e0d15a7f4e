"""The model as vLLM itself will see it: its own config object, with the user's overrides applied."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from vllm_autofit.errors import AutofitError
from vllm_autofit.facts.checkpoint import draft_of, read_model
from vllm_autofit.facts.config import config_place, load_config
from vllm_autofit.hooks.guard import logger
from vllm_autofit.values import Model, Request


def model_of(engine_args: Any, request: Request) -> Model | None:
    """What can be read about the model of one launch, or None where it can't be told.

    The hub is asked for nothing but a config that isn't in its local cache yet, which vLLM then finds there. vLLM reads
    the config itself in a moment and explains better what is wrong with one that it can't read, so trouble with it is
    left to vLLM.
    """
    place = getattr(engine_args, "hf_config_path", None) or request.model
    revision = getattr(engine_args, "revision", None)
    try:
        folder, _is_file = config_place(place, revision)
        return read_model(
            request.model,
            revision,
            config=_vllm_config(engine_args, folder) or load_config(str(folder)),
            draft=draft_of(request.model, request.knobs.get("speculative_config")),
            hub=False,
        )
    except AutofitError as error:
        logger.debug("vllm-autofit: the model isn't weighed: %s.", error)
        return None


def _vllm_config(engine_args: Any, folder: Path) -> dict[str, Any] | None:
    """vLLM's Hugging Face config as a dict, None where vLLM can't read it or this vLLM has no such function.

    Read from a folder, so that vLLM doesn't ask the hub for it once more.
    """
    try:
        read: Any = importlib.import_module("vllm.transformers_utils.config").get_config
        overrides = getattr(engine_args, "hf_overrides", None) or {}
        config = read(
            str(folder),
            engine_args.trust_remote_code,
            config_format=engine_args.config_format,
            **({"hf_overrides_fn": overrides} if callable(overrides) else {"hf_overrides_kw": overrides}),
        )
        return dict(config.to_dict())
    except Exception as error:  # whatever vLLM, transformers or a model's own code raise: vLLM will say it again
        logger.debug("vllm-autofit: vLLM's config of the model could not be read: %s.", error)
        return None
