"""What one rank keeps of one tensor of a checkpoint, by the tensor's name: vLLM 0.32's model definitions as rules.

Nearly every model is made of the same few layers (``model_executor/layers/linear.py``): column-parallel layers split
their outputs over the tensor-parallel ranks, row-parallel ones their inputs, and what isn't a large matrix is on every
rank. So a matrix is taken to be split unless its name says otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from vllm_autofit.architecture import Attention, Layer, State, Tensor
from vllm_autofit.deployment import Deployment

VOCABULARY_PADDING = 64
"""vLLM 0.32 ``vocab_parallel_embedding.DEFAULT_VOCAB_PADDING_SIZE``."""

Part = Literal["layer", "embedding", "head", "start", "end", "task", "tower", "draft", "unused", "everywhere"]
"""Where in a model a tensor belongs: ``start`` and ``end`` are the pipeline's, ``task`` is a head for pooling."""

Split = Literal["whole", "outputs", "inputs", "keys", "fused", "vocabulary", "experts", "groups", "channels", "evenly"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYER_LISTS = _names("layers h block blocks layer")
TOWERS = _names(
    """
    visual vision_tower vision_model vision_encoder vit audio_tower audio_model sound_encoder multi_modal_projector
    mm_projector vision_language_adapter patch_merger mlp1 aligner embed_vision embed_audio resampler vpm apm
    audio_projection_layer audio_projector vision_projector image_newline view_seperator img_projection qformer
    language_projection vision_adapter
    """
)
WHOLE_TOWERS = _names("image audio video")
"""A tower and its projector as one tensor: what a config alone can tell of them."""

TORCH_TOWERS = frozenset({"InternVLForConditionalGeneration", "InternS1ForConditionalGeneration"})
TORCH_MODULES = _names("attention multi_modal_projector") | WHOLE_TOWERS
"""What vLLM 0.32 makes of torch's own layers in these towers (``models/interns1_vit``), which aren't split."""

FILES = _names("bin pt pth gguf") | {"missing files"}
"""Endings of files whose size stands in for tensors: shared out evenly among all ranks."""

DRAFTS = _names("mtp mtp_layers mtp_block mtp_emb mtp_emb_norm mtp_hidden_norm mtp_linear_proj")
EMBEDDINGS = _names(
    """
    embed_tokens wte embed_in word_embeddings tok_embeddings embeddings embedding embed_tokens_per_layer
    token_type_embeddings position_embeddings
    """
)
"""Split by rows, once padded: BERT's positions and token types too."""

PLAIN_TABLES = frozenset({"whisper"})
"""Model types whose embeddings are torch's own: neither split nor padded (vLLM 0.32 ``models/whisper``)."""

HEADS = _names("lm_head embed_out output head")
POSITIONS = _names("wpe embed_positions")
TASK_HEADS = _names("score classifier pooler")
UNUSED = _names("head probe")
"""Of vision towers: SigLIP's pooling, which no language model looks at."""

COMPUTED = _names("inv_freq cos_cached sin_cached")
"""Of rotary embeddings: vLLM makes its own (0.32 ``AutoWeightsLoader.REMOVE_UNUSED_ROTARY_EMBEDS_MAPPER``)."""

MASKED = _names("attn attention")
"""Modules whose ``bias`` of two dimensions or more is a causal mask: GPT-2, GPT-J, GPT-NeoX, StarCoder 1."""

INPUT_SPLIT = _names(
    """
    o_proj out_proj down_proj w2 fc2 dense_4h_to_h c_proj wo x_proj dense linear_out output_linear fc_out attn_out
    ff_out linear_2
    """
)
"""Row-parallel layers: their inputs are split, their biases are not."""

WHOLE = _names(
    """
    gate router shared_expert_gate q_a_proj kv_a_proj_with_mqa g_a_proj f_a_proj indexer patch_embed
    conv1 conv2 merging_layer mm_input_projection fc1_latent_proj fc2_latent_proj per_layer_input_gate
    per_layer_projection altup eh_proj
    """
)
"""Layers that every rank keeps whole."""

CHANNELS = _names("A_log D dt_bias sinks")
"""Vectors with one number per head or channel, split with these."""

PARAMETERS = _names(
    """
    weight bias qweight qzeros scales g_idx weight_scale weight_scale_inv weight_scale_2 input_scale weight_packed
    weight_shape weight_zero_point weight_global_scale input_global_scale weight_g_idx k_scale v_scale
    absmax nested_absmax quant_map nested_quant_map
    """
)

FUSED = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "query": "qkv",
    "key": "qkv",
    "value": "qkv",
    "q_a_proj": "qkv_a",
    "kv_a_proj_with_mqa": "qkv_a",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "w1": "gate_up",
    "w3": "gate_up",
    "in_proj_qkv": "in_proj_qkvz",
    "in_proj_z": "in_proj_qkvz",
    "in_proj_b": "in_proj_ba",
    "in_proj_a": "in_proj_ba",
}
"""Modules of a checkpoint that vLLM makes one module of (``packed_modules_mapping`` of its models)."""

