"""Messages as programs print them -> what they mean. Most are not in the published collection: other versions, backends
and libraries, and look-alikes."""

from __future__ import annotations

import pytest

from vllm_autofit.failures.classify import classify_log

DEVICE = [
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 23.65 GiB total capacity; "
    "21.00 GiB already allocated; 1.20 GiB free; 22.10 GiB reserved in total by PyTorch)",
    "RuntimeError: NPU out of memory. Tried to allocate 20.00 MiB (NPU 0; 60.97 GiB total capacity; 58.24 GiB already "
    "allocated; 5.60 MiB free; 58.63 GiB reserved in total by PyTorch)",
    "RuntimeError: HIP error: out of memory",
    "RuntimeError: CUDA driver error: out of memory",
    "torch.AcceleratorError: CUDA error: out of memory",
    "RuntimeError: Triton Error [CUDA]: out of memory",
    "RuntimeError: Triton Error [HIP]:  Code: 2, Messsage: out of memory",
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul(...)`",
    "RuntimeError: HIPBLAS_STATUS_ALLOC_FAILED when calling hipblasCreate(handle)",
    "RuntimeError: level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 16.50G of "
    "15.75G hbm.",
    "RuntimeError: MPS backend out of memory (MPS allocated: 9.05 GB, max allowed: 18.13 GB). Tried to allocate 1 GB.",
    "hipErrorOutOfMemory",
    "NCCL WARN Cuda failure 2 'out of memory'",
    "Failed to CUDA calloc async 24 bytes",
]
HOST = [
    "MemoryError",
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 12.4 GiB for an array with shape (1, 2)",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "OSError: [Errno 12] Cannot allocate memory",
    "RuntimeError: unable to mmap 4987202208 bytes from file </m/model.safetensors>: Cannot allocate memory (12)",
    "RuntimeError: [enforce fail at CPUAllocator.cpp:65] . DefaultCPUAllocator: not enough memory: you tried to "
    "allocate 9 bytes.",
    "RuntimeError: UR error UR_RESULT_ERROR_OUT_OF_HOST_MEMORY",
    "kernel: Memory cgroup out of memory: Killed process 3344 (VLLM::EngineCor) total-vm:9kB, anon-rss:8kB",
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),task=python3,pid=3344,uid=0",
    "  Reason: OOMKilled",
    "vllm-1 exited with code 137",
    "/entrypoint.sh: line 3:   211 Killed                  vllm serve model",
    "Worker proc VllmWorker-2 died unexpectedly (exit code: -9), shutting down executor.",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'A': 1, 'B': -9}",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    "ValueError: HiSparse pinned host pool needs ~120.0 GiB but only 64.0 GiB of RAM is available.",
]
SHM = [
    "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).",
    "OSError: [Errno 28] No space left on device: '/psm_1234abcd'",
    "RuntimeError: unable to write to file </torch_123_456_0>: No space left on device (28)",
    "NCCL WARN Call to posix_fallocate failed : No space left on device",
    "Error while creating shared memory segment /dev/shm/nccl-tuJNuU (size 9637888)",
    "RuntimeError: Insufficient space in /dev/shm for message queue: 160 MiB required, 2 MiB free.",
]
ON_CHIP = [
    "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 81920, Hardware limit: 65536.",
    "ptxas error   : Entry function 'kernel' uses too much shared data (0x19000 bytes, 0x18c00 max)",
    "RuntimeError: Bad StatusOr access: RESOURCE_EXHAUSTED: Ran out of memory in memory space smem. Used 1.00M.",
]
NOT_MEMORY = [
    "INFO 01-02 03:04:05 [gpu_worker.py:300] Free memory on device (78.2/79.1 GiB) on startup. Desired GPU memory "
    "utilization is (0.9, 71.2 GiB).",
    "INFO 11-05 04:16:47 model_runner.py:1402] If you are running out of memory, consider decreasing it.",
    "CUDA graphs can take additional 1~3 GiB memory per GPU. If you are running out of memory, consider decreasing",
    "WARNING 11-05 04:16:47 [config.py:1] Possibly too large swap space. 32.00 GiB out of the 62.79 GiB total",
    "WARNING 11-05 04:16:47 scheduler.py:1] preempted because there is not enough KV cache space.",
    "WARNING 01-02 03:04:05 [weight_utils.py:1] checkpoint exceeds 90% of RAM. This may cause out-of-memory errors.",
    "WARNING 01-02 03:04:05 [tune.py:1] torch.OutOfMemoryError: CUDA out of memory, skipping this configuration",
    "INFO 01-02 03:04:05 [shm_broadcast.py:1] No available shared memory broadcast block found in 60 seconds.",
    "INFO 01-02 03:04:05 [logger.py:1] Received request: prompt: 'torch.OutOfMemoryError: CUDA out of memory, why?'",
    "UserWarning: resource_tracker: There appear to be 1 leaked shared_memory objects to clean up at shutdown",
    "This may lead to CUDA out of memory errors.",
    "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high usage.",
    "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "RuntimeError: CUDA error: too many resources requested for launch",
    "triton.runtime.errors.OutOfResources: out of resource: threads, Required: 2048, Hardware limit: 1024.",
    "Memory access fault by GPU node-1 on address 0x7f. Reason: Page not present or supervisor privilege.",
    "OSError: [Errno 28] No space left on device",
    "OSError: [Errno 122] Disk quota exceeded",
    "OSError: [Errno 24] Too many open files",
    "RuntimeError: unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)",
    "RuntimeError: can't start new thread",
    "ImportError: /lib/libgomp.so.1: cannot allocate memory in static TLS block",
    "NCCL WARN Call to ibv_reg_mr failed with error Cannot allocate memory",
    "Worker proc VllmWorker-0 died unexpectedly (exit code: -15), shutting down executor.",
    "Worker proc VllmWorker-0 died unexpectedly, shutting down executor.",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -11}",
    "RuntimeError: WorkerProc initialization failed due to an exception in a background process.",
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    "MemoryError: Not enough space in the data buffer, try calling free_buf() to free up space",
    "ValueError: No free blocks available",
    "torch.OutOfMemoryError: XPU out of memory. Tried to allocate 2.00 MiB. GPU 0 has a total capacity of 11.33 GiB of "
    "which 11.33 GiB is free. Of the allocated memory 0 bytes is allocated by PyTorch.",
    "",
]


@pytest.mark.parametrize("text", DEVICE)
def test_the_device_ran_out(text: str) -> None:
    failure = classify_log([text])
    assert (failure.is_capacity, failure.resource) == (True, "device")


@pytest.mark.parametrize("text", HOST)
def test_the_machine_ran_out(text: str) -> None:
    failure = classify_log([text])
    assert (failure.is_capacity, failure.resource) == (True, "host")


@pytest.mark.parametrize("text", SHM)
def test_dev_shm_ran_out(text: str) -> None:
    failure = classify_log([text])
    assert (failure.is_capacity, failure.resource) == (True, "shm")


@pytest.mark.parametrize("text", ON_CHIP)
def test_memory_on_the_chip_is_no_capacity(text: str) -> None:
    failure = classify_log([text])
    assert (failure.is_capacity, failure.resource) == (False, "shared_mem_per_block")


@pytest.mark.parametrize("text", NOT_MEMORY)
def test_what_is_not_about_memory_is_not_taken_for_it(text: str) -> None:
    failure = classify_log([text])
    assert (failure.is_capacity, failure.resource) == (False, "none")


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        (
            "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size.",
            "startup_check",
        ),
        (
            "ValueError: User-specified max_model_len (9) is greater than the derived max_model_len (x=8)",
            "startup_check",
        ),
        ("ValueError: max_num_batched_tokens (8) must be greater than or equal to max_num_seqs (9).", "startup_check"),
        ("OSError: [Errno 98] Address already in use", "startup_check"),
        ("safetensors_rust.SafetensorError: Error while deserializing header: InvalidHeader", "weight_load"),
        ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "lora_load"),
        ("torch.distributed.DistNetworkError: The client socket has timed out after 600000ms", "nccl_init"),
        ("ValueError: This model's maximum context length is 4096 tokens. However, you requested 5000.", "runtime"),
        ("AssertionError: Error in memory profiling. Initial free memory 1.0 GiB, current 2.0 GiB.", "profile_run"),
        ("RuntimeError: CUDA Error: out of memory at /workspace/csrc/cumem_allocator.cpp:62", "wake_up"),
        ("RuntimeError: CUDA out of memory occurred when warming up pooler with 256 dummy requests.", "sampler_warmup"),
        ("ValueError: max_num_seqs (9) exceeds available Mamba cache blocks (8).", "cudagraph_capture"),
        ("ValueError: No available memory for the cache blocks.", "no_kv_memory"),
        ("ValueError: Cannot auto-fit max_model_len: not enough GPU memory available", "max_len_too_long"),
    ],
)
def test_a_message_alone_may_tell_the_phase(text: str, phase: str) -> None:
    assert classify_log([text]).phase == phase


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            DEVICE[0],
            {
                "tried_bytes": 2 * 2**30,
                "gpu_index": 0,
                "total_bytes": round(23.65 * 2**30),
                "allocated_bytes": 21 * 2**30,
                "free_bytes": round(1.2 * 2**30),
                "reserved_total_bytes": round(22.1 * 2**30),
            },
        ),
        (
            "CUDA out of memory. Tried to allocate 64.00 MiB. GPU 3 has a total capacity of 2.00 TiB of which "
            "512.00 KiB is free. Including non-PyTorch memory, this process has 1.00 GiB memory in use. Of the "
            "allocated memory 3.00 GiB is allocated by PyTorch, with 4.00 MiB allocated in private pools (e.g., CUDA "
            "Graphs), and 0 bytes is reserved by PyTorch but unallocated.",
            {
                "tried_bytes": 64 * 2**20,
                "total_bytes": 2**41,
                "free_bytes": 2**19,
                "process_bytes": 2**30,
                "allocated_bytes": 3 * 2**30,
                "private_pools_bytes": 4 * 2**20,
                "reserved_bytes": 0,
                "gpu_index": 3,
            },
        ),
        (
            "ValueError: Free memory on device cuda:1 (10.5/24.0 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 21.6 GiB).",
            {
                "free_bytes": round(10.5 * 2**30),
                "total_bytes": 24 * 2**30,
                "gpu_memory_utilization": 0.9,
                "requested_bytes": round(21.6 * 2**30),
            },
        ),
        (
            "ValueError: To serve at least one request with the model's max seq len (2048), (0.5 GiB KV cache is "
            "needed, which is larger than the available KV cache memory (0.25 GiB). Based on the available memory, the "
            "estimated maximum model length is 896.",
            {
                "max_model_len": 2048,
                "kv_needed_bytes": 2**29,
                "kv_available_bytes": 2**28,
                "estimated_max_model_len": 896,
            },
        ),
        (
            "RuntimeError: Insufficient space in /dev/shm for message queue: 160 MiB required, 2 MiB free.",
            {"requested_bytes": 160 * 2**20, "free_bytes": 2 * 2**20},
        ),
    ],
)
def test_figures_are_read_in_their_own_units(text: str, numbers: dict[str, float]) -> None:
    assert classify_log([text]).numbers == numbers
