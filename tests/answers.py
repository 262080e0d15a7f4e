"""Answers of ``vllm-autofit plan`` for models that are no more than a ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vllm_autofit.answer import Answer
from vllm_autofit.api import Question, answer
from vllm_autofit.settings import read_settings

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
"""The shapes of Llama 3.1 8B."""

UNHEARD_OF: dict[str, Any] = {"architectures": ["UnheardOfForCausalLM"], "model_type": "unheard_of"}


def model_folder(place: Path, config: dict[str, Any] | None = None, **changes: Any) -> str:
    """A folder that holds a ``config.json`` and nothing else."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps({**(LLAMA_8B if config is None else config), **changes}))
    return str(place)


def answered(model: str | None, /, **question: Any) -> Answer:
    """The answer to a question; on an H100 with vLLM 0.32 where nothing else is said."""
    return answer(Question(model, **{"gpu": "H100", "vllm_version": "0.32.0", **question}), read_settings({}))
