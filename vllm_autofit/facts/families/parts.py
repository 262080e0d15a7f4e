"""Taking a config apart: which part describes the language model, its family, and the defaults that apply."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Literal, NamedTuple

from vllm_autofit.errors import UnknownModelError
from vllm_autofit.facts.families.attention import HIDDEN_SIZE, LAYER_COUNT
from vllm_autofit.facts.families.fields import Fields
from vllm_autofit.facts.families.style import Family
from vllm_autofit.facts.families.table import BY_ARCHITECTURE, BY_MODEL_TYPE
from vllm_autofit.facts.families.wrappers import WRAPPERS, Wrapper

TEXT_PARTS = ("text_config", "thinker_config", "llm_config", "language_config")
DEEPEST = 4
"""Parts within parts that are followed; the deepest real one is ``thinker_config.text_config``."""
TIED = "tie_word_embeddings"
SHARED = (TIED, "num_labels", "id2label", "is_causal", "use_bidirectional_attention")
"""What the whole config may say for its text part."""

POOLING_SUFFIXES = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForRewardModeling",
    "ForRewardModel",
    "ForTextEncoding",
    "EmbeddingModel",
    "RewardModel",
    "Model",
)
"""Endings of architectures that vLLM runs as pooling models: ``_SUFFIX_TO_DEFAULTS`` in 0.32's ``config/model.py``."""
GENERATING = frozenset({"ChatGLMModel", "UltravoxModel", "Qwen2_5OmniModel"})
"""Exceptions to that: vLLM's registry lists them as generating."""
GENERATING_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")

NOT_MODELLED = {
    "deepseek_v4": "its compressed KV cache isn't modelled",
    "deepseek_ref": "its compressed KV cache isn't modelled",
    "DeepseekV4ForCausalLM": "its compressed KV cache isn't modelled",
}
"""Served by vLLM, but cached in a way that would make any figure of ours wrong."""


class Parts(NamedTuple):
    """A config, taken apart."""

    whole: Fields
    host: Fields
    """What holds the text part, and vision and audio parts beside it."""
    text: Fields
    family: Family
    wrapper: Wrapper | None
    architecture: str
    model_type: str
    """Of the text part."""
    runner: Literal["generate", "pooling"]
    notes: tuple[str, ...]

    @property
    def wrapper_type(self) -> str:
        """``model_type`` of the multimodal whole as we call it; empty for a model of text alone."""
        return "" if self.wrapper is None else self.wrapper.model_types[0]


def take_apart(config: Mapping[str, object]) -> Parts:
    """Find the text part of a config, its family, and the defaults of what it leaves out.

    Raises:
        ConfigError: a nested part isn't an object, or a name isn't text.
        UnknownModelError: no family that we know.
    """
    outer = Fields(config, {})
    outer_type, architecture = outer.text("model_type"), _architecture(outer)
    for name in (outer_type, architecture):
        if name in NOT_MODELLED:
            raise UnknownModelError(name, NOT_MODELLED[name])
    host, inner = _text_part(outer)
    wrapper = WRAPPERS.get(architecture) or WRAPPERS.get(outer_type)
    family, notes = _family(outer, inner, architecture, wrapper)
    model_type = inner.text("model_type")
    if model_type not in family.model_types:
        model_type = _type_within(family, wrapper, architecture)
    return Parts(
        whole=Fields(config, defaults(outer_type)),
        host=host,
        text=_text(outer, inner, family, model_type),
        family=family,
        wrapper=wrapper,
        architecture=architecture or (wrapper.architectures if wrapper else family.architectures)[0],
        model_type=model_type,
        runner=_runner(config, architecture, family),
        notes=notes,
    )


def _architecture(outer: Fields) -> str:
    names = outer.items("architectures")
    return names[0] if names and isinstance(names[0], str) else ""


def _text_part(outer: Fields) -> tuple[Fields, Fields]:
    """The part that describes the language model, and what holds it: the whole config where nothing is nested."""
    host = level = outer
    for _ in range(DEEPEST):
        inner = next((part for name in TEXT_PARTS if (part := level.part(name)) is not None), None)
        if inner is None:
            break
        host, level = level, inner
    return host, level


