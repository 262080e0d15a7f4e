"""What a start takes from a device outside of what vLLM asks for, and what should stay free after it.

vLLM asks for ``gpu_memory_utilization x total``. Two things must fit beside it:

- the start-up overhead: taken between our reading and vLLM's own check of the free memory, so the check sees less
  than we saw. On CUDA the context, NCCL and cuBLAS; on the CPU backend the processes themselves.
- the headroom: what vLLM doesn't profile and may need while it serves (sampler buffers, lazily loaded kernels,
  fragmentation), and on a host what the operating system and its users need.

The constants are last resorts. A record of a start of the same model on the same machine replaces the first.
"""

from __future__ import annotations

import re
from typing import Literal

from vllm_autofit.architecture import ModelFacts, State
from vllm_autofit.demand import Term
from vllm_autofit.deployment import Deployment
from vllm_autofit.memory.activations import (
    COUNTER_BYTES_PER_LOGIT,
    COUNTERS_COUNTED_SINCE,
    LOGIT_BYTES,
    forward_bytes,
    host_peak_bytes,
    sampler_bytes,
)
from vllm_autofit.memory.cuda_graphs import captured_pieces
from vllm_autofit.memory.runner import uses_second_runner
from vllm_autofit.units import GIB, MIB

CUDA_CONTEXT_BYTES = 650 * MIB
"""Total less free at vLLM's check on an otherwise idle device, published for vLLM 0.10 to 0.28: 0.60 GiB on H200,
80 GiB Hopper and B300, 0.56 on a 96 GiB Blackwell, 0.23 on A10 and 16 GiB cards. Upper end, rounded up."""

CUDA_COMMUNICATION_BYTES = 512 * MIB
"""A margin where ranks talk. At vLLM's check 0.60 GiB were missing from the total with 1, 2 and 4 ranks alike (H200 and
80 GiB Hopper, vLLM 0.10.2 and 0.26): most of what they take comes later and is in ``non_torch_bytes``."""

CPU_PROCESSES_BYTES = GIB
"""Engine core and one worker up to the worker's check when each is a process of its own: 0.80 GiB was the largest of
many starts with vLLM 0.32.0 on x86-64, rounded up."""

CPU_IN_PROCESS_BYTES = 256 * MIB
"""The same with VLLM_ENABLE_V1_MULTIPROCESSING=0 (vLLM 0.32.0, x86-64)."""

CUDA_HEADROOM_BYTES = 512 * MIB
CUDA_HEADROOM_FRACTION = 0.01
"""0.97 and 0.98 were served with on a 94.97 GiB device (1.3 GiB left beside the context); this keeps 1.4 there."""

CPU_HEADROOM_BYTES = 256 * MIB
CPU_HEADROOM_FRACTION = 0.01
"""On top of ``CPU_COUNTED_TWICE_BYTES``, which stay free as well."""

CPU_COUNTED_TWICE_BYTES = 512 * MIB
"""What the CPU worker holds already when it checks the free memory. It is no longer free then, and vLLM takes it off
once more when it sizes the KV cache, so that this much stays free: 0.53 GiB in two starts of ``vllm serve`` with
Qwen3-0.6B (vLLM 0.32.0, x86-64)."""

UNIFIED_START_BYTES = round(2.75 * GIB)
"""Integrated devices share the host's memory, and the processes count beside the context: vLLM 0.28 read 2.57 and
2.74 GiB less than was available before (GB10, llamastash/llamastash#81)."""

UNIFIED_HEADROOM_BYTES = GIB
UNIFIED_HEADROOM_FRACTION = 0.10
"""A host that runs out there hangs until somebody cuts its power, and what vLLM and its libraries take beyond what was
asked for comes from the same memory: on GB10 with 119 to 122 GiB, 0.70 and 0.80 have hung it (vllm-project/vllm#46307,
NVIDIA/dgx-spark-playbooks#97), 0.85 to 0.87 is what its users settle on. ``earlyoom`` kills below a tenth. The policy
``safe`` keeps a fifth, below which vLLM (0.24 on, ``_UMA_PRESSURE_THRESHOLD``) gives its own caches back."""

SAFE_FACTOR = 2
"""The policy ``safe`` doubles the headroom."""

CUDA_KERNELS_BYTES = 133 * MIB
"""Kernels loaded during the profile run, one rank, compute capability 9.0 and up: 0.13 GiB in every published start on
80 GiB Hopper, vLLM 0.11 to 0.17."""

