"""Kinds of messages that aren't about memory, or only look like it: patterns as in ``kinds.py``."""

from __future__ import annotations

import re
from functools import partial

from vllm_autofit.failures.failure import Phase
from vllm_autofit.failures.kinds import Kind, Weight, has
from vllm_autofit.failures.sizes import SIZE, N

Other = partial(Kind, weight=Weight.CAUSE, is_capacity=False)

ON_CHIP = Other(
    "on_chip",
    has(
        r"out of resources?: (?:shared|tensor) memory|memory space (?:smem|vmem)"
        r"|shared memory (?:per block|size on this hardware)"
        r"|too much shared (?:data|memory)|MaxDynamicSharedMemorySize|shared memory.{0,40}(?:hardware|device) limit"
    ),
    "A kernel needs more on-chip memory for one block than this device has.",
    "shared_mem_per_block",
    readings=(
        has(r"required: (?P<required_bytes>\d+)"),
        has(r"hardware limit: (?P<limit_bytes>\d+)"),
        has(r"needs (?P<required_size>\d+ B) of shared memory"),
        has(r"device allows (?P<limit_size>\d+ B)"),
    ),
)

LOOK_ALIKES = (
    Other(
        "memory_moved",
        has(r"error in memory profiling"),
        "Another process released memory of the device while vLLM was measuring it.",
        phase="profile_run",
        readings=(
            has(rf"initial free memory (?P<initial_free_size>{SIZE})"),
            has(rf"current free memory (?P<current_free_size>{SIZE})"),
        ),
    ),
    Other(
        "memory_moved_notice",
        has(rf"free memory grew by (?P<grew_size>{SIZE}) during profiling"),
        "Another process released memory of the device while vLLM was measuring it; vLLM went on.",
        phase="profile_run",
        weight=Weight.NOTICE,
        readings=(
            has(rf"initial (?P<initial_free_size>{SIZE})"),
            has(rf"current (?P<current_free_size>{SIZE})"),
        ),
    ),
    Other(
        "mamba_notice",
        has(r"capping cudagraph capture sizes from max (?P<max_captured>\d+)"),
        "Fewer batch sizes get CUDA graphs, because there is room for fewer sequences; vLLM went on.",
        weight=Weight.NOTICE,
        readings=(has(r"Mamba cache blocks \((?P<mamba_blocks>\d+)"),),
    ),
    Other(
        "workspace",
        has(r"workspace is locked but"),
        "A batch needed a larger workspace than the warm-up had prepared; that is a fault of vLLM's.",
        phase="runtime",
        readings=(
            has(rf"requires (?P<requested_size>{SIZE})"),
            has(rf"current size is (?P<current_size>{SIZE})"),
        ),
    ),
    Other(
        "request_limit",
        has(rf"(?:exceeded|exceeding the) (?P<limit_size>{SIZE}) (?:memory )?limit"),
        "A request is larger than a limit that is set for single requests.",
        "host",
        phase="runtime",
        weight=Weight.REQUEST,
    ),
    Other(
        "item_too_large",
        has(r"exceeds (?:the )?(?:total pool size|max(?:imum)? (?:object|file|allowed))"),
        "An item of a request is larger than what is set aside for one.",
        phase="runtime",
        weight=Weight.REQUEST,
    ),
    Other(
        "prompt_too_long",
        has(
            r"maximum context length (?:is|of) (?P<max_model_len>\d+)|longer than the maximum model length"
            r"|exceeds? (?:the )?model'?s? (?:maximum context length|max_model_len)"
        ),
        "A request is longer than the context length.",
        phase="runtime",
        weight=Weight.REQUEST,
        readings=(
            has(r"contains (?:at least )?(?P<prompt_tokens>\d+) input tokens"),
            has(r"maximum model length of (?P<max_model_len>\d+)"),
        ),
    ),
    Other(
        "context_of_model",
        has(r"max_model_len \((?P<max_model_len>\d+)\) is greater than the derived"),
        "The context length is larger than the model was made for.",
        phase="startup_check",
        readings=(has(rf"(?:max_position_embeddings|model_max_length|max_\w+)=(?P<derived_max_model_len>{N})"),),
    ),
    Other(
        "batch_settings",
        has(
            r"max_num_batched_tokens \((?P<max_num_batched_tokens>\d+)\) (?:must be|is smaller)"
            r"|max_num_seqs \((?P<max_num_seqs>\d+)\) must be"
        ),
        "Two settings of the batch contradict each other.",
        phase="startup_check",
        readings=(
            has(r"(?:than|to) max_num_seqs \((?P<max_num_seqs>\d+)\)"),
            has(r"(?:than|to) max_model_len \((?P<max_model_len>\d+)\)"),
        ),
    ),
    Other(
        "lora_rank",
        has(r"LoRA rank (?P<lora_rank>\d+) is greater than max_lora_rank (?P<max_lora_rank>\d+)"),
        "An adapter has a higher rank than vLLM was told to expect.",
        phase="lora_load",
    ),
    Other(
        "workspace_tokens",
        has(r"got (?P<tokens>\d+) tokens, but .{0,60}at most (?P<limit>\d+)"),
        "A batch is larger than a workspace was made for.",
        phase="runtime",
    ),
    Other(
        "block_accounting",
        has(r"no free blocks available|cannot get \d+ free blocks"),
        "The KV cache's bookkeeping is off; that is a fault of vLLM's.",
        phase="runtime",
    ),
    Other(
        "kernel_fault",
        has(
            r"illegal memory access|illegal address|misaligned address|device-side assert|memory access fault"
            r"|HSA_STATUS_ERROR|unspecified launch failure|page not present"
        ),
        "A kernel went wrong: a fault of the program or the driver, whatever the memory settings.",
    ),
    Other(
        "kernel_image",
        has(r"no kernel image|kernel image is invalid|PTX was compiled|invalid device function"),
        "The kernels weren't built for this device.",
    ),
    Other(
        "library",
        has(
            r"\w+_STATUS_(?:INTERNAL_ERROR|NOT_INITIALIZED|EXECUTION_FAILED|NOT_SUPPORTED|ARCH_MISMATCH|INVALID_VALUE)"
        ),
        "One of the device's libraries failed: it doesn't fit the driver, or an earlier error left it unusable.",
    ),
    Other(
        "device_query",
        has(
            r"querying the available free memory|NVMLError|NVML: |failed to infer device type|no CUDA GPUs"
            r"|invalid device ordinal|driver version is insufficient|found no NVIDIA driver|no HIP GPUs"
        ),
        "The device or its driver can't be reached or asked.",
        phase="startup_check",
    ),
    Other(
        "out_of_resources",
        has(r"\w+_OUT_OF_RESOURCES\b|too many resources requested"),
        "A kernel needs more of the device than it can give at once; that needn't be memory.",
    ),
    Other(
        "disk",
        has(r"no space left on device|disk quota exceeded"),
        "A disk is full: 'device' is not the accelerator here.",
    ),
    Other(
        "limits",
        has(r"too many open files|resource temporarily unavailable|can't start new thread|too many connections"),
        "A limit of the operating system on files, threads or processes was reached; memory isn't the problem.",
    ),
    Other(
        "port",
        has(r"address already in use"),
        "The port is taken.",
        phase="startup_check",
    ),
)
"""Causes that aren't memory, and remarks."""