_NUMBER = re.compile(r"\.(\d{1,9})\.")
_SUFFIX = re.compile(r"_(bias|blocks|scales|scale|weight|scale_inv)$")


class Name(NamedTuple):
    """A tensor's name cut at its numbers: ``model.layers``, 3, ``mlp.experts``, ``gate_proj.weight``."""

    before: str
    number: int | None
    between: str
    after: str


def cut(name: str) -> Name:
    """``name`` in pieces that repeat from layer to layer."""
    pieces = _NUMBER.split(name, 2)
    if len(pieces) == 1:
        return Name(name, None, "", "")
    return Name(pieces[0], int(pieces[1]), pieces[2], pieces[4] if len(pieces) == 5 else "")


@dataclass(frozen=True)
class Role:
    """What a tensor is to vLLM."""

    part: Part
    split: Split
    module: str
    """Last module of its name, without what fused expert tensors append to theirs."""
    parameter: str
    """``weight``, ``bias``, ``scales`` ...; empty where the name ends with a module's."""


@lru_cache(maxsize=16384)
def role(before: str, between: str, after: str, dimensions: int) -> Role:
    """What the tensor of this (cut) name is."""
    tokens = [token for token in f"{before}.{between}.{after}".split(".") if token]
    parameter = tokens[-1] if tokens and tokens[-1] in PARAMETERS else ""
    modules = tokens[:-1] if parameter else tokens
    last = modules[-1] if modules else ""
    module = _SUFFIX.sub("", last)
    if not parameter and module != last:
        parameter = last[len(module) + 1 :]
    in_layer = bool(between) and before.rpartition(".")[2] in LAYER_LISTS
    part = _part(frozenset(tokens), in_layer, module)
    if module in COMPUTED or (module in MASKED and parameter == "bias" and dimensions > 1):
        part = "unused"
    return Role(part, _split(part, modules, module, parameter, dimensions), module, parameter)


def fused(path: str, what: Role) -> str:
    """``path``, a name without its numbers, as vLLM names what it makes of it: experts of a layer are stacked too."""
    return path.replace(what.module, FUSED.get(what.module, what.module))


def _part(tokens: frozenset[str], in_layer: bool, module: str) -> Part:
    if tokens & TOWERS:
        return "unused" if tokens & UNUSED else "tower"
    if tokens & DRAFTS:
        return "draft"
    if in_layer:
        return "layer"
    if tokens & TASK_HEADS:
        return "task"
    if module in POSITIONS:
        return "start"
    if module in HEADS or "lm_head" in tokens:
        return "head"
    if module in EMBEDDINGS:
        return "embedding"
    return "end" if "norm" in module or module == "ln_f" else "everywhere"


def _split(part: Part, modules: list[str], module: str, parameter: str, dimensions: int) -> Split:
    if part == "embedding" or part == "head":
        return "vocabulary"
    if part == "start" or part == "task":
        return "whole"
    if part == "tower" and module in WHOLE_TOWERS:
        return "outputs"
    if part == "everywhere" and module in FILES:
        return "evenly"
    if "experts" in modules or ("block_sparse_moe" in modules and module in ("input_linear", "output_linear")):
        return "experts"
    if module in CHANNELS:
        return "channels"
    if module == "norm" and modules[-2:-1] in (["mixer"], ["mamba"]):
        return "channels"  # Mamba 2's gated norm goes over the inner width
    if module == "fc" and part == "everywhere":
        return "whole"  # EAGLE's; that of prediction layers is split
    if not WHOLE.isdisjoint([*modules, module]) or "norm" in module.lower() or module.startswith("ln_"):
        return "whole"
    if dimensions < 2 and parameter != "bias" and parameter not in PARAMETERS:
        return "whole"
    if part == "tower" and (dimensions > 2 or "pos" in module):
        return "whole"
    if module in INPUT_SPLIT and modules[-2:-1] != ["intermediate"]:
        return "inputs"
    if module in ("k_proj", "v_proj"):
        return "keys"
    if module in ("qkv_proj", "query_key_value", "W_pack", "Wqkv", "wqkv", "c_attn"):
        return "fused"
    return "groups" if module in ("in_proj", "conv1d") else "outputs"


