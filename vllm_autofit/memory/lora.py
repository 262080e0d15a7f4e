"""What serving LoRA adapters adds to the weights of a rank: buffers for ``max_loras`` adapters, made at start."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_autofit.architecture import Tensor
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.sharding import Role


def adapter_bytes(tensor: Tensor, what: Role, share: float, deployment: Deployment) -> int:
    """Bytes of the stacked A and B matrices of one linear layer on a rank.

    vLLM 0.32 (``lora/layers``) makes them for every linear layer of the language model, experts too: A maps the layer's
    inputs on this rank to the adapter's rank, B that to the layer's outputs on this rank.

    Args:
        share: of the layer that the rank keeps.
    """
    if deployment.lora_adapters == 0 or what.part != "layer" or what.module == "conv1d":
        return 0
    if what.parameter not in ("weight", "qweight", "weight_packed", "") or len(tensor.shape) < 2:
        return 0
    experts, outputs, inputs = _sizes(tensor.shape)
    if what.split == "experts" and deployment.expert_parallel:
        experts *= share
    elif what.split == "inputs" or (what.split == "experts" and what.module in ("down_proj", "w2", "output_linear")):
        inputs *= share
    else:
        outputs *= share
    elements = deployment.lora_adapters * deployment.lora_rank * experts * (inputs + outputs)
    return round(elements * deployment.element_bytes)


def _sizes(shape: Sequence[int]) -> tuple[float, float, float]:
    """Experts, outputs and inputs."""
    return (float(shape[0]) if len(shape) > 2 else 1.0), float(shape[-2]), float(shape[-1])
