"""What serving LoRA adapters adds to the weights of a rank: buffers for ``max_loras`` adapters, made at start.

vLLM 0.32 (``lora/layers``) makes two matrices for each adapter and linear layer of the language model: A maps the
layer's inputs on this rank to the adapter's rank, B that to the layer's outputs on this rank. How the checkpoint stores
the layer doesn't matter, so they are counted from the facts. Left out, being small: the index tables of
``lora/punica_wrapper`` (48 bytes for each of ``max_num_batched_tokens``, 24 for each of ``max_num_seqs``) and
classification heads. Not looked at: ``fully_sharded_loras``, ``target_modules``, ``lora_dtype``, adapters of towers
(``enable_tower_connector_lora``) and ``enable_moe_shared_loras``; adapters beyond ``max_loras`` are in host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vllm_autofit.architecture import Experts, Layer, ModelFacts, State, Tensor
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.buffers import TRANSFORMERS_BACKEND
from vllm_autofit.memory.checkpoint import tensors_from_facts
from vllm_autofit.memory.sharding import FUSED, Role, cut, padded, rank_share, role, stage_of_layers
from vllm_autofit.memory.stages import embedding_stages, head_stages

TOKEN_ID_BYTES = 8
"""Of the ids by which several ranks' logits are put in order (``LogitsProcessorWithLoRA``): torch.long."""
FLAG_BYTES = 4
"""Says of an adapter, or of none, whether it changes a layer's experts (``FusedMoEWithLoRA``): torch.int."""

EMBEDDING_AND_HEAD = frozenset(
    """
    apertus deci ernie4_5 exaone exaone4 exaone_moe falcon_h1 granite granite_swa granitemoe granitemoe_swa
    granitemoehybrid granitemoeshared internlm3 jamba lfm2 lfm2_moe llama llama4 llama_bidirec mixtral nemotron
    nemotron-nas nemotron_h nemotron_h_puzzle phi3 phimoe qwen3 qwen3_5 qwen3_5_moe qwen3_moe qwen3_omni qwen3_omni_moe
    qwen3_vl qwen3_vl_moe solar telechat3
    """.split()  # noqa: SIM905
)
"""Model types whose classes in vLLM 0.32 name both in ``embedding_modules``. It is up to each class: Llama's does,
Mistral's takes it back, Qwen2's and Gemma's never did."""

EMBEDDING = frozenset({"cohere", "cohere2"})
"""Model types that name the embedding alone there, as does whatever runs on transformers' own code."""

OTHER_EMBEDDING_NAMES = frozenset({"GPTNeoXForCausalLM", "GPTBigCodeForCausalLM"})
"""Of what runs on transformers' own code: their embedding isn't called ``embed_tokens`` and so has no adapters."""

ONE_ADAPTER = {
    "qkv": frozenset(
        "bailing_moe bailing_moe_v2 chatglm gpt_bigcode gpt_neox internlm2 modernbert phi3 phi4mm".split()  # noqa: SIM905
    ),
    "gate_up": frozenset({"phi3", "phi4mm", "chatglm", "glm", "glm4v", "glm_ocr", "granitemoehybrid", "modernbert"}),
    "in_proj_qkvz": frozenset({"qwen3_next"}),
    "in_proj_ba": frozenset({"qwen3_next"}),
    "experts": frozenset({"gpt_oss", "qwen3_vl_moe", "qwen3_5_moe", "qwen3_omni_moe"}),
}
"""Model types whose adapters have one pair of matrices for what vLLM 0.32 fuses, where others have one for each part
(``packed_modules_mapping``, and ``is_3d_moe_weight`` for the experts' gate and up projections)."""
FIRST_PARTS = frozenset({"q_proj", "gate_proj", "in_proj_qkv", "in_proj_b"})