CUDA_KERNELS_OLDER_BYTES = 50 * MIB
"""The same on Ampere, Ada and Turing: 0.02 to 0.06 GiB follow from the KV cache of nine starts on RTX 3090 (vLLM 0.17),
0.03 to 0.08 were printed by older ones."""

TRIAL_CAPTURE_BYTES = 117 * MIB
"""More where the first runner captures CUDA graphs on trial before vLLM looks: 0.25 GiB in all on H100, 0.23 on
B300."""

TRIAL_CAPTURE_SINCE = (0, 18)
TRIAL_CAPTURE_LATER_SINCE = (0, 27)
"""v1/worker/gpu_worker.py: inside of ``memory_profiling`` from 0.18 to 0.26, after it since 0.27."""

CUDA_FIRST_PEER_BYTES = 410 * MIB
CUDA_PEER_BYTES = 270 * MIB
"""For the second tensor-parallel rank, and for each further one, over NVLink: NCCL's channels and the buffers of custom
all-reduce, made on first use after vLLM has looked. Published: 0.41 GiB more at 2 ranks (H100), 1.97 at 8 (A100)."""

CUDA_PEER_BY_PCIE_BYTES = 16 * MIB
"""The same where ranks talk over PCIe: at most 0.1 GiB follows from the KV cache of four ranks on L40S (vLLM 0.19)."""

PCIE_ONLY = re.compile(r"GeForce|RTX|Quadro|\b(T4|L4|L20|L40S?|A2|A10G?|A16|A40)\b")
"""Devices whose peers are reached over PCIe. A device without a name counts as one with NVLink."""

DELTA_RULE_BYTES = 768 * MIB
"""Local memory of the kernels of gated delta rules: 0.7 to 0.85 GiB on H200, 80 GiB Hopper (0.10.2) and RTX 5090
(0.17)."""

DELTA_RULE_WARMED_BYTES = round(3.25 * GIB)
"""Since 0.18 the profile run warms up their prefill kernels, Triton's on all but Hopper: 3.56 GiB (RTX 5090, 0.18) and
2.98 (96 GiB Blackwell)."""

DELTA_RULE_WARMED_SINCE = (0, 18)

DELTA_RULES = ("gated_delta_net", "kimi_delta")

CPU_WORKER_BYTES = 720 * MIB
CPU_WORKER_HEAD_COPIES = 3
CPU_WORKER_ERROR = 0.2
"""Resident memory of a worker beside its weights when the KV cache is sized: code and compiled graphs, and, by the size
of the vocabulary's matrix, the head as packed for the CPU's kernels and what the heap keeps of loading. Seven starts of
random Qwen3 models with vLLM 0.32.0 (x86-64): 0.72 to 1.70 GiB, the same for 16, 128 and 256 sequences; the KV cache
comes out 5 % too small to 3 % too large."""

NON_TORCH_ERROR = 0.4
"""95 of 100 published starts were within it (docs/accuracy.md)."""


def startup_overhead(kind: Literal["cuda", "cpu", "unified"], ranks: int, processes: bool) -> int:
    """Bytes per device that a start takes before vLLM's check, when no start has been measured yet.

    Args:
        kind: the backend; ``unified`` is CUDA on an integrated device.
        ranks: worker processes that share the device (CPU) or talk to each other (CUDA).
        processes: whether engine core and workers are processes of their own.
    """
    if kind != "cpu":
        alone = CUDA_CONTEXT_BYTES if kind == "cuda" else UNIFIED_START_BYTES
        return alone + (CUDA_COMMUNICATION_BYTES if ranks > 1 else 0)
    if not processes:
        return CPU_IN_PROCESS_BYTES
    return CPU_PROCESSES_BYTES * ranks


def headroom(kind: Literal["cuda", "cpu", "unified"], total_bytes: int, policy: str) -> int:
    """Bytes of a device that should be free once vLLM is up, when the user named no number."""
    if kind == "cuda":
        base = CUDA_HEADROOM_BYTES + int(total_bytes * CUDA_HEADROOM_FRACTION)
    elif kind == "unified":
        base = max(UNIFIED_HEADROOM_BYTES, int(total_bytes * UNIFIED_HEADROOM_FRACTION))
    else:
        base = max(CPU_HEADROOM_BYTES, int(total_bytes * CPU_HEADROOM_FRACTION))
    return base * SAFE_FACTOR if policy == "safe" else base


