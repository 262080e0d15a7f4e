"""What is particular about a family of architectures, where its config doesn't say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from vllm_autofit.architecture import Layer
from vllm_autofit.facts.families.fields import Fields

Trait = bool | str
"""Always so, never so, or the name of the field that says so."""

WindowPattern = Literal["all", "uses", "layers", "cycle", "even", "chunks"]
"""Which layers slide when the config has no ``layer_types``.

``all``: every layer, if there is a window at all (vLLM hands the config's ``sliding_window`` to every layer that brings
no window of its own). ``uses``: only where ``use_sliding_window`` is true, and from ``max_window_layers`` on.
``layers``: none. ``cycle``: all but every n-th. ``even``: every second, the first included. ``chunks``: those with
rotary positions see their chunk (Llama 4).
"""

LAYER_NORMS = 4
"""``Family.norms`` of layers with two norms that have a bias each."""


@dataclass(frozen=True)
class Family:
    """One family: its names, and how its layers differ from Llama's."""

    architectures: tuple[str, ...]
    """As configs name them; the first is what a config without any is taken for."""
    model_types: tuple[str, ...]
    """Of the language model's part; the first one's defaults apply where a config names none."""
    layers: Callable[[Fields, Family], tuple[Layer, ...]]
    bias: Trait = "attention_bias"
    """Of the query, key and value projections."""
    output_bias: Trait | None = None
    """Of the projection after attention; None: as ``bias``."""
    mlp_bias: Trait = "mlp_bias"
    gated: bool = True
    norms: int = 2
    """Vectors of the hidden size per layer; a norm with a bias has two."""
    final_norms: int = 1
    """Vectors after the last layer: two with a bias, none where each layer ends with its own."""
    query_key_norm: Trait = False
    wide_norm: bool = False
    """That norm spans all heads."""
    output_gate: Trait = False
    sinks: Trait = False
    expert_bias: bool = False
    router_bias: Trait = False
    shared_gate: bool = False
    windows: WindowPattern = "all"
    cycle: int = 0
    """For ``cycle``: the n, where the config has none."""
    inclusive_window: bool = False
    """vLLM gives these layers one token more than the config's figure."""
    per_layer_windows: bool = True
    """Whether vLLM's code for it heeds ``layer_types``."""
    positions: Literal["rotary", "learned", "none"] = "rotary"
    position_offset: int = 0
    """Rows of the position table that aren't positions."""
    runner: Literal["generate", "pooling"] = "generate"
    extra: Callable[[Fields, tuple[Layer, ...]], int] | None = None
    """Weights that no layer, embedding or tower accounts for."""
    assumes: Mapping[str, object] = field(default_factory=dict)
    """Defaults of a config class that neither transformers nor vLLM ships."""


EARLY = partial(Family, bias=True, mlp_bias=True, gated=False, norms=LAYER_NORMS, final_norms=2)
"""The first transformers' design: biases everywhere, in norms too, and no gate. Families override what differs."""


def holds(fields: Fields, trait: Trait) -> bool:
    """Whether a trait applies to this config."""
    return fields.flag(trait) if isinstance(trait, str) else trait
