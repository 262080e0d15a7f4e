"""In which phase of a start an exception was raised, read from the functions on its traceback.

Function names are vLLM's (0.11 to 0.33), innermost first: the deepest one that we know names the phase.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType

PHASES = {
    "request_memory": "startup_check",
    "init_device": "startup_check",
    "load_model": "weight_load",
    "warming_up_model": "profile_run",
    "profile_run": "profile_run",
    "profile_cudagraph_memory": "profile_run",
    "determine_available_memory": "profile_run",
    "_check_enough_kv_cache_memory": "kv_cache_config",
    "check_enough_kv_cache_memory": "kv_cache_config",
    "get_kv_cache_configs": "kv_cache_config",
    "get_kv_cache_config": "kv_cache_config",
    "initialize_kv_cache": "kv_alloc",
    "initialize_from_config": "kv_alloc",
    "capture_model": "cudagraph_capture",
    "compile_or_warm_up_model": "sampler_warmup",
}
WHILE_SERVING = ("execute_model", "sample_tokens")
"""Functions of serving. Profiling and warm-up call them too (V2 runner, 0.32), so they count only by themselves."""
CONSTRUCTORS = {"cpu_worker.py": "startup_check"}
"""Files of workers that check the free memory in their constructor (CPU, vLLM 0.32)."""

KV_CACHE_CONFIG = {
    "No available memory for the cache blocks": "no_kv_memory",
    "To serve at least one request": "max_len_too_long",
}
"""How the messages of the two failures of KV sizing begin, the same in vLLM 0.11 to 0.33."""

CPU_KV_CACHE = "on kv cache allocation is less than requested memory for kv"
"""The CPU worker sizes its KV cache where others profile (0.32)."""


def phase_of(error: BaseException) -> str:
    """The phase, or ``other`` when the traceback names none."""
    phase, serving = "other", False
    for frame in frames(error):
        file, function = frame.f_code.co_filename.rpartition("/")[2], frame.f_code.co_name
        known = CONSTRUCTORS.get(file) if function == "__init__" else PHASES.get(function)
        phase = known or phase
        serving = serving or function in WHILE_SERVING
    if phase == "other" and serving:
        return "runtime"
    message = str(error)
    if phase == "profile_run" and CPU_KV_CACHE in message:
        return "no_kv_memory"
    if phase == "kv_cache_config":
        phase = next((name for text, name in KV_CACHE_CONFIG.items() if text in message), "no_kv_memory")
    return phase


def frames(error: BaseException) -> Iterator[FrameType]:
    """The frames of an exception's traceback, outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next
