"""A failure -> what to change, the first first.

The lever has a direction. Too little free at the start, and running out in graph capture, warm-up, allocation of the KV
cache or serving, ask for LESS of the device; no room for KV blocks asks for MORE of it, or for less KV cache.
"""

from __future__ import annotations

import math

from vllm_autofit.failures.failure import Failure, Numbers, Remedy
from vllm_autofit.units import GIB

UTILIZATION = "--gpu-memory-utilization"
LEAST_GIVEN_BACK = 0.02
"""Share of the device, our choice: about 1.6 GiB of 80 GiB, which a sampler's warm-up with a large vocabulary takes."""
LEAST_USEFUL_SHARE = 0.3
"""Our choice: below this share of a device's memory, freeing it comes before asking for less."""

MORE_DEVICES = Remedy("spread the model over more devices", "--tensor-parallel-size", "each then holds a part of it")
QUANTISED = Remedy("use quantised weights, or a smaller model", "--quantization", "they take less memory")
EAGER = Remedy("go without CUDA graphs", "--enforce-eager", "nothing is captured; decoding gets slower")
UNCOMPILED = Remedy(
    "go without compiling", "--enforce-eager", "compiling takes memory of the machine; vLLM gets slower"
)
FP8_KV = Remedy("store the KV cache in 8 bits", "--kv-cache-dtype fp8", "the same memory holds twice the tokens")
FEWER_SEQUENCES = Remedy("run fewer sequences at once", "--max-num-seqs", "batches get smaller, their buffers too")
SMALLER_BATCHES = Remedy(
    "process fewer tokens at once", "--max-num-batched-tokens", "activations grow with the tokens of a batch"
)
LARGER_SHM = Remedy(
    "give the container a larger /dev/shm", "docker run --shm-size=16g (or --ipc=host)", "Docker's default is 64 MiB"
)
MORE_HOST = Remedy(
    "give the machine or its container more memory, or stop what else runs there", "", "vLLM needs it beside the device"
)
LESS_OFFLOADED = Remedy(
    "keep less in the machine's memory", "--cpu-offload-gb, --kv-offloading-size", "what is offloaded is held there"
)
CLOSE_OTHERS = Remedy(
    "stop the processes that hold memory of the device", "", "a dead engine's workers can hold it too: see nvidia-smi"
)
OTHER_KERNEL = Remedy(
    "use another attention backend or data type", "--attention-backend", "no memory setting changes a kernel's tiles"
)


def remedies(kind: str, failure: Failure, utilization: float | None) -> tuple[Remedy, ...]:
    """What to change.

    Args:
        kind: name of the kind of message (``kinds.py``).
        failure: as far as it is known.
        utilization: what vLLM was told to use, if the log says so.
    """
    numbers = failure.numbers
    if not failure.is_capacity:
        return _not_memory(kind, failure)
    if failure.resource == "shm":
        return (LARGER_SHM,)
    if kind in _WORKED_OUT:
        return _WORKED_OUT[kind](numbers)
    if kind in _BY_KIND:
        return _BY_KIND[kind]
    if failure.resource == "host":
        return _on_host(kind, failure)
    return _on_device(failure, numbers.get("gpu_memory_utilization", utilization))


def _on_device(failure: Failure, utilization: float | None) -> tuple[Remedy, ...]:
    numbers, phase = failure.numbers, failure.phase
    less = _lower_utilization(numbers, utilization)
    if phase == "startup_check":
        return _fit_what_is_free(numbers)
    if phase == "weight_load":
        return (QUANTISED, MORE_DEVICES, CLOSE_OTHERS)
    if phase == "profile_run":
        return (SMALLER_BATCHES, FEWER_SEQUENCES, QUANTISED, MORE_DEVICES)
    if phase == "multimodal_profile":
        return (
            Remedy(
                "allow fewer or smaller images and videos per request",
                "--limit-mm-per-prompt",
                "the encoder is measured with the largest inputs that are allowed",
            ),
            SMALLER_BATCHES,
        )
    if phase == "no_kv_memory":
        return (_raise_utilization("gives the KV cache room"), SMALLER_BATCHES, EAGER, QUANTISED, MORE_DEVICES)
    if phase == "max_len_too_long":
        return _shorter(numbers)
    if phase == "cudagraph_capture":
        return (less, FEWER_SEQUENCES, EAGER)
    if phase == "sampler_warmup":
        return (_half_the_sequences(numbers), less)
    if phase == "lora_load":
        return (
            Remedy("hold fewer or smaller adapters", "--max-loras, --max-lora-rank", "their buffers are made at start"),
            QUANTISED,
        )
    if phase in ("nccl_init", "wake_up"):
        return (CLOSE_OTHERS, less)
    if phase == "runtime":
        return (less, SMALLER_BATCHES)
    return (less, CLOSE_OTHERS)