def non_torch_bytes(facts: ModelFacts, deployment: Deployment) -> Term:
    """What a rank takes inside of what vLLM asks for, but outside of torch: kernels and communication buffers."""
    if deployment.device == "cpu":
        head = facts.vocabulary * facts.hidden_size * deployment.element_bytes
        copies = CPU_WORKER_HEAD_COPIES * head // deployment.tensor_parallel
        return Term(CPU_WORKER_BYTES + copies, CPU_WORKER_ERROR, "the worker process")
    major = (deployment.compute_capability or (9, 0))[0]
    total = CUDA_KERNELS_BYTES if major >= 9 else CUDA_KERNELS_OLDER_BYTES
    if _captures_before_vllm_looks(facts, deployment):
        total += TRIAL_CAPTURE_BYTES
    why = "kernels"
    if deployment.tensor_parallel > 1:
        total += peers_bytes(deployment)
        why += f", communication of {deployment.tensor_parallel} ranks"
    if has_delta_rule(facts):
        total += delta_rule_bytes(deployment)
        why += ", local memory of delta-rule kernels"
    return Term(total, NON_TORCH_ERROR, why)


def _captures_before_vllm_looks(facts: ModelFacts, deployment: Deployment) -> bool:
    """Whether CUDA graphs are captured on trial while memory is profiled."""
    on_trial = TRIAL_CAPTURE_SINCE <= deployment.vllm < TRIAL_CAPTURE_LATER_SINCE
    return on_trial and captured_pieces(facts, deployment) > 0 and not uses_second_runner(facts, deployment)


def peers_bytes(deployment: Deployment) -> int:
    """What talking to the other tensor-parallel ranks takes."""
    peers = deployment.tensor_parallel - 1
    if PCIE_ONLY.search(deployment.device_name):
        return peers * CUDA_PEER_BY_PCIE_BYTES
    return CUDA_FIRST_PEER_BYTES + (peers - 1) * CUDA_PEER_BYTES


def delta_rule_bytes(deployment: Deployment) -> int:
    """What the kernels of gated delta rules reserve by the time that vLLM looks."""
    hopper = (deployment.compute_capability or (0, 0))[0] == 9
    if deployment.vllm < DELTA_RULE_WARMED_SINCE or hopper:
        return DELTA_RULE_BYTES
    return DELTA_RULE_WARMED_BYTES


def has_delta_rule(facts: ModelFacts) -> bool:
    """Whether a layer is a gated delta rule (Qwen3-Next, Qwen3.5, Kimi Linear)."""
    return any(isinstance(layer.mixer, State) and layer.mixer.kind in DELTA_RULES for layer in facts.layers)


def unprofiled_bytes(facts: ModelFacts, deployment: Deployment) -> Term:
    """What one rank takes after vLLM has sized the KV cache, beyond what it profiled: headroom has to hold it.

    The warm-up of the second runner's sampler, which its profile run leaves out before 0.33; its counters, which vLLM
    doesn't count before 0.27; the logits of drafted tokens. CUDA graphs are a term of their own.
    """
    if deployment.device == "cpu":
        peak = max(0, host_peak_bytes(facts, deployment) - CPU_COUNTED_TWICE_BYTES)
        return Term(peak, CPU_WORKER_ERROR, "activations, which come and go after the KV cache")
    if facts.runner == "pooling":
        return Term(0)
    drafted = deployment.speculation.tokens if deployment.speculation else 0
    rows = min(deployment.max_num_seqs * (1 + drafted), deployment.max_num_batched_tokens)
    profiled = max(forward_bytes(facts, deployment), sampler_bytes(facts, deployment))
    total = max(0, rows * facts.vocabulary * LOGIT_BYTES - profiled)
    if uses_second_runner(facts, deployment) and deployment.vllm < COUNTERS_COUNTED_SINCE:
        total += round(deployment.max_num_seqs * facts.vocabulary * COUNTER_BYTES_PER_LOGIT)
    if has_delta_rule(facts) and deployment.vllm < DELTA_RULE_WARMED_SINCE:
        total += DELTA_RULE_WARMED_BYTES - DELTA_RULE_BYTES  # its kernels are first used when graphs are captured
    return Term(total, why="the sampler beyond what the profile run shows")
