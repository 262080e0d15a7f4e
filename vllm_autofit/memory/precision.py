"""Bytes of a tensor once vLLM has loaded it: which dtype it is kept in, and what quantisation makes of it.

Read in vLLM 0.32 (``layers/quantization``, the models' own ``params_dtype``). Everything that isn't quantised is kept
in the dtype the model runs in, but for the few tensors named here.
"""

from __future__ import annotations

from math import prod

from vllm_autofit.architecture import ModelFacts, Tensor
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.sharding import WHOLE_TOWERS, Role

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

FLOAT32_MODULES = frozenset({"A_log", "e_score_correction", "expert"})
"""Decays of states, and the biases ``e_score_correction_bias`` and ``expert_bias`` of routers."""

FLOAT32_PARAMETERS = frozenset({"k_scale", "v_scale", "absmax", "quant_map"})
"""Scales of attention, and of bitsandbytes."""

FLOAT32_ROUTERS = frozenset(
    {"afmoe", "ernie4_5_moe", "glm4_moe", "hy_v3", "longcat_flash", "minimax_m2", "param2moe", "step3p5"}
)
"""Model types whose router vLLM 0.32 keeps in float32 (``params_dtype`` or ``torch.float32`` in ``models/``)."""

GROUP_SCALES = frozenset({"gptq", "awq", "compressed-tensors"})
"""Methods whose scales per group are kept in the dtype the model runs in; other scales in float32."""

LOAD_TIME_BITS = {
    "fp8": 8.0,
    "fp8_per_tensor": 8.0,
    "fp8_per_channel": 8.0,
    "fp8_per_block": 8.0 + 32 / (128 * 128),
    "mxfp8": 8.0 + 8 / 32,
    "mxfp4": 4.0 + 8 / 32,
    "int8_per_channel_weight_only": 8.0,
    "experts_int8": 8.0,
    "bitsandbytes": 4.0 + 32 / 64,
    "nvfp4_per_token": 4.0 + 8 / 16,
}
"""Bits of a weight that is quantised while it is loaded, its scales included. bitsandbytes: NF4 in blocks of 64 with a
float32 scale each (vLLM expands doubly quantised ones: ``bitsandbytes_loader._dequantize_dq``, 0.22)."""

EXPERTS_ONLY = frozenset({"experts_int8", "int8_per_channel_weight_only", "nvfp4_per_token"})
"""Of these, those that leave all but experts as they are (0.32 ``config/quantization.py``: no ``linear``)."""

TORCH_TOWERS = ("gemma3n", "gemma4")
"""Model types whose towers are transformers' own modules, which vLLM doesn't quantise while loading (0.32
``gemma4_mm``: no kernel takes their width of 4304)."""


def kept_bytes(tensor: Tensor, what: Role, facts: ModelFacts, deployment: Deployment) -> int:
    """Bytes of a whole tensor in the dtype that vLLM keeps it in; 0 where vLLM drops it."""
    stored = FLOAT_BYTES.get(tensor.dtype)
    if _dropped(what, facts, deployment):
        return 0
    if stored is None:
        return tensor.bytes * 4 if what.parameter == "absmax" else tensor.bytes
    if _quantised_at_load(tensor, what, facts, deployment):
        return prod(tensor.shape) * int(LOAD_TIME_BITS[str(deployment.quantization)]) // 8
    return tensor.bytes // stored * _float_bytes(tensor, what, facts, deployment)


def load_time_scale_bytes(tensor: Tensor, what: Role, facts: ModelFacts, deployment: Deployment) -> int:
    """The scales that quantisation while loading makes of a tensor."""
    if tensor.dtype not in FLOAT_BYTES or not _quantised_at_load(tensor, what, facts, deployment):
        return 0
    return round(prod(tensor.shape) * (LOAD_TIME_BITS[str(deployment.quantization)] % 1) / 8)


def dequantised_bytes(tensor: Tensor, what: Role, facts: ModelFacts, deployment: Deployment) -> int:
    """What latent attention keeps beside a quantised ``kv_b_proj``: its halves ``W_UK_T`` and ``W_UV``, dequantised."""
    if what.module != "kv_b_proj" or what.parameter not in ("weight", "qweight", "weight_packed"):
        return 0
    if tensor.dtype in FLOAT_BYTES and not _quantised_at_load(tensor, what, facts, deployment):
        return 0
    bits = facts.quantization.weight_bits if facts.quantization is not None else 8
    stored_bits = 16 if tensor.dtype in FLOAT_BYTES else bits
    return round(tensor.bytes * 8 / stored_bits * deployment.element_bytes)


def _float_bytes(tensor: Tensor, what: Role, facts: ModelFacts, deployment: Deployment) -> int:
    running = deployment.element_bytes
    if what.module in FLOAT32_MODULES or what.parameter in FLOAT32_PARAMETERS:
        return 4
    if what.part == "task":
        return 4  # heads for pooling run in float32 (vLLM's ``head_dtype``)
    if what.module in ("gate", "router") and facts.model_type in FLOAT32_ROUTERS:
        return 4
    if what.module == "k_norm" and tensor.shape == (_index_head_size(facts),):
        return 4  # the sparse indexer's
    if "scale" in what.parameter and facts.quantization is not None:
        grouped = facts.quantization.method in GROUP_SCALES and facts.quantization.weight_bits < 8
        return running if grouped else 4
    return running


def _index_head_size(facts: ModelFacts) -> int:
    latent = getattr(facts.layers[0].mixer, "latent", None) if facts.layers else None
    return latent.index_head_size if latent is not None else 0


def _quantised_at_load(tensor: Tensor, what: Role, facts: ModelFacts, deployment: Deployment) -> bool:
    if facts.quantization is not None or deployment.quantization not in LOAD_TIME_BITS:
        return False
    if deployment.quantization in EXPERTS_ONLY:
        return what.part == "layer" and what.split == "experts" and _is_matrix(tensor, what)
    if what.part == "tower":
        return (
            what.split != "whole"
            and not facts.model_type.startswith(TORCH_TOWERS)
            and (what.module in WHOLE_TOWERS or _is_matrix(tensor, what))
        )
    if what.part != "layer" or not _is_matrix(tensor, what):
        return False
    return what.split not in ("whole", "channels") and what.module != "conv1d"


def _is_matrix(tensor: Tensor, what: Role) -> bool:
    return len(tensor.shape) >= 2 and what.parameter != "bias"


def _dropped(what: Role, facts: ModelFacts, deployment: Deployment) -> bool:
    """Of bitsandbytes: what expanded scales are made of. Of GPTQ: indices without act-order, and on GPUs symmetric zero
    points, which their kernels empty once loaded."""
    if what.parameter.startswith("nested_"):
        return True
    if facts.quantization is None or facts.quantization.method != "gptq":
        return False
    if what.parameter == "g_idx":
        raw = facts.raw.get("quantization_config")
        return not (isinstance(raw, dict) and raw.get("desc_act"))
    return what.parameter == "qzeros" and deployment.device != "cpu" and not facts.quantization.zero_points