def _on_host(kind: str, failure: Failure) -> tuple[Remedy, ...]:
    numbers, phase = failure.numbers, failure.phase
    if phase == "startup_check":
        return (_utilization_of_free(numbers), MORE_HOST)
    if phase == "no_kv_memory":
        return (
            _raise_utilization("here this is the share of the machine's memory"),
            _kv_space(),
            QUANTISED,
        )
    if phase == "max_len_too_long":
        return (*_shorter(numbers), _kv_space())
    if phase == "lora_load":
        return (
            Remedy("hold fewer or smaller adapters", "--max-loras, --max-lora-rank", "their buffers are made at start"),
            MORE_HOST,
        )
    if phase == "profile_run":
        return (UNCOMPILED, SMALLER_BATCHES, MORE_HOST) if kind == "sigkill" else (SMALLER_BATCHES, MORE_HOST)
    if phase == "runtime" and "tried_bytes" in numbers:
        return (SMALLER_BATCHES, MORE_HOST)
    if phase == "weight_load" and "tried_bytes" in numbers:
        return (QUANTISED, MORE_HOST)
    return (MORE_HOST, LESS_OFFLOADED)


def _not_memory(kind: str, failure: Failure) -> tuple[Remedy, ...]:
    if failure.resource == "shared_mem_per_block":
        return (OTHER_KERNEL,)
    return _OTHER_CAUSES.get(kind, ())


def _fit_what_is_free(numbers: Numbers) -> tuple[Remedy, ...]:
    free, total = numbers.get("free_bytes", 0), numbers.get("total_bytes", 0)
    lower = _utilization_of_free(numbers)
    mostly_taken = total > 0 and free / total < LEAST_USEFUL_SHARE
    return (CLOSE_OTHERS, lower) if mostly_taken else (lower, CLOSE_OTHERS)


def _utilization_of_free(numbers: Numbers) -> Remedy:
    """The largest share of two decimals that is free."""
    free, total = numbers.get("free_bytes"), numbers.get("total_bytes")
    if not free or not total:
        return Remedy("ask for less of the memory", UTILIZATION, "what others hold isn't there to use")
    share = math.floor(100 * free / total) / 100
    return Remedy(
        f"ask for what is free: at most {share:.2f}",
        f"{UTILIZATION} {share:.2f}",
        f"{free / GIB:.2f} of {total / GIB:.2f} GiB are free",
    )


def _lower_utilization(numbers: Numbers, utilization: float | None) -> Remedy:
    tried, total = numbers.get("tried_bytes", 0), numbers.get("total_bytes", 0)
    share = max(LEAST_GIVEN_BACK, math.ceil(100 * tried / total) / 100 if total else 0)
    why = "the KV cache gets smaller and leaves room for what vLLM doesn't measure"
    if utilization is None or utilization <= share:
        return Remedy(f"ask for {share:.2f} less of the device", UTILIZATION, why)
    lower = utilization - share
    return Remedy(f"lower it from {utilization:g} to {lower:.2f}", f"{UTILIZATION} {lower:.2f}", why)


def _raise_utilization(why: str) -> Remedy:
    return Remedy("ask for more of the memory, as far as it is free", UTILIZATION, why)


def _shorter(numbers: Numbers) -> tuple[Remedy, ...]:
    fits = _context_that_fits(numbers)
    shorter = Remedy(
        f"shorten the context to {fits} tokens or less" if fits else "shorten the context",
        f"--max-model-len {fits}" if fits else "--max-model-len",
        "one sequence of the full context length must fit in the KV cache",
    )
    return (shorter, _raise_utilization("gives the KV cache room"), FP8_KV, MORE_DEVICES)


def _context_that_fits(numbers: Numbers) -> int | None:
    """Tokens: vLLM's own estimate, or what the KV cache's share of the need leaves.

    The share is of models whose every layer keeps every token: others fit more.
    """
    told = numbers.get("estimated_max_model_len") or numbers.get("kv_cache_tokens")
    if told:
        return int(told)
    length, needed = numbers.get("max_model_len"), numbers.get("kv_needed_bytes")
    available = numbers.get("kv_available_bytes", 0)
    if not length or not needed or available <= 0:
        return None
    return int(length * available / needed) or None


