"""What a start takes from a device outside of what vLLM asks for, and what should stay free after it.

vLLM asks for ``gpu_memory_utilization x total``. Two things must fit beside it:

- the start-up overhead: taken between our reading and vLLM's own check of the free memory, so the check sees less
  than we saw. On CUDA the context, NCCL and cuBLAS; on the CPU backend the processes themselves.
- the headroom: what vLLM doesn't profile and may need while it serves (sampler buffers, lazily loaded kernels,
  fragmentation), and on a host what the operating system and its users need.

The constants are last resorts. A record of a start of the same model on the same machine replaces the first.
"""

from __future__ import annotations

from typing import Literal

MIB = 2**20
GIB = 2**30

CUDA_CONTEXT_BYTES = 650 * MIB
"""Total less free at vLLM's check on an otherwise idle device, published for vLLM 0.10 to 0.28: 0.60 GiB on H200,
80 GiB Hopper and B300, 0.56 on a 96 GiB Blackwell, 0.23 on A10 and 16 GiB cards. Upper end, rounded up."""

CUDA_COMMUNICATION_BYTES = 512 * MIB
"""NCCL and custom all-reduce, taken before vLLM's check when ranks talk: non-torch memory was 0.54 GiB at tensor
parallel 2 against 0.13 at 1 (vLLM 0.11, H100 80GB)."""

CPU_PROCESSES_BYTES = GIB
"""Engine core and one worker up to the worker's check when each is a process of its own: 0.80 GiB was the largest of
many starts with vLLM 0.32.0 on x86-64, rounded up."""

CPU_IN_PROCESS_BYTES = 256 * MIB
"""The same with VLLM_ENABLE_V1_MULTIPROCESSING=0 (vLLM 0.32.0, x86-64)."""

CUDA_HEADROOM_BYTES = 512 * MIB
CUDA_HEADROOM_FRACTION = 0.01
"""0.97 and 0.98 were served with on a 94.97 GiB device (1.3 GiB left beside the context); this keeps 1.4 there."""

CPU_HEADROOM_BYTES = GIB
CPU_HEADROOM_FRACTION = 0.05
"""A host that runs out of memory loses a process, not an allocation: leave 1 GiB, or 5 % of a large one."""

SAFE_FACTOR = 2
"""The policy ``safe`` doubles the headroom."""


def startup_overhead(kind: Literal["cuda", "cpu"], ranks: int, processes: bool) -> int:
    """Bytes per device that a start takes before vLLM's check, when no start has been measured yet.

    Args:
        kind: the backend.
        ranks: worker processes that share the device (CPU) or talk to each other (CUDA).
        processes: whether engine core and workers are processes of their own.
    """
    if kind == "cuda":
        return CUDA_CONTEXT_BYTES + (CUDA_COMMUNICATION_BYTES if ranks > 1 else 0)
    if not processes:
        return CPU_IN_PROCESS_BYTES
    return CPU_PROCESSES_BYTES * ranks


def headroom(kind: Literal["cuda", "cpu"], total_bytes: int, policy: str) -> int:
    """Bytes of a device that should be free once vLLM is up, when the user named no number."""
    if kind == "cuda":
        base = CUDA_HEADROOM_BYTES + int(total_bytes * CUDA_HEADROOM_FRACTION)
    else:
        base = max(CPU_HEADROOM_BYTES, int(total_bytes * CPU_HEADROOM_FRACTION))
    return base * SAFE_FACTOR if policy == "safe" else base
