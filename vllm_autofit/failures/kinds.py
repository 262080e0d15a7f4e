"""Kinds of messages: what a line says about memory, whoever says it.

Patterns follow what the programs print: vLLM 0.6 to 0.33, PyTorch's allocators (CUDA, HIP, XPU, NPU, MPS, CPU), CUDA's
and ROCm's libraries, Level Zero, NCCL, Triton, XLA, Ray, Python and the Linux kernel. The first kind that matches a
line has it, so the special come before the general.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from vllm_autofit.failures.failure import Phase, Resource
from vllm_autofit.failures.sizes import SIZE, N, read_numbers


class Weight(IntEnum):
    """How much a line explains. The heaviest of a log is its cause, the first one of several."""

    NOTICE = 0
    """A remark of a program that went on."""
    SYMPTOM = 1
    """Follows from something else: wrappers, lost connections."""
    REQUEST = 2
    """A single request was refused."""
    DEATH = 3
    """A process ended, and how."""
    CAUSE = 4
    """A cause, other than what an allocator says."""
    MEMORY = 5
    """A program says that there wasn't enough memory."""


@dataclass(frozen=True)
class Kind:
    """One kind of message.

    Attributes:
        name: what the remedies go by.
        pattern: what the line contains.
        cause: one sentence.
        resource: what it is about.
        phase: where it happens, as far as the message alone says so.
        fixed: the phase holds whatever the traceback says.
        weight: see there.
        is_capacity: whether it says that memory was too small.
        readings: further patterns whose named groups are figures (``sizes.py``).
    """

    name: str
    pattern: re.Pattern[str]
    cause: str
    resource: Resource = "none"
    phase: Phase | None = None
    fixed: bool = False
    weight: Weight = Weight.MEMORY
    is_capacity: bool = True
    readings: tuple[re.Pattern[str], ...] = ()

    def numbers(self, text: str) -> dict[str, float]:
        """The figures of a line of this kind."""
        return read_numbers((self.pattern, *self.readings), text)


def has(pattern: str) -> re.Pattern[str]:
    """Spaces stand for any white space, upper and lower case are the same."""
    return re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)


CHECK_AT_START = (
    has(rf"\((?P<free_gib>{N})/(?P<total_gib>{N}) GiB\) on startup"),
    has(rf"\((?P<gpu_memory_utilization>{N}), (?P<requested_gib>{N}) GiB\)"),
)
ALLOCATOR = (
    has(rf"tried to allocate (?P<tried_size>{SIZE})"),
    has(rf"allocating (?P<tried_size>{SIZE})"),
    has(rf"total capacity of (?P<total_size>{SIZE})"),
    has(rf"of which (?P<free_size>{SIZE}) is free"),
    has(rf"this process has (?P<process_size>{SIZE}) memory in use"),
    has(rf"process \d+ has (?P<process_size>{SIZE}) memory in use"),
    has(rf"(?P<allowed_size>{SIZE}) allowed"),
    has(rf"allocated memory (?P<allocated_size>{SIZE}) is allocated by PyTorch"),
    has(rf"(?P<private_pools_size>{SIZE}) allocated in private pools"),
    has(rf"(?P<reserved_size>{SIZE}) is reserved by PyTorch but unallocated"),
    has(r"\b[A-Z]PU (?P<gpu_index>\d+)"),
    # up to PyTorch 2.0, and Ascend's today
    has(rf"(?P<total_size>{SIZE}) total capacity"),
    has(rf"(?P<allocated_size>{SIZE}) already allocated"),
    has(rf"(?P<free_size>{SIZE}) free"),
    has(rf"(?P<reserved_total_size>{SIZE}) reserved in total by PyTorch"),
    # Apple's
    has(rf"MPS allocated: (?P<allocated_size>{SIZE})"),
    has(rf"max allowed: (?P<total_size>{SIZE})"),
    # XLA's
    has(rf"used (?P<used_size>{SIZE}) of (?P<total_size>{SIZE}) hbm"),
)
HOST_ALLOCATOR = (
    has(rf"tried to allocate (?P<tried_size>{SIZE})"),
    has(rf"unable to allocate (?P<tried_size>{SIZE})"),
    has(rf"unable to mmap (?P<tried_size>{SIZE})"),
    has(rf"failed to allocate (?P<tried_size>{SIZE})"),
)
KERNEL_KILL = (
    has(r"total-vm:(?P<total_vm_kb>\d+)kB"),
    has(r"anon-rss:(?P<anon_rss_kb>\d+)kB"),
    has(r"file-rss:(?P<file_rss_kb>\d+)kB"),
    has(r"shmem-rss:(?P<shmem_rss_kb>\d+)kB"),
)
RAY_KILL = (
    has(rf"was (?P<used_size>{SIZE}) / (?P<total_size>{SIZE})"),
    has(rf"usage threshold of (?P<threshold>{N})"),
    has(rf"memory used=(?P<worker_size>{SIZE})"),
)
SHM = (
    has(rf"(?P<requested_size>{SIZE}) required"),
    has(rf"(?P<free_size>{SIZE}) free"),
    has(r"\(size (?P<requested_bytes>\d+)\)"),
    has(r"to (?P<requested_bytes>\d+) bytes"),
)
LONGEST_SEQUENCE = (
    has(r"max seq len \((?P<max_model_len>\d+)\)"),
    has(rf"\((?P<kv_needed_gib>{N}) GiB KV cache is needed"),
    has(rf"available KV cache memory \((?P<kv_available_gib>{N}) GiB\)"),
    has(r"estimated maximum model length is (?P<estimated_max_model_len>\d+)"),
    has(r"stored in KV cache \((?P<kv_cache_tokens>\d+)\)"),
)

