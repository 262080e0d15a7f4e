"""Prediction layers that a checkpoint carries for speculative decoding."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllm_autofit.architecture import Attention, Drafter, Layer
from vllm_autofit.facts.families.parts import Parts

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
MOST = 64

UNCOUNTED = frozenset({"qwen3_next"})
"""Model types whose configs don't count it, though every checkpoint has one (vLLM 0.32 ``models/qwen3_next_mtp``)."""

SPECULATORS = {"llama": ["LlamaForCausalLM"], "qwen3": ["Qwen3ForCausalLM"]}
"""What drafts of the speculators library are made like, by their inner ``model_type``."""

EAGLE = re.compile(r"^Eagle3?(?=[A-Z])|Eagle3?$")
"""What EAGLE's drafts put before or after the architecture they are made like."""


def drafter(parts: Parts, layers: tuple[Layer, ...]) -> Drafter | None:
    """How many there are, and what one is like: the model's last attention before its last feed-forward block."""
    count = parts.text.size_or(int(parts.model_type in UNCOUNTED), *COUNTS, most=MOST)
    if not count:
        return None
    mixer = next((layer.mixer for layer in reversed(layers) if isinstance(layer.mixer, Attention)), None)
    ffn = next((layer.ffn for layer in reversed(layers) if layer.ffn is not None), None)
    norms = max(layer.norms for layer in layers)
    return Drafter(layers=count, layer=Layer(mixer=mixer, ffn=ffn, norms=norms) if mixer is not None else None)


def drafting_config(config: Mapping[str, object]) -> dict[str, object]:
    """The config of a draft as that of the plain model it is made like, with what it says of its own kept.

    Drafts of the speculators library describe that model in a part of its own (vLLM 0.32
    ``transformers_utils/configs/speculators``).
    """
    inner = config.get("transformer_layer_config")
    plain = {**config, **inner} if isinstance(inner, Mapping) else dict(config)
    names = plain.get("architectures")
    if isinstance(inner, Mapping):
        names = inner.get("architectures") or SPECULATORS.get(str(inner.get("model_type", "llama")))
    if isinstance(names, list):
        plain["architectures"] = [EAGLE.sub("", name) if isinstance(name, str) else name for name in names]
    return plain
