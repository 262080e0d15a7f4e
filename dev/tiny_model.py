"""Makes small models with random weights from real ``transformers`` config classes, tokenizer included.

    python -m dev.tiny_model FOLDER [--embedder | --mixture]

Nothing is fetched. The tokenizer has one token per byte, so any text can be sent, and some that only come back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 32768
END = "<end>"
VOCABULARY = 16384
"""Tokens. `vllm bench latency` sends token numbers below 10000."""


Build = Callable[..., Any]
"""From the options that all of them have, by the names of a ``transformers`` config, to a model."""

DECODER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": CONTEXT_TOKENS,
    "tie_word_embeddings": True,
    "bos_token_id": None,
}


def make_tiny_model(folder: Path, *, context_tokens: int = CONTEXT_TOKENS) -> Path:
    """A Qwen3 of 6.6 million parameters in ``folder``; made once, then found there."""

    def build(**common: Any) -> Any:
        from transformers import Qwen3Config, Qwen3ForCausalLM

        size = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": context_tokens}
        return Qwen3ForCausalLM(Qwen3Config(**{**DECODER, **common, **size}))

    return _made(folder, build)


def make_tiny_mixture(folder: Path) -> Path:
    """A Qwen3 of which each layer has eight experts."""

    def build(**common: Any) -> Any:
        from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

        experts = {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 2}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**DECODER, **common, **experts))

    return _made(folder, build)


def make_tiny_embedder(folder: Path) -> Path:
    """A BERT embedding model: no KV cache at all."""

    def build(**common: Any) -> Any:
        from transformers import BertConfig, BertModel

        size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
        return BertModel(BertConfig(**common, **size, max_position_embeddings=512))

    return _made(folder, build)


def byte_tokenizer(vocabulary_size: int = VOCABULARY, special: dict[str, str] | None = None) -> Any:
    """A tokenizer of ``vocabulary_size`` tokens; ``special`` ones, by role, come right after the bytes and the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for token in (END, *(special or {}).values()):
        vocabulary[token] = len(vocabulary)
    for index in range(len(vocabulary), vocabulary_size):  # never made from text, but a random model says them
        vocabulary[f"w{index}"] = index
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, extra_special_tokens=special or {}
    )


def _made(folder: Path, build: Build) -> Path:
    """A model with random weights, the same each time, and its tokenizer; what is there is left alone."""
    if (folder / "complete").is_file():
        return folder
    import torch

    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    model = build(vocab_size=VOCABULARY, eos_token_id=end, pad_token_id=end).to(torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "complete").touch()
    return folder


if __name__ == "__main__":
    kinds = {"--embedder": make_tiny_embedder, "--mixture": make_tiny_mixture}
    print(next((make for flag, make in kinds.items() if flag in sys.argv), make_tiny_model)(Path(sys.argv[1])))