VLLM = (
    Kind(
        "external_weights",
        has(r"Externally held weights on device"),
        "The weights that another process holds are more than vLLM may use of the device.",
        "device",
        "startup_check",
        fixed=True,
        readings=(
            has(rf"\((?P<external_gib>{N})/(?P<total_gib>{N}) GiB\)"),
            CHECK_AT_START[1],
        ),
    ),
    Kind(
        "startup_check",
        has(r"memory on device .{0,80}on startup is less than"),
        "The device had less free memory at the start than vLLM was told to use.",
        "device",
        "startup_check",
        fixed=True,
        readings=CHECK_AT_START,
    ),
    Kind(
        "startup_check",
        has(r"memory on node .{0,80}on startup is less than"),
        "The machine had less available memory at the start than vLLM was told to use.",
        "host",
        "startup_check",
        fixed=True,
        readings=CHECK_AT_START,
    ),
    Kind(
        "cpu_kv_too_large",
        has(r"on kv cache allocation is less than requested memory for kv"),
        "The KV cache that was asked for doesn't fit in the machine's available memory.",
        "host",
        "kv_alloc",
        fixed=True,
        readings=(
            has(rf"\((?P<free_gib>{N})/(?P<total_gib>{N}) GiB\) on kv"),
            has(rf"for kv \((?P<requested_kv_gib>{N})/(?P<requested_gib>{N}) GiB\)"),
            has(rf"for kv \((?P<requested_gib>{N}) GiB\)"),
        ),
    ),
    Kind(
        "cpu_kv_none_left",
        has(r"more than the .{0,40}memory reserved for it.{0,40}leaving none for the KV cache"),
        "The weights take all of vLLM's share of the machine's memory: nothing is left for the KV cache.",
        "host",
        "no_kv_memory",
        fixed=True,
        readings=(
            has(rf"already uses (?P<consumed_size>{SIZE})"),
            has(rf"more than the (?P<requested_size>{SIZE}) of"),
            has(rf"to more than (?P<suggested_gpu_memory_utilization>{N})"),
        ),
    ),
    Kind(
        "mm_reservation",
        has(r"multimodal .{0,40}reserves .{0,120}available for the KV cache"),
        "What is reserved for decoding images and videos leaves nothing for the KV cache.",
        "device",
        "no_kv_memory",
        fixed=True,
        readings=(
            has(rf"reserves (?P<reserved_size>{SIZE})"),
            has(rf"only (?P<kv_available_size>{SIZE}) is available"),
        ),
    ),
    Kind(
        "no_kv",
        has(r"no available memory for the cache blocks|(?:not enough|no) memory (?:left |available )?for the KV cache"),
        "After weights and activations nothing of vLLM's share of the memory is left for the KV cache.",
        "device",
        "no_kv_memory",
        fixed=True,
    ),
    Kind(
        "max_len",
        has(
            r"to serve at least one request with the models?'?s? max(?:imum)? seq"
            r"|max seq len \(\d+\) is larger than the maximum number of tokens"
            r"|cannot auto-fit max_model_len"
        ),
        "The KV cache is too small for one sequence of the context length.",
        "device",
        "max_len_too_long",
        fixed=True,
        readings=LONGEST_SEQUENCE,
    ),
    Kind(
        "hisparse_pool",
        has(r"host pool has (?P<host_num_blocks>\d+) blocks but max_model_len needs (?P<min_host_blocks>\d+)"),
        "The pool in the machine's memory is too small for one sequence of the context length.",
        "host",
        "max_len_too_long",
        fixed=True,
    ),
    Kind(
        "hisparse_ram",
        has(rf"needs ~?(?P<requested_size>{SIZE}) but only (?P<free_size>{SIZE}) of RAM is available"),
        "The pool in the machine's memory is larger than what is available.",
        "host",
        "kv_alloc",
    ),
    Kind(
        "mamba_blocks",
        has(
            r"max_num_seqs \((?P<max_num_seqs>\d+)\) exceeds (?:the )?(?:number of )?available Mamba cache blocks"
            r" \((?P<mamba_blocks>\d+)\)"
        ),
        "There is room for fewer sequences than vLLM may run at once.",
        "device",
        "cudagraph_capture",
        fixed=True,
    ),
    Kind(
        "warm_up",
        has(r"out of memory occurred when warming up (?:the )?\w+.{0,60}with (?P<dummy_requests>\d+) dummy requests"),
        "The device ran out of memory when the sampler was warmed up with as many sequences as may run at once.",
        "device",
        "sampler_warmup",
    ),
    Kind(
        "load_model",
        has(r"failed to load model - not enough GPU memory"),
        "The device ran out of memory while the weights were loaded.",
        "device",
        "weight_load",
        readings=ALLOCATOR,
    ),
    Kind(
        "attention_constants",
        has(r"q/k/v range constants"),
        "The device had no memory left when a layer was made.",
        "device",
        "weight_load",
    ),
    Kind(
        "swap_space",
        re.compile(rf"\bToo large swap space\. (?P<requested_gib>{N}) GiB out of the (?P<total_gib>{N}) GiB"),
        "The swap space is larger than the machine's memory.",
        "host",
        "startup_check",
        fixed=True,
    ),
    Kind(
        "swap_space_full",
        has(r"lack of CPU swap space"),
        "The swap space in the machine's memory is full.",
        "host",
        "runtime",
    ),
    Kind(
        "memory_pool",
        has(r"^\s*ValueError: Insufficient memory$"),
        "The pool that KV blocks are sent through is full.",
        "host",
        "runtime",
    ),
)
"""vLLM's own words."""

