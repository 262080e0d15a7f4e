"""What speculative decoding loads beside a model: prediction layers of its checkpoint, or a draft with its own.

Read in vLLM 0.32: ``v1/spec_decode/llm_base_proposer`` (what a draft has from the model it drafts for),
``models/llama_eagle`` and ``models/llama_eagle3``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from vllm_autofit.architecture import Attention, ModelFacts, Tensor
from vllm_autofit.demand import Term
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.buffers import ATTENTION_SCALES, rotary_tables
from vllm_autofit.memory.weights import prediction_weights, rank_weights
from vllm_autofit.values import Model

HIDDEN_STATES = 3
"""Of the model's layers that EAGLE 3 looks at, where its config doesn't list them (``models/llama_eagle3``)."""

JOINED = tuple(f"layers.0.self_attn.{name}_proj.weight" for name in "qkv")
"""Of EAGLE 3, what reads an embedding and a hidden state side by side."""

NOT_LOADED = {
    "eagle": frozenset({"embed_tokens", "lm_head", "norm"}),
    "eagle3": frozenset({"embed_tokens", "t2d"}),
}
"""Last parts of tensors' names that vLLM leaves out of EAGLE's drafts, whatever the checkpoint holds."""

ITEM_BYTES = 2
"""Of a draft's weights that are worked out from its config: 16 bits."""


def draft_weights(model: Model, deployment: Deployment) -> Term | None:
    """Bytes on the fullest rank of what drafts; None where nothing with weights does.

    All of a draft is on the last pipeline stage, which is taken for the fullest.
    """
    speculation = deployment.speculation
    assert model.facts is not None
    if speculation is None:
        return None
    if model.draft is not None and model.draft.facts is not None:
        return _own_checkpoint(model.draft, model.draft.facts, model.facts, deployment)
    if speculation.method == "mtp":
        return _prediction_layers(model, model.facts, deployment)
    return None


def _prediction_layers(model: Model, facts: ModelFacts, deployment: Deployment) -> Term:
    """Rotary tables, embedding and head are the model's own, but for the embedding of another stage."""
    found = prediction_weights(facts, model.tensors, deployment, exact=model.exact)
    drafter = facts.drafter
    if drafter is None or drafter.layer is None:
        return found
    attention = isinstance(drafter.layer.mixer, Attention)
    return replace(found, bytes=found.bytes + drafter.layers * attention * sum(ATTENTION_SCALES))


def _own_checkpoint(draft: Model, facts: ModelFacts, target: ModelFacts, deployment: Deployment) -> Term:
    """A draft is quantised as its own checkpoint says, and neither spread over stages nor given adapters."""
    method = deployment.speculation.method if deployment.speculation is not None else ""
    alone = replace(deployment, pipeline_parallel=1, quantization=None, lora_adapters=0, cpu_offload_bytes=0)
    tensors: Sequence[Tensor] = draft.tensors
    if method in NOT_LOADED:
        facts = _with_positions(facts, deployment.max_model_len)
        if draft.weights_source == "config":
            tensors = tuple(_made_eagle(tensors, facts, target, method))
        shared = deployment.pipeline_parallel == 1 and facts.hidden_size == target.hidden_size
        tensors = tuple(_loaded_eagle(tensors, facts, method, embedding=not shared))
    found = rank_weights(facts, tensors, alone, exact=draft.exact)
    common = rotary_tables(facts, alone) & rotary_tables(target, alone)
    return replace(found, bytes=found.bytes - sum(size for size, _settings in common))


def _with_positions(facts: ModelFacts, context: int) -> ModelFacts:
    """EAGLE's drafts get as many positions as the model has (``_maybe_override_draft_max_position_embeddings``)."""
    said = facts.raw.get("max_position_embeddings")
    if not isinstance(said, int) or said >= context:
        return facts
    return replace(facts, raw={**facts.raw, "max_position_embeddings": context})


def _loaded_eagle(tensors: Sequence[Tensor], facts: ModelFacts, method: str, *, embedding: bool) -> Iterator[Tensor]:
    """What vLLM loads of EAGLE's checkpoint, under names that say what each is.

    An embedding in a checkpoint is taken for a copy of the model's: EAGLE is trained with that one, and where the two
    are equal vLLM drops the draft's. Without ``embedding`` there is none, whatever the checkpoint holds.
    """
    for tensor in tensors:
        name = tensor.name.replace("midlayer.", "layers.0.")
        first_norm = method == "eagle" and name.endswith("layers.0.input_layernorm.weight")
        if not first_norm and name.removesuffix(".weight").rpartition(".")[2] not in NOT_LOADED[method]:
            yield replace(tensor, name=name)
    if embedding:
        yield _tensor("embed_tokens.weight", facts.vocabulary, facts.hidden_size)


def _made_eagle(tensors: Sequence[Tensor], facts: ModelFacts, target: ModelFacts, method: str) -> Iterator[Tensor]:
    """The checkpoint of a draft from its config alone: the plain model's ``tensors``, changed as EAGLE changes it."""
    hidden = facts.hidden_size
    if method == "eagle":
        yield from tensors
        yield _tensor("fc.weight", hidden, 2 * hidden)
        return
    vocabulary = _whole(facts.raw.get("draft_vocab_size")) or facts.vocabulary
    for tensor in tensors:
        if tensor.name.endswith(JOINED):
            yield replace(tensor, shape=(tensor.shape[0], 2 * tensor.shape[1]), bytes=2 * tensor.bytes)
        elif "lm_head" not in tensor.name:
            yield tensor
    for layer in range(len(facts.layers)):
        yield _tensor(f"layers.{layer}.hidden_norm.weight", hidden)
    seen = facts.raw.get("eagle_aux_hidden_state_layer_ids")
    states = len(seen) if isinstance(seen, list) else HIDDEN_STATES
    yield _tensor("fc.weight", hidden, states * (_whole(facts.raw.get("target_hidden_size")) or hidden))
    yield _tensor("lm_head.weight", vocabulary, hidden)
    if vocabulary != target.vocabulary:
        yield Tensor("d2t", (vocabulary,), "I64", 8 * vocabulary)


def _tensor(name: str, rows: int, columns: int | None = None) -> Tensor:
    shape = (rows,) if columns is None else (rows, columns)
    return Tensor(name, shape, "BF16", ITEM_BYTES * rows * (columns or 1))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