def stage_adapters(facts: ModelFacts, deployment: Deployment) -> list[list[int]]:
    """Bytes of each matrix on a rank of each pipeline stage; nothing where LoRA is off."""
    stages = deployment.pipeline_parallel
    held: list[list[int]] = [[] for _ in range(stages)]
    if deployment.lora_adapters == 0:
        return held
    stage_of_layer = stage_of_layers(len(facts.layers), stages) or [0]
    described = replace(facts, quantization=None, drafter=None, towers=())
    for tensor in tensors_from_facts(described):
        before, number, between, after = cut(tensor.name)
        what = role(before, between, after, len(tensor.shape))
        if number is None or not _is_linear(tensor, what):
            continue
        layer = facts.layers[number] if number < len(facts.layers) else None
        if not _takes_adapters(what, layer):
            continue
        sizes = [_bytes(elements, deployment) for elements in _elements(tensor, what, layer, facts, deployment)]
        held[stage_of_layer[min(number, len(stage_of_layer) - 1)]] += sizes
    for stage, layer in zip(stage_of_layer, facts.layers, strict=False):
        if isinstance(layer.ffn, Experts):
            held[stage].append(FLAG_BYTES * (deployment.lora_adapters + 1))
    for stage, sizes in _tables(facts, deployment):
        held[stage] += sizes
    return held


def _bytes(elements: float, deployment: Deployment) -> int:
    """Of one matrix of all adapters; ``elements`` by which the rank is multiplied."""
    return round(elements * deployment.lora_rank * deployment.lora_adapters * deployment.element_bytes)


def _tables(facts: ModelFacts, deployment: Deployment) -> Iterator[tuple[int, list[int]]]:
    """Those of embedding and head, by stage. vLLM splits neither among ranks; tied ones have their own each."""
    model_type = facts.model_type.removesuffix("_text")
    on_transformers = facts.architecture in TRANSFORMERS_BACKEND
    both = model_type in EMBEDDING_AND_HEAD and not on_transformers
    embedding = both or model_type in EMBEDDING or (on_transformers and facts.architecture not in OTHER_EMBEDDING_NAMES)
    table = [_bytes(facts.vocabulary, deployment), _bytes(facts.hidden_size, deployment)]
    if embedding:
        for stage in embedding_stages(facts, deployment.pipeline_parallel):
            yield stage, table
    if both and facts.runner == "generate":
        ids = TOKEN_ID_BYTES * padded(facts.vocabulary) if deployment.tensor_parallel > 1 else 0
        for stage in head_stages(facts, deployment.pipeline_parallel):
            yield stage, [*table, ids]


def _is_linear(tensor: Tensor, what: Role) -> bool:
    """Convolutions over time are linear layers to vLLM: channels by width of the kernel."""
    return what.part == "layer" and what.parameter == "weight" and len(tensor.shape) > 1


def _takes_adapters(what: Role, layer: Layer | None) -> bool:
    """All but the router of experts that aren't gated (``is_non_gated_moe``: Nemotron-H)."""
    ungated = layer is not None and isinstance(layer.ffn, Experts) and not layer.ffn.gated
    return not (what.module == "gate" and ungated)


def _elements(
    tensor: Tensor, what: Role, layer: Layer | None, facts: ModelFacts, deployment: Deployment
) -> tuple[float, float]:
    """Inputs of all A and outputs of all B on a rank."""
    share = rank_share(tensor, what, layer, facts.architecture, deployment)
    count, outputs, inputs = float(tensor.count), float(tensor.shape[0]), float(tensor.shape[-1])
    if what.split == "experts" and deployment.expert_parallel:
        count *= share
    elif what.split == "inputs" or (what.split == "experts" and what.module == "down_proj"):
        inputs *= share
    else:
        outputs *= share
    return count * inputs * _slices(what, layer, facts, deployment), count * outputs


def _slices(what: Role, layer: Layer | None, facts: ModelFacts, deployment: Deployment) -> int:
    """How many A there are for this matrix: vLLM makes one for each of the parts that it cuts the outputs into."""
    fused = "experts" if what.split == "experts" else FUSED.get(what.module, "")
    if facts.model_type.removesuffix("_text") in ONE_ADAPTER.get(fused, ()):
        return 1 if what.module in FIRST_PARTS or what.module == "down_proj" else 0
    states = [each for each in (layer.mixer, layer.parallel) if isinstance(each, State)] if layer is not None else []
    kind = states[0].kind if states else ""
    if kind == "mamba2" and states[0].groups % deployment.tensor_parallel == 0:
        return {"in_proj": 5, "conv1d": 3}.get(what.module, 1)  # gate, inner, B, C, time step; inner, B, C
    if (kind, what.module) in (("short_conv", "in_proj"), ("gated_delta_net", "in_proj_qkv")):
        return 3
    return 1