OPERATING_SYSTEM = (
    Kind(
        "killed",
        has(
            r"out of memory: kill(?:ed)? process|oom-kill:|invoked oom-killer|oom_reaper: reaped|\bOOMKilled\b"
            r"|killed by (?:the )?(?:\w+ )?OOM|systemd-oomd.{0,40}killed|killed due to memory pressure"
        ),
        "The operating system killed a process of vLLM's because the machine, or its container, ran out of memory.",
        "host",
        readings=KERNEL_KILL,
    ),
    Kind(
        "ray_killed",
        has(r"node running low on memory|ray\.exceptions\.OutOfMemoryError|exceeds the memory usage threshold"),
        "Ray killed a worker because the machine ran low on memory.",
        "host",
        readings=RAY_KILL,
    ),
    Kind(
        "shm",
        has(
            r"insufficient (?:space in /dev/shm|shared memory)"
            r"|(?:unable to|could not|failed to) (?:allocate|resize|extend) (?:a )?(?:shared memory|shm|/dev/shm)"
            r"|creating shared memory segment(?!.*(?:permitted|denied|too many|exists))"
            r"|(?:/dev/shm|\bshm|shared memory|posix_fallocate|</torch_).{0,200}No space left on device"
            r"|No space left on device.{0,80}(?:/dev/shm|\bshm|/psm_)"
            r"|unexpected bus error encountered in worker"
        ),
        "/dev/shm is too small.",
        "shm",
        readings=SHM,
    ),
    Kind(
        "locked_memory",
        has(r"\bibv_\w+.{0,120}cannot allocate memory|RLIMIT_MEMLOCK|memlock"),
        "The limit on locked memory is too low for the network card; the machine's memory is not the problem.",
        weight=Weight.CAUSE,
        is_capacity=False,
        phase="nccl_init",
    ),
    Kind(
        "object_cache",
        has(r"not enough space in the data buffer"),
        "An item didn't fit in the cache for images and videos.",
        weight=Weight.CAUSE,
        is_capacity=False,
        phase="runtime",
    ),
    Kind(
        "pinned",
        has(
            r"cudaHostAlloc|cudaHostRegister|hipHostMalloc|hipHostRegister|(?:failed to|could not|cannot) "
            r"(?:allocate|pin|register) (?:\w+ )?(?:pinned|page-locked|host) memory"
        ),
        "The machine had too little memory to pin for transfers.",
        "host",
    ),
    Kind(
        "host_allocation",
        has(
            r"DefaultCPUAllocator: |alloc_cpu\.cpp|(?<![A-Za-z])(?:Array)?MemoryError\b|std::bad_alloc"
            r"|\bErrno 12\b|cannot allocate memory(?! in static TLS)|OUT_OF_HOST_MEMORY|unable to mmap"
            rf"|unable to allocate {SIZE} for an array|mmap failed|virtual memory exhausted"
        ),
        "The machine had too little memory for an allocation.",
        "host",
        readings=HOST_ALLOCATOR,
    ),
)
"""What the operating system, Python, Ray and PyTorch's CPU allocator say."""

