"""What vLLM makes of experts stored in FP4: their sizes rounded up for a kernel, and copies beside them.

MXFP4 (gpt-oss) was read in ``layers/quantization/mxfp4.py`` of vLLM 0.11, 0.14, 0.22 and 0.32,
``layers/fused_moe/oracle/mxfp4.py`` of 0.22 to 0.32, and for the scales on Hopper in triton_kernels'
``layout_details/hopper_scale.py``. Published starts on one H100 agree to 0.02 GiB: gpt-oss-120b with Marlin (0.10.1,
65.97 GiB) and with Triton (0.11.0 and 0.14.1, 64.38), gpt-oss-20b with Triton (0.11.0, 13.47).

NVFP4 was read in ``layers/quantization/utils/flashinfer_fp4_moe.py`` of 0.14 and 0.32. One published start agrees to
0.02 GiB: Nemotron 3 Nano on two RTX 50 (0.13, 9.83).

Nothing published tells about either on data-center Blackwell, on Ampere or on AMD.
"""

from __future__ import annotations

from typing import NamedTuple

from vllm_autofit.architecture import Experts, Layer, ModelFacts, Tensor
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.allocator import rounded
from vllm_autofit.memory.precision import FLOAT_BYTES
from vllm_autofit.memory.sharding import Role

HOPPER, BLACKWELL, CONSUMER_BLACKWELL = 9, 10, 12
"""Major compute capabilities."""
SCALE_ROWS = 256
"""Triton on Hopper pads the outputs of its scales to this (8 warps)."""


class Kernel(NamedTuple):
    """What a backend asks of the weights, on a rank."""

    inner: int
    """The experts' inner width is rounded up to this."""
    hidden: int
    """So is the hidden size."""
    wide_bias: bool = False
    """Biases are kept in float32."""
    swizzled_scales: bool = False
    """Scales are kept in a layout of the kernel's own."""
    scales_twice: bool = False
    """As loaded too."""


MARLIN = Kernel(128, 256)


def nvfp4_kernel(gated: bool, deployment: Deployment) -> Kernel:
    """Of FlashInfer: scales are laid out in 128 rows, and weights are filled up to these."""
    capability = deployment.compute_capability
    trtllm = capability is not None and BLACKWELL <= capability[0] < CONSUMER_BLACKWELL and deployment.vllm >= (0, 32)
    return Kernel(64 if gated else 128, 256 if trtllm else 1)


def mxfp4_kernel(deployment: Deployment) -> Kernel:
    """The first choice on the device; Marlin, which pads most, where its compute capability isn't known."""
    version, capability = deployment.vllm, deployment.compute_capability
    if deployment.device == "cpu":
        return Kernel(32, 32)
    if deployment.device == "rocm":
        return Kernel(256, 256)
    if deployment.device == "xpu":
        return Kernel(64, 1)
    if capability is None or version <= (0, 10):
        return MARLIN  # 0.10 has no Triton kernels where torch is 2.7
    if capability[0] == HOPPER:
        return Kernel(64, 1, wide_bias=True, swizzled_scales=True, scales_twice=version < (0, 25))
    if BLACKWELL <= capability[0] < CONSUMER_BLACKWELL:
        return Kernel(256 if version < (0, 29) else 128, 256, wide_bias=True)
    return MARLIN


def loaded_share(tensor: Tensor, what: Role, layer: Layer | None, facts: ModelFacts, deployment: Deployment) -> float:
    """Bytes that a rank holds of an expert tensor, relative to its share of what is stored; 1 for all else."""
    scheme, experts = facts.quantization, layer.ffn if layer is not None else None
    if scheme is None or what.split != "experts" or not isinstance(experts, Experts):
        return 1.0
    if scheme.method == "mxfp4":
        asked = mxfp4_kernel(deployment)
    elif (scheme.weight_bits, scheme.scale_bits, scheme.group_size) == (4, 8, 16) and tensor.dtype not in FLOAT_BYTES:
        asked = nvfp4_kernel(experts.gated, deployment)
    else:
        return 1.0
    ranks = 1 if deployment.expert_parallel else deployment.tensor_parallel * deployment.data_parallel
    width, hidden = experts.width / ranks, experts.latent_size or facts.hidden_size
    inner = rounded(-(-experts.width // ranks), asked.inner) / width
    outer = rounded(hidden, asked.hidden) / hidden
    down = what.module == "down_proj"
    if what.parameter == "bias":
        return (outer if down else inner) * (2 if asked.wide_bias else 1)
    if "scale" not in what.parameter or not asked.swizzled_scales:
        return inner * outer
    outputs = hidden if down else round(2 * width * inner)
    return inner * outer * (rounded(outputs, SCALE_ROWS) / outputs + asked.scales_twice)
