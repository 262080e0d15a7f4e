"""What a model is made of, read without loading it: its config, and the headers of its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vllm_autofit.errors import ConfigError, UnknownModelError, WeightsError
from vllm_autofit.facts.config import load_config, model_facts
from vllm_autofit.facts.families.drafters import drafting_config
from vllm_autofit.facts.weights import read_tensors
from vllm_autofit.values import Model

WITHOUT_CHECKPOINT = ("ngram", "ngram_gpu", "suffix", "custom_class", "extract_hidden_states")
"""Ways of speculating whose ``model``, if any, is no checkpoint (vLLM 0.32 ``config/speculative.py``)."""

NO_NETWORK = {"HF_HUB_OFFLINE": "1"}


def draft_of(model: str, speculation: object) -> str | None:
    """The checkpoint that a ``speculative_config`` names, None where a model drafts for itself or nothing does."""
    asked = speculation if isinstance(speculation, Mapping) else {}
    draft = asked.get("model")
    if not isinstance(draft, str) or asked.get("method") in WITHOUT_CHECKPOINT:
        return None
    return draft if draft not in (model, "ngram", "[ngram]") else None


def read_model(
    name: str,
    revision: str | None = None,
    *,
    config: Mapping[str, object] | None = None,
    draft: str | None = None,
    hub: bool = True,
) -> Model:
    """A folder, a name in the local hub cache, or (with ``hub``) on the hub: never more than headers are fetched.

    A config that isn't understood gives a ``Model`` without facts, and headers that can't be had one without tensors;
    ``notes`` say why.

    Args:
        config: vLLM's own, where it is known already; else ``config.json`` is read.
        draft: the checkpoint that drafts in speculative decoding, where it has its own.
        hub: whether the network may be used.

    Raises:
        ConfigError: there is no config, or it says something that can't be.
    """
    try:
        facts = model_facts(load_config(name, revision, hub=hub) if config is None else config)
    except UnknownModelError as error:
        return Model(name, notes=(str(error),))
    drafter, notes = _drafter(draft, hub)
    notes = (*facts.notes, *notes)
    try:
        found = read_tensors(name, revision, environ=os.environ if hub else {**os.environ, **NO_NETWORK})
    except WeightsError as error:
        # A launch that may not ask the hub will do without headers often: nothing to warn about.
        notes = (*notes, str(error)) if hub else notes
        return Model(name, facts, weights_source="config", draft=drafter, notes=notes)
    return Model(
        name,
        facts,
        tensors=found.tensors,
        weights_source=found.source,
        exact=found.exact,
        draft=drafter,
        notes=(*notes, *found.notes),
    )


def _drafter(name: str | None, hub: bool) -> tuple[Model | None, tuple[str, ...]]:
    """What drafts, or a note that it isn't counted."""
    if name is None:
        return None, ()
    try:
        model = read_model(name, config=drafting_config(load_config(name, hub=hub)), hub=hub)
    except ConfigError as error:
        return None, (f"the draft model isn't counted: {error}",)
    return (model, ()) if model.facts is not None else (None, model.notes)