def _half_the_sequences(numbers: Numbers) -> Remedy:
    sequences = numbers.get("dummy_requests")
    if not sequences or sequences < 2:
        return FEWER_SEQUENCES
    half = int(sequences) // 2
    return Remedy(
        f"run at most {half} sequences at once",
        f"--max-num-seqs {half}",
        "the sampler's buffers grow with them",
    )


def _kv_space() -> Remedy:
    return Remedy("give the KV cache a size of its own", "VLLM_CPU_KVCACHE_SPACE", "in GiB, whatever the share is")


def _mamba(numbers: Numbers) -> tuple[Remedy, ...]:
    blocks = int(numbers["mamba_blocks"])
    return (
        Remedy(f"run at most {blocks} sequences at once", f"--max-num-seqs {blocks}", "each needs a block of its own"),
        _raise_utilization("makes room for more blocks"),
    )


def _cpu_kv(numbers: Numbers) -> tuple[Remedy, ...]:
    """The share of the memory minus what the worker holds may be negative: then it is too low, whatever vLLM says."""
    left, free = numbers.get("requested_kv_bytes"), numbers.get("free_bytes", 0)
    if left is not None and left <= 0:
        return (
            _raise_utilization("the worker alone holds more than its share"),
            _kv_space(),
        )
    if left is not None:
        return (Remedy("ask for less of the memory", UTILIZATION, "less is available than it comes to"), MORE_HOST)
    return (
        Remedy(
            f"make the KV cache smaller than {free / GIB:.2f} GiB",
            f"--kv-cache-memory-bytes {max(1, int(free / GIB))}G",
            "that much memory is available",
        ),
        MORE_HOST,
    )


def _cpu_share(numbers: Numbers) -> tuple[Remedy, ...]:
    share = numbers.get("suggested_gpu_memory_utilization")
    if share is None:
        return (_raise_utilization("the weights alone take more than its share"), _kv_space())
    return (
        Remedy(
            f"ask for more than {share:g} of the memory",
            f"{UTILIZATION} {min(1.0, share + 0.05):.2f}",
            "the weights alone take its present share",
        ),
        _kv_space(),
    )


_WORKED_OUT = {"mamba_blocks": _mamba, "cpu_kv_too_large": _cpu_kv, "cpu_kv_none_left": _cpu_share}
_BY_KIND = {
    "external_weights": (_raise_utilization("the weights alone take more than its share"), QUANTISED),
    "mm_reservation": (
        Remedy("reserve less for decoding", "--mm-ipc-gpu-memory-gb", "it comes out of the KV cache"),
        _raise_utilization("gives the KV cache room"),
    ),
    "hisparse_pool": (
        Remedy("make the pool larger", "host_pool_gib", "one sequence of the full context length must fit in it"),
        Remedy("shorten the context", "--max-model-len", "a shorter sequence needs fewer blocks"),
    ),
    "hisparse_ram": (
        Remedy("make the pool smaller", "host_pool_gib", "it must fit in the machine's available memory"),
    ),
    "swap_space": (Remedy("make the swap space smaller", "--swap-space", "it must fit in the machine's memory"),),
    "swap_space_full": (
        Remedy("make the swap space larger", "--swap-space", "preempted sequences are kept there"),
        FEWER_SEQUENCES,
    ),
    "memory_pool": (
        Remedy("make the connector's pool larger", "mem_pool_size_gb", "blocks on their way are kept there"),
    ),
}
_OTHER_CAUSES = {
    "memory_moved": (
        Remedy("start again when the device is quiet", "", "the measurement fails when memory comes back during it"),
        Remedy("give the KV cache a fixed size", "--kv-cache-memory-bytes", "then nothing is measured"),
    ),
    "workspace": (EAGER,),
    "prompt_too_long": (Remedy("send a shorter prompt", "", "it must fit in the context length"),),
    "context_of_model": (
        Remedy("choose a context within the model's", "--max-model-len", "it was made for fewer positions"),
    ),
    "lora_rank": (Remedy("allow the adapter's rank", "--max-lora-rank", "buffers are made for ranks up to it"),),
    "limits": (Remedy("raise the limit", "ulimit -n, ulimit -u", "it is the operating system's"),),
    "locked_memory": (Remedy("raise the limit", "ulimit -l unlimited", "network cards need locked memory"),),
    "disk": (Remedy("free space on the disk", "", "the message speaks of a disk"),),
    "port": (Remedy("choose another port", "--port", "another program listens on this one"),),
    "bus_error": (LARGER_SHM,),
}
