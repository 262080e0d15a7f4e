"""In which phase something was raised, read from the functions on its traceback.

Functions are vLLM's (0.6 to 0.33). The outermost that we know opens a phase; further in it may only become a phase that
happens inside that one: what a profile run calls is still the profile run, whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import FrameType

PHASES = {
    # the command line, the configuration, the device
    "create_engine_config": "startup_check",
    "create_model_config": "startup_check",
    "setup_server": "startup_check",
    "request_memory": "startup_check",
    "init_device": "startup_check",
    "init_worker_distributed_environment": "nccl_init",
    "init_distributed_environment": "nccl_init",
    "initialize_model_parallel": "nccl_init",
    "ensure_model_parallel_initialized": "nccl_init",
    "init_model_parallel_group": "nccl_init",
    "ncclCommInitRank": "nccl_init",
    "load_model": "weight_load",
    "load_weights": "weight_load",
    "create_weights": "weight_load",
    "process_weights_after_loading": "weight_load",
    "load_lora_model": "lora_load",
    "create_lora_manager": "lora_load",
    "_create_lora_modules": "lora_load",
    "create_lora_weights": "lora_load",
    "add_lora": "lora_load",
    "_load_adapter": "lora_load",
    "activate_adapter": "lora_load",
    "warming_up_model": "profile_run",
    "profile_run": "profile_run",
    "profile_cudagraph_memory": "profile_run",
    "determine_available_memory": "profile_run",
    "determine_num_available_blocks": "profile_run",  # before the V1 engine
    "embed_multimodal": "multimodal_profile",
    "get_multimodal_embeddings": "multimodal_profile",
    "_profile_multimodal": "multimodal_profile",
    "_check_enough_kv_cache_memory": "kv_cache_config",
    "check_enough_kv_cache_memory": "kv_cache_config",
    "raise_if_cache_size_invalid": "kv_cache_config",  # before the V1 engine
    "get_kv_cache_configs": "kv_cache_config",
    "get_kv_cache_config": "kv_cache_config",
    "initialize_cache": "kv_alloc",  # before the V1 engine; it captures graphs too
    "initialize_kv_cache": "kv_alloc",
    "initialize_kv_cache_tensors": "kv_alloc",
    "_allocate_kv_cache_tensors": "kv_alloc",
    "initialize_from_config": "kv_alloc",
    "capture_model": "cudagraph_capture",
    "_capture_cudagraphs": "cudagraph_capture",
    "capture_begin": "cudagraph_capture",
    "capture_end": "cudagraph_capture",
    "compile_or_warm_up_model": "sampler_warmup",
    "_compile_or_warm_up_model": "sampler_warmup",
    "_dummy_sampler_run": "sampler_warmup",
    "_dummy_pooler_run": "sampler_warmup",
    "_dummy_pooler_run_task": "sampler_warmup",
    "wake_up": "wake_up",
}
FILES = {
    "/model_executor/model_loader/": "weight_load",
    "/model_executor/layers/quantization/": "weight_load",
}
"""Where models are loaded, as long as nothing runs (``WHILE_RUNNING``)."""
CONSTRUCTORS = {
    "/cpu_worker.py": "startup_check",
    "/model_executor/": "weight_load",
    "/distributed/parallel_state.py": "nccl_init",
    "/pynccl.py": "nccl_init",
}
"""Whose ``__init__`` belongs to a phase. CPU workers of vLLM 0.32 check the free memory there."""

INSIDE = {
    "startup_check": frozenset(PHASES.values()),
    "weight_load": frozenset({"lora_load"}),
    "profile_run": frozenset({"multimodal_profile"}),
    "kv_alloc": frozenset({"kv_cache_config", "cudagraph_capture", "sampler_warmup"}),
    "sampler_warmup": frozenset({"cudagraph_capture"}),
}
"""Phases that happen within others. KV allocation calls graph capture and warm-up up to vLLM 0.26."""

WHILE_SERVING = (
    "execute_model",
    "sample_tokens",
    "_execute_mm_encoder",
    "_execute_encoder",
    "add_request",
    "_validate_tokens",
)
"""Functions of serving. Profiling and warm-up call them too (V2 runner, 0.32), so they count only by themselves."""

CALL = re.compile(r"(\w+)\(")

WHILE_RUNNING = ("forward", "apply", "apply_weights", "__call__")
"""A layer at work, in a file that also loads it."""


class PhaseWalk:
    """Follows a stack, outermost frame first."""

    def __init__(self) -> None:
        self._phase: str | None = None
        self._serving = False
        self._running = False

    def step(self, file: str, function: str) -> None:
        """One frame further in."""
        self._serving = self._serving or function in WHILE_SERVING
        self._running = self._running or function in WHILE_RUNNING
        phase = PHASES.get(function)
        if phase is None and not (self._serving or self._running):
            phase = _phase_of_place(file, function)
        if phase == "multimodal_profile" and self._phase is None and self._serving:
            return  # a request with an image
        self._phase = phase if self._phase is None else inner(self._phase, phase)

    def calls(self, code: str) -> None:
        """The source of a frame's line: it names the next function, which a shortened log may not show."""
        for function in CALL.findall(code):
            if function in PHASES:
                self.step("", function)

    @property
    def phase(self) -> str | None:
        """What the frames say so far."""
        return self._phase or ("runtime" if self._serving else None)


def inner(outer: str | None, phase: str | None) -> str | None:
    """The phase of something that happened in ``phase``, as far as its own frames say, called from ``outer``."""
    if outer is None or phase in INSIDE.get(outer, ()):
        return phase
    return outer


def frames(error: BaseException) -> Iterator[FrameType]:
    """The frames of an exception's traceback, outermost first."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _phase_of_place(file: str, function: str) -> str | None:
    places = CONSTRUCTORS if function == "__init__" else FILES
    return next((phase for place, phase in places.items() if place in file), None)