DEVICE = (
    Kind(
        "nccl_oom",
        has(r"(?:cuda|hip) failure (?:\d+ )?'out of memory'|failed to (?:cuda|hip) (?:m|c)alloc"),
        "The device had no memory left for the buffers of the communication between devices.",
        "device",
        "nccl_init",
    ),
    Kind(
        "sleep_allocator",
        re.compile(r"(?:CUDA|HIP) Error: out of memory|(?:cu|xpu)mem_allocator\.\w+:\d+.*out of memory"),
        "The device had too little free memory for the allocator behind sleep mode.",
        "device",
        "wake_up",
    ),
    Kind(
        "device_allocation",
        has(
            r"(?-i:\b[A-Z]{2,5})(?: backend| driver)? (?:error: )?out of memory|\bOutOfMemoryError\b"
            r"|ErrorMemoryAllocation\b"
            r"|error \[\w+\]: .{0,40}out of memory|ErrorOutOfMemory|ERROR_OUT_OF_MEMORY|OUT_OF_DEVICE_MEMORY"
            r"|out of device memory|(?:cu|hip|roc|mi)\w+_STATUS_\w*ALLOC\w*|RESOURCE_EXHAUSTED: .{0,80}memory"
            r"|memory space hbm|(?:device|gpu|vram) out of memory|out of (?:gpu|device|video) memory"
            r"|(?:not enough|insufficient) (?:free )?(?:gpu|device|video) memory"
        ),
        "The device ran out of memory.",
        "device",
        readings=ALLOCATOR,
    ),
)
"""What the allocators of devices say."""

SIGKILL = Kind(
    "sigkill",
    has(
        r"(?:died unexpectedly|\bexit(?:ed|code)?\b|terminated|returned).{0,40}?(?:-9|\b137)\b"
        r"|Failed core proc\(s\): \{[^}]{0,400}: -9\b"
        r"|signal 9\b|\bSIGKILL\b|(?:^|line \d+: \d+ )Killed\b(?!:)"
    ),
    "A process of vLLM's was killed from outside, most likely because the machine or its container ran out of memory.",
    "host",
    weight=Weight.CAUSE,
    readings=(has(r"(?P<exit_code>-9|\b137)\b"),),
)

CAPACITY = (*VLLM, *OPERATING_SYSTEM, *DEVICE, SIGKILL)
