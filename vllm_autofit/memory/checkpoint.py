"""The tensors that a model's checkpoint holds, from its config alone: for when no safetensors header can be had.

Names are Hugging Face's commonest, so that whoever shares tensors out among ranks reads these and real headers alike.
Experts of one layer stand as one tensor with a ``count``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod

from vllm_autofit.architecture import Attention, Drafter, Layer, ModelFacts, Quantization, Tensor, Tower
from vllm_autofit.memory.checkpoint_modules import Matrix, Module, Plain, layer_modules
from vllm_autofit.memory.checkpoint_patterns import compiled
from vllm_autofit.memory.checkpoint_storage import DTYPE_NAMES, ITEM_BYTES, Part, stored

HEAD = "lm_head"

DRAFTERS_WITH_TABLES = frozenset({"deepseek_v3", "deepseek_v32", "glm4_moe", "glm4_moe_lite"})
"""Model types whose prediction layers bring copies of embedding and head. The published numbers of elements of DeepSeek
R1 and V3.2, GLM 4.5 Air and GLM 4.7 Flash agree with them, those of GLM 5 and MiMo 7B without."""


def tensors_from_facts(facts: ModelFacts) -> tuple[Tensor, ...]:
    """Every tensor of the checkpoint, towers and drafter included, embeddings first and the head last.

    A tower is one tensor ``visual.<modality>``, layers of it that vLLM doesn't make another, and weights outside of the
    layers one tensor ``model.extra``. Layers for speculative decoding come after the others: ``model.layers.N`` with N
    from the number of layers on, or ``mtp.``.
    """
    writer = _Writer(facts)
    return tuple(writer.tensors())


class _Writer:
    """Walks through one model; holds what every step needs."""

    def __init__(self, facts: ModelFacts) -> None:
        self._facts = facts
        self._hidden = facts.hidden_size
        self._dtype = DTYPE_NAMES.get(facts.dtype, "BF16")
        self._quantization = facts.quantization
        self._modules: dict[Layer, tuple[Module, ...]] = {}

    def tensors(self) -> Iterator[Tensor]:
        facts = self._facts
        yield from self._table("model.embed_tokens", facts.vocabulary)
        if facts.learned_positions:
            name = "embeddings.position_embeddings" if _is_encoder(facts) else "model.embed_positions"
            yield self._plain("", Plain(f"{name}.weight", (facts.learned_positions, self._hidden)))
        yield from self._extra()
        for tower in facts.towers:
            yield from self._tower(tower)
        for index, layer in enumerate(facts.encoder_layers):
            yield from self._layer(f"model.encoder.layers.{index}", layer)
        stack = "model.decoder.layers" if facts.encoder_layers else "model.layers"
        for index, layer in enumerate(facts.layers):
            yield from self._layer(f"{stack}.{index}", layer)
        for parameter in ("weight", "bias")[: facts.final_norms]:
            yield self._plain("", Plain(f"model.norm.{parameter}", (self._hidden,)))
        if facts.drafter is not None:
            yield from self._drafter(facts.drafter)
        if facts.runner == "generate" and not facts.tied_embeddings:
            yield from self._table(HEAD, facts.vocabulary)
        if facts.labels:
            yield from self._task_head(facts.labels)

    def _tower(self, tower: Tower) -> Iterator[Tensor]:
        unread = min(tower.unread_parameters, tower.parameters or 0)
        for name, count in ((tower.modality, (tower.parameters or 0) - unread), (f"unread.{tower.modality}", unread)):
            if count:
                yield self._plain("", Plain(f"visual.{name}", (count,)))

    def _task_head(self, labels: int) -> Iterator[Tensor]:
        """RoBERTa's has a dense layer before the scores."""
        if "Roberta" not in self._facts.architecture:
            yield self._plain("", Plain("score.weight", (labels, self._hidden)))
            return
        for name, rows in (("dense", self._hidden), ("out_proj", labels)):
            yield self._plain("", Plain(f"classifier.{name}.weight", (rows, self._hidden)))
            yield self._plain("", Plain(f"classifier.{name}.bias", (rows,)))

    def _extra(self) -> Iterator[Tensor]:
        """What stands outside of the layers; of that, tables that vLLM pads by their names."""
        rest = self._facts.extra_parameters
        for name, shape in _named_tables(self._facts):
            if 0 < prod(shape) <= rest:
                rest -= prod(shape)
                yield self._plain("", Plain(name, shape))
        if rest:
            yield self._plain("", Plain("model.extra", (rest,)))

    def _layer(self, prefix: str, layer: Layer) -> Iterator[Tensor]:
        if layer not in self._modules:
            self._modules[layer] = tuple(layer_modules(layer, self._hidden))
        for module in self._modules[layer]:
            if isinstance(module, Matrix):
                yield from self._matrix(prefix, module)
            else:
                yield self._plain(f"{prefix}.", module)

    def _drafter(self, drafter: Drafter) -> Iterator[Tensor]:
        """Where the config counts ``num_nextn_predict_layers`` they are numbered on, else they stand apart (Qwen)."""
        if "num_nextn_predict_layers" not in self._facts.raw:
            for index in range(drafter.layers):
                yield from self._drafted(f"mtp.layers.{index}", drafter)
            yield from self._junction("mtp", ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"), "fc")
            return
        for index in range(len(self._facts.layers), len(self._facts.layers) + drafter.layers):
            prefix = f"model.layers.{index}"
            yield from self._drafted(prefix, drafter)
            yield from self._junction(prefix, ("enorm", "hnorm", "shared_head.norm"), "eh_proj")
            if self._facts.model_type in DRAFTERS_WITH_TABLES:
                yield from self._table(f"{prefix}.embed_tokens", self._facts.vocabulary)
                yield from self._table(f"{prefix}.shared_head.head", self._facts.vocabulary)

    def _drafted(self, prefix: str, drafter: Drafter) -> Iterator[Tensor]:
        if drafter.layer is not None:
            yield from self._layer(prefix, drafter.layer)

    def _junction(self, prefix: str, norms: tuple[str, ...], projection: str) -> Iterator[Tensor]:
        """Joins the last hidden state and the next token's embedding; never quantised."""
        for name in norms:
            yield self._norm(f"{prefix}.{name}")
        yield self._plain("", Plain(f"{prefix}.{projection}.weight", (self._hidden, 2 * self._hidden)))

    def _norm(self, name: str) -> Tensor:
        return self._plain("", Plain(f"{name}.weight", (self._hidden,)))

    def _table(self, name: str, rows: int) -> Iterator[Tensor]:
        """An embedding or a head: quantised in GGUF files, and where the checkpoint names it among its exceptions."""
        scheme = self._quantization
        if scheme is not None and scheme.method != "gguf":
            scheme = _override(scheme, name)
        for part in _parts(rows, self._hidden, scheme, self._dtype):
            yield _tensor(f"{name}.{part.suffix}", part.shape, part.dtype)

    def _matrix(self, prefix: str, matrix: Matrix) -> Iterator[Tensor]:
        name = f"{prefix}.{matrix.name}"
        for part in _parts(matrix.rows, matrix.columns, _scheme(self._quantization, name), self._dtype):
            yield Tensor(f"{name}.{part.suffix}", part.shape, part.dtype, part.bytes, matrix.copies)
        if matrix.bias:
            yield _tensor(f"{name}.bias", (matrix.rows,), self._dtype, matrix.copies)

    def _plain(self, prefix: str, plain: Plain) -> Tensor:
        return _tensor(prefix + plain.name, plain.shape, plain.dtype or self._dtype)


def _is_encoder(facts: ModelFacts) -> bool:
    return any(isinstance(layer.mixer, Attention) and layer.mixer.role == "encoder" for layer in facts.layers)


def _named_tables(facts: ModelFacts) -> Iterator[tuple[str, tuple[int, int]]]:
    """BERT's token types; Gemma 3n's and 4's embeddings for each layer. Rows and columns; zeros without one."""
    types = facts.raw.get("type_vocab_size")
    rows, width = facts.raw.get("vocab_size_per_layer_input"), facts.raw.get("hidden_size_per_layer_input")
    if isinstance(types, int) and _is_encoder(facts):
        yield "embeddings.token_type_embeddings.weight", (max(0, types), facts.hidden_size)
    if isinstance(rows, int) and isinstance(width, int):
        yield "model.embed_tokens_per_layer.weight", (max(0, rows), max(0, width) * len(facts.layers))


def _scheme(quantization: Quantization | None, name: str) -> Quantization | None:
    """How this module is stored; None: as it is."""
    if quantization is None:
        return None
    if quantization.ignored and compiled(quantization.ignored).match(name):
        return None
    other = _override(quantization, name)
    if other is not None:
        return other
    if quantization.experts_only and ".experts." not in name:
        return None
    return quantization


def _override(quantization: Quantization, name: str) -> Quantization | None:
    return next((other for patterns, other in quantization.overrides if compiled(patterns).match(name)), None)


@lru_cache(maxsize=1024)
def _parts(rows: int, columns: int, scheme: Quantization | None, dtype: str) -> tuple[Part, ...]:
    """Layers repeat: the same few matrices come a thousand times."""
    return stored(rows, columns, scheme, dtype)


def _tensor(name: str, shape: tuple[int, ...], dtype: str, count: int = 1) -> Tensor:
    return Tensor(name, shape, dtype, prod(shape) * ITEM_BYTES[dtype], count)
