"""Which modules a quantised checkpoint leaves as they are: names, parts of names, wildcards and ``re:`` patterns.

A checkpoint names its modules as its code does (``model.language_model.layers.3.mlp``, ``backbone.layers.3.mixer``);
ours are named as ``checkpoint_modules`` has them. Both are brought to one spelling before they are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import translate
from functools import lru_cache
from itertools import islice, product

WRAPPERS = ("model.language_model.", "language_model.model.", "language_model.", "model.", "backbone.", "transformer.")
"""What may stand before ``layers.N``; the longest first."""

SPELLINGS = {
    "mixer": ("self_attn", "mamba", "mlp"),
    "attn": ("self_attn",),
    "attention": ("self_attn",),
    "block_sparse_moe": ("mlp",),
    "feed_forward": ("mlp",),
    "ffn": ("mlp",),
    "moe": ("mlp",),
    "shared_expert": ("shared_experts",),
    "shared_mlp": ("shared_experts",),
    "w1": ("gate_proj",),
    "w2": ("down_proj",),
    "w3": ("up_proj",),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
"""Other names of our modules, fused ones too."""


MOST_SPELLINGS = 64
"""Of one pattern. A name of published checkpoints has four at most."""
MOST_REPEATS = 4
"""Open-ended repeats in one expression. Published ones have three; each more multiplies the time that a match takes."""

_LAYER = re.compile(r"((?:.*\.)?layers\.\d+)\.(.+)")
_REPEAT = re.compile(r"(?<!\\)[*+]|(?<!\\)\{\d*,")
_REPEATED_GROUP = re.compile(r"\)[*+{]")


class Patterns:
    """Compiled once, asked for each module."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        names = [pattern for pattern in patterns if not pattern.startswith("re:")]
        spelled = [spelling for name in names for spelling in _spellings(name)]
        self._names = {name for name in spelled if "*" not in name}
        open_ended = {name[:-1] for name in spelled if name.endswith("*") and "*" not in name[:-1]}
        self._beginnings = tuple(open_ended)
        closed = [name for name in spelled if "*" in name and name[:-1] not in open_ended]
        self._wildcards = _joined([translate(name + below) for name in closed for below in ("", ".*")])
        self._expressions = _joined(list(filter(_is_quick, (item[3:] for item in patterns if item.startswith("re:")))))

    def match(self, name: str) -> bool:
        """Whether a module, as we name it, is meant by any of them."""
        short = _unwrapped(name)
        return (
            self._is_named(short)
            or short.startswith(self._beginnings)
            or (self._wildcards is not None and any(map(self._wildcards.match, (short, f"model.{short}"))))
            or (self._expressions is not None and any(map(self._expressions.match, _full_names(short))))
        )

    def _is_named(self, short: str) -> bool:
        """The module itself, what it is within, or any run of names in its path below the layer's number."""
        if not self._names:
            return False
        found = _LAYER.match(short)
        if found is None:
            return not self._names.isdisjoint(_runs(short))
        layer, below = found.groups()
        return (
            layer in self._names
            or not self._names.isdisjoint(_runs(below))
            or any(f"{layer}.{beginning}" in self._names for beginning in _beginnings(below))
        )


@lru_cache(maxsize=64)
def compiled(patterns: tuple[str, ...]) -> Patterns:
    """The same patterns are asked for thousands of modules, and again in the next plan."""
    return Patterns(patterns)


def _is_quick(expression: str) -> bool:
    """Whether it is sound and can't take long. vLLM would refuse the others, or hang: that isn't for us to find."""
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        return False
    return not _REPEATED_GROUP.search(expression) and len(_REPEAT.findall(expression)) <= MOST_REPEATS


def _joined(expressions: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(f"(?:{expression})" for expression in expressions)) if expressions else None


def _full_names(short: str) -> Iterator[str]:
    """Expressions are written against whole names of the checkpoint's own: what the module may be called there."""
    yield short
    for wrapper in WRAPPERS:
        yield wrapper + short


def _unwrapped(name: str) -> str:
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            return name[len(wrapper) :]
    return name


def _spellings(pattern: str) -> Iterator[str]:
    """The pattern in our names; several where its name covers several of our modules."""
    segments = _unwrapped(pattern).split(".")
    options = [
        tuple(other + ("*" if segment.endswith("*") else "") for other in SPELLINGS[segment.rstrip("*")])
        if segment.rstrip("*") in SPELLINGS
        else (segment,)
        for segment in segments
    ]
    for spelling in islice(product(*options), MOST_SPELLINGS):
        yield ".".join(spelling)


@lru_cache(maxsize=1024)
def _beginnings(path: str) -> tuple[str, ...]:
    segments = path.split(".")
    return tuple(".".join(segments[:end]) for end in range(1, len(segments) + 1))


@lru_cache(maxsize=1024)
def _runs(path: str) -> tuple[str, ...]:
    """Every stretch of a path: the same few paths come in each layer."""
    segments = path.split(".")
    return tuple(run for start in range(len(segments)) for run in _beginnings(".".join(segments[start:])))