def rank_share(tensor: Tensor, what: Role, layer: Layer | None, architecture: str, deployment: Deployment) -> float:
    """The share of the tensor that a rank keeps; not for what is split by vocabulary."""
    ranks = deployment.tensor_parallel
    if what.split == "evenly":
        return 1 / (ranks * deployment.pipeline_parallel)
    if architecture in TORCH_TOWERS and what.part == "tower" and not TORCH_MODULES.isdisjoint(tensor.name.split(".")):
        return 1.0
    if what.split == "experts":
        return _expert_share(tensor, what, deployment)
    if ranks == 1 or what.split == "whole" or _is_scalar(tensor):
        return 1.0
    mixer = layer.mixer if layer is not None else None
    if what.split == "inputs":
        return 1.0 if _is_per_output(tensor, what) else 1 / ranks
    if what.split in ("keys", "fused") and isinstance(mixer, Attention) and mixer.kv_heads and mixer.latent is None:
        kept = max(1, mixer.kv_heads // ranks)
        if what.split == "keys":
            return kept / mixer.kv_heads
        return (mixer.heads / ranks + 2 * kept) / (mixer.heads + 2 * mixer.kv_heads)
    if what.split == "groups":
        return _grouped_share(tensor, layer, ranks)
    return 1 / ranks


def _is_scalar(tensor: Tensor) -> bool:
    return max(tensor.shape, default=1) == 1


def _is_per_output(tensor: Tensor, what: Role) -> bool:
    """One number per output: what a row-parallel layer doesn't split."""
    if what.parameter in ("g_idx", "weight_g_idx"):
        return False
    scales = what.parameter not in ("weight", "") and tensor.shape[-1] == 1
    return len(tensor.shape) == 1 or what.parameter == "bias" or scales


def _expert_share(tensor: Tensor, what: Role, deployment: Deployment) -> float:
    """vLLM divides experts, or each expert's inner width, over all ranks of the tensor- and data-parallel groups."""
    ranks = deployment.tensor_parallel * deployment.data_parallel * deployment.prefill_context_parallel
    if deployment.expert_parallel or ranks == 1:
        return 1 / ranks
    down = what.module in ("down_proj", "w2", "output_linear", "fc2", "linear_2")
    if _is_scalar(tensor) or (down and (what.parameter == "bias" or _is_per_output(tensor, what))):
        return 1.0
    return 1 / ranks


def _grouped_share(tensor: Tensor, layer: Layer | None, ranks: int) -> float:
    """Mamba 2: a single group of B and C is on every rank, all else is split by heads."""
    states = [each for each in (layer.mixer, layer.parallel) if isinstance(each, State)] if layer is not None else []
    if not states or states[0].kind != "mamba2" or states[0].groups % ranks == 0:
        return 1 / ranks
    rows = max(1, tensor.shape[0])
    shared = min(rows, 2 * states[0].groups * states[0].state_size)
    return ((rows - shared) / ranks + shared) / rows


def padded(rows: int) -> int:
    """Rows of a vocabulary as vLLM pads it."""
    return -(-rows // VOCABULARY_PADDING) * VOCABULARY_PADDING


def stage_sizes(layers: int, stages: int) -> list[int]:
    """How many layers each pipeline stage gets: vLLM 0.32 ``distributed.utils.get_pp_indices``."""
    counts = [layers // stages] * stages
    for place in range(2, layers % stages + 2):
        counts[-place] += 1
    return counts


def stage_of_layers(layers: int, stages: int) -> list[int]:
    """The pipeline stage of each layer."""
    return [stage for stage, count in enumerate(stage_sizes(layers, stages)) for _ in range(count)]