def _text(outer: Fields, inner: Fields, family: Family, model_type: str) -> Fields:
    """The text part with what the whole config says for it, and the defaults of its class."""
    shared = {name: outer.given[name] for name in SHARED if name in outer.given}
    given = {**shared, **inner.given}
    if outer.says(TIED) and inner.says(TIED):
        # vLLM 0.32 goes by the whole config; where only that says yes, checkpoints bring a head, which vLLM then loads.
        given[TIED] = outer.flag(TIED) and inner.flag(TIED)
    whole = {name: value for name, value in defaults(outer.text("model_type")).items() if name in SHARED}
    return Fields(given, {**whole, **family.assumes, **defaults(model_type)}, inner.where)


def _family(outer: Fields, inner: Fields, architecture: str, wrapper: Wrapper | None) -> tuple[Family, tuple[str, ...]]:
    inner_type = inner.text("model_type")
    if wrapper is not None:
        found = (
            BY_MODEL_TYPE.get(inner_type)
            or BY_ARCHITECTURE.get(_architecture(inner))
            or BY_MODEL_TYPE.get(wrapper.text_type)
        )
        if found is not None:
            return found, ()
    named = BY_ARCHITECTURE.get(architecture) or BY_ARCHITECTURE.get(_generating(architecture))
    if named is not None:
        return named, ()
    if not architecture and inner_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[inner_type], (f"the config names no architecture: taken by its model_type {inner_type}",)
    if _looks_like_llama(outer, inner):
        note = f"{architecture} isn't known: counted as a Llama of these sizes, for vLLM's Transformers backend"
        return BY_MODEL_TYPE["llama"], (note,)
    raise UnknownModelError(architecture or inner_type or "a config without architectures", "it isn't a family we know")


def _generating(architecture: str) -> str:
    """The text model that a pooling architecture is made of: of Qwen3ForSequenceClassification, Qwen3ForCausalLM."""
    for suffix in POOLING_SUFFIXES:
        if architecture.endswith(suffix):
            base = architecture.removesuffix(suffix)
            return next((base + ending for ending in GENERATING_SUFFIXES if base + ending in BY_ARCHITECTURE), "")
    return ""


def _looks_like_llama(outer: Fields, inner: Fields) -> bool:
    """Custom code that vLLM's Transformers backend would load, with every field of a plain decoder and no other."""
    if not isinstance(outer.get("auto_map"), Mapping) or inner is not outer:
        return False
    needed = (LAYER_COUNT[0], HIDDEN_SIZE[0], "num_attention_heads", "intermediate_size", "vocab_size")
    strange = (
        "expert",
        "mamba",
        "ssm",
        "linear_",
        "lora_rank",
        "layer_types",
        "hybrid",
        "block_configs",
        "moe",
        "encoder",
    )
    return all(outer.says(name) for name in needed) and not any(
        part in name for name in outer.given if isinstance(name, str) for part in strange
    )


def _type_within(family: Family, wrapper: Wrapper | None, architecture: str) -> str:
    """Whose defaults apply where the text part names no type of its own."""
    if wrapper is not None and wrapper.text_type in family.model_types:
        return wrapper.text_type
    if architecture in family.architectures and len(family.architectures) == len(family.model_types):
        return family.model_types[family.architectures.index(architecture)]
    return family.model_types[0]


def _runner(config: Mapping[str, object], architecture: str, family: Family) -> Literal["generate", "pooling"]:
    if family.runner == "pooling" or config.get(POOLS):
        return "pooling"
    pools = architecture.endswith(POOLING_SUFFIXES) and not architecture.endswith(GENERATING_SUFFIXES)
    return "pooling" if pools and architecture not in GENERATING else "generate"


POOLS = "_sentence_transformers"
"""Set by ``load_config`` where ``modules.json`` beside the config makes it an embedding model."""


@lru_cache(maxsize=1)
def _all_defaults() -> dict[str, dict[str, object]]:
    text = files("vllm_autofit.facts.families").joinpath("defaults.json").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, object]] = json.loads(text)["defaults"]
    return loaded


def defaults(model_type: str) -> dict[str, object]:
    """What the config class of this type fills in for fields that a file leaves out."""
    return _all_defaults().get(model_type, {})
