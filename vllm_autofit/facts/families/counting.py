"""Counting the weights of encoders: matrices, norms, and the blocks of a vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vllm_autofit.facts.families.fields import Fields


class Encoder(NamedTuple):
    """What is known of an encoder."""

    part: Fields
    """The config's part that describes it."""
    host: Fields
    """What holds that part: projectors are described there."""
    text_width: int
    """The language model's hidden size."""
    kind: str
    """``model_type`` of the whole."""


def linear(inputs: int, outputs: int, bias: bool = True) -> int:
    """A matrix and its bias."""
    return inputs * outputs + (outputs if bias else 0)


def layer_norm(width: int) -> int:
    """A norm with a bias."""
    return 2 * width


@dataclass(frozen=True)
class Block:
    """One layer of an encoder: attention over ``heads_size`` wide heads together, and a feed-forward block."""

    width: int
    inner: int
    heads_size: int
    """Of all heads together; the same as ``width`` in nearly all."""
    gated: bool = False
    bias: bool = True
    """Of attention."""
    key_bias: bool = True
    """Whisper's keys have none."""
    ffn_bias: bool = True
    plain_norms: bool = False
    """Without a bias."""
    norms: int = 2
    extra: int = 0
    """Scales, gates and norms within."""

    @property
    def parameters(self) -> int:
        """Of one block."""
        heads = self.heads_size
        attention = 4 * self.width * heads + (3 * heads + self.width if self.bias else 0)
        if self.bias and not self.key_bias:
            attention -= heads
        ffn = linear(self.width, self.inner, self.ffn_bias) * (2 if self.gated else 1)
        ffn += linear(self.inner, self.width, self.ffn_bias)
        norms = self.norms * (self.width if self.plain_norms else layer_norm(self.width))
        return attention + ffn + norms + self.extra
