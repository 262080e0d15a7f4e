"""Prediction layers that a checkpoint carries for speculative decoding."""

from __future__ import annotations

from vllm_autofit.architecture import Attention, Drafter, Layer
from vllm_autofit.facts.families.parts import Parts

COUNTS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
MOST = 64


def drafter(parts: Parts, layers: tuple[Layer, ...]) -> Drafter | None:
    """How many there are, and what one is like: the model's last attention before its last feed-forward block."""
    count = parts.text.size_or(0, *COUNTS, most=MOST)
    if not count:
        return None
    mixer = next((layer.mixer for layer in reversed(layers) if isinstance(layer.mixer, Attention)), None)
    ffn = next((layer.ffn for layer in reversed(layers) if layer.ffn is not None), None)
    norms = max(layer.norms for layer in layers)
    return Drafter(layers=count, layer=Layer(mixer=mixer, ffn=ffn, norms=norms) if mixer is not None else None)