DEATHS = (
    Other(
        "bus_error",
        has(r"\(exit code: -7\)|\bSIGBUS\b|Bus error"),
        "A process ended with a bus error. /dev/shm being too small is one reason.",
        weight=Weight.DEATH,
        readings=(has(r"exit code: (?P<exit_code>-?\d+)"),),
    ),
    Other(
        "crash",
        has(
            r"\(exit code: -(?:4|6|8|11)\)|: -(?:4|6|8|11)[,}]|\bSIG(?:SEGV|ABRT|ILL)\b|segmentation fault|core dumped"
        ),
        "A process crashed in native code.",
        weight=Weight.DEATH,
        readings=(has(r"(?:exit code|'): (?P<exit_code>-?\d+)"),),
    ),
    Other(
        "ended",
        has(r"died unexpectedly"),
        "A process ended; why stands above that, if anywhere.",
        weight=Weight.SYMPTOM,
        readings=(has(r"exit code: (?P<exit_code>-?\d+)"),),
    ),
)

WRAPPERS = (
    Other(
        "engine_dead",
        has(r"EngineDead\w*Error|EngineCore encountered (?:an issue|a fatal error)|output_handler failed"),
        "The engine died while serving; why stands above that, if anywhere.",
        phase="runtime",
        weight=Weight.SYMPTOM,
    ),
    Other(
        "initialization",
        has(
            r"engine core initialization failed|EngineCore failed to start|WorkerProc initialization failed"
            r"|engine process failed to start|see root cause above"
        ),
        "The engine didn't start; why stands above that, if anywhere.",
        weight=Weight.SYMPTOM,
    ),
    Other(
        "connection",
        has(
            r"connection (?:reset|closed|refused)|broken ?pipe|EOFError|remote process exited|socket timeout"
            r"|CancelledError|RuntimeError: cancelled|engine loop (?:is not running|has died)|background loop"
            r"|ActorDiedError|ActorUnavailableError|RayActorError|KeyboardInterrupt|SystemExit"
        ),
        "A connection to another process was lost; why stands above that, if anywhere.",
        weight=Weight.SYMPTOM,
    ),
)
"""What follows from something else."""

NCCL = Other(
    "nccl",
    has(
        r"NCCL error|nccl\w+Error|RCCL error|DistBackendError|DistStoreError|DistNetworkError|TCPStore|ProcessGroup"
        r"|rendezvous|clients joined|\bgloo\b|oneCCL"
    ),
    "The connection between devices or ranks couldn't be set up, or broke.",
    phase="nccl_init",
)

EXCEPTION = Other(
    "exception",
    re.compile(
        r"^\W{0,4}(?:[\w.]+\.)?[A-Za-z_]*(?:Error|Exception|Exit|Timeout|NotImplemented)\w*(?:\(.{0,80}?\))?(?::\s|\(|$)"
        r"|^\s{0,2}(?:Value|Assertion) error, "
    ),
    "",
)
"""Any other exception's last line: its own text is the cause."""

NOT_CAPACITY = (*LOOK_ALIKES, *DEATHS, *WRAPPERS, NCCL, EXCEPTION)

ABOUT_RANKS = has(r"\bNCCL\b|\bgloo\b|torch\.distributed|process group")
TOPICS: tuple[tuple[re.Pattern[str], Phase], ...] = (
    (has(r"\bLoRA\b|\badapter"), "lora_load"),
    (has(r"safetensors|checkpoint|weights?\b|state_dict|\bshards?\b|deserializ|gguf"), "weight_load"),
    (has(r"\bprompt\b|\brequest\b|sampling param|chat template|tokens? (?:id|exceed)"), "runtime"),
    (
        has(
            r"quantization|compute capability|not supported|unsupported|must be|max_model_len|max_num|validation error"
            r"|parallel.size|attention heads|attention backend|config|dtype|model type|architecture|trust_remote_code"
            r"|gated repo|platform|\boption|argument|not a valid|no such file"
        ),
        "startup_check",
    ),
)
"""What an exception without a traceback is about, and so where it belongs; the first that matches."""
