"""Phases read from real tracebacks through functions that are named as vLLM's are."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from vllm_autofit.failures.classify import classify_exception
from vllm_autofit.failures.phase import frames

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


def raised_in(*functions: str, error: BaseException | None = None, file: str = "vllm/v1/worker/gpu_worker.py") -> Any:
    """An exception that left ``functions``, the outermost first, each defined in ``file``."""

    def fail() -> None:
        raise error or RuntimeError(OUT_OF_MEMORY)

    call: Callable[[], None] = fail
    for name in reversed(functions):
        scope: dict[str, Any] = {"call": call}
        exec(compile(f"def {name}():\n    call()\n", file, "exec"), scope)
        call = scope[name]
    try:
        call()
    except BaseException as caught:
        return caught
    raise AssertionError


@pytest.mark.parametrize(
    ("functions", "phase"),
    [
        (("init_device", "request_memory"), "startup_check"),
        (("init_device",), "startup_check"),
        (("load_model", "get_model", "process_weights_after_loading"), "weight_load"),
        (("determine_available_memory", "profile_run", "_dummy_run", "_dummy_sampler_run"), "profile_run"),
        (("determine_available_memory", "profile_cudagraph_memory"), "profile_run"),
        (("determine_available_memory", "warming_up_model"), "profile_run"),
        (("initialize_from_config", "initialize_kv_cache", "_allocate_kv_cache_tensors"), "kv_alloc"),
        (("compile_or_warm_up_model", "capture_model", "_capture_cudagraphs"), "cudagraph_capture"),
        (("compile_or_warm_up_model", "_dummy_sampler_run"), "sampler_warmup"),
        (("run_busy_loop", "step", "execute_model", "forward"), "runtime"),
        (("run_busy_loop", "step", "sample_tokens", "_sample"), "runtime"),
    ],
    ids=lambda value: value if isinstance(value, str) else " > ".join(value),
)
def test_the_deepest_function_that_is_known_names_the_phase(functions: tuple[str, ...], phase: str) -> None:
    assert classify_exception(raised_in("_initialize_kv_caches", *functions)).phase == phase


# vLLM 0.32: Worker.compile_or_warm_up_model hands its own execute_model to warmup_kernels, and the V2 model runner's
# _dummy_run, which profile_run calls, is itself a call of execute_model.
@pytest.mark.parametrize(
    ("functions", "phase"),
    [
        (("determine_available_memory", "profile_run", "_dummy_run", "execute_model"), "profile_run"),
        (("compile_or_warm_up_model", "warmup_kernels", "execute_model"), "sampler_warmup"),
        (("compile_or_warm_up_model", "warmup_kernels", "sample_tokens"), "sampler_warmup"),
    ],
    ids=lambda value: value if isinstance(value, str) else " > ".join(value),
)
def test_a_model_that_is_executed_to_profile_or_warm_up_is_not_serving_yet(
    functions: tuple[str, ...], phase: str
) -> None:
    assert classify_exception(raised_in("_initialize_kv_caches", *functions)).phase == phase


@pytest.mark.parametrize(
    ("message", "phase"),
    [
        ("No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "no_kv_memory"),
        ("To serve at least one request with the models's max seq len (40960), 4.38 GiB KV cache", "max_len_too_long"),
        ("something that another version says", "no_kv_memory"),
    ],
)
@pytest.mark.parametrize("function", ["_check_enough_kv_cache_memory", "check_enough_kv_cache_memory"])
def test_of_the_failures_of_kv_sizing_the_message_tells_which(function: str, message: str, phase: str) -> None:
    error = raised_in("_initialize_kv_caches", "get_kv_cache_configs", function, error=ValueError(message))
    assert classify_exception(error).phase == phase


def test_the_cpu_worker_checks_memory_in_its_constructor() -> None:
    for file, phase in (("cpu_worker.py", "startup_check"), ("gpu_worker.py", "other")):
        error = raised_in("__init__", file=f"/site-packages/vllm/v1/worker/{file}")
        assert classify_exception(error).phase == phase


@pytest.mark.parametrize("functions", [(), ("main", "step")])
def test_a_traceback_that_names_no_phase_is_other(functions: tuple[str, ...]) -> None:
    assert classify_exception(raised_in(*functions)).phase == "other"


def test_an_exception_that_was_never_raised_is_other() -> None:
    error = RuntimeError(OUT_OF_MEMORY)
    assert list(frames(error)) == []
    assert classify_exception(error).phase == "other"


def test_any_exception_has_a_phase() -> None:
    for error in (MemoryError(), KeyboardInterrupt(), AssertionError("Error in memory profiling")):
        assert classify_exception(raised_in("load_model", error=error)).phase == "weight_load"


def test_frames_come_outermost_first() -> None:
    error = raised_in("outer", "inner")
    names = [frame.f_code.co_name for frame in frames(error)]
    assert names == [each.name for each in traceback.extract_tb(error.__traceback__)]
    assert names[-3:] == ["outer", "inner", "fail"]
