"""Whole logs and exception chains: what is the root, and in which phase."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest

from tests.failures.test_phase import raised_in
from vllm_autofit.failures.classify import classify_exception, classify_log

OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 64.00 MiB. GPU 0 has a total capacity of 23.52 GiB "
    "of which 44.50 MiB is free."
)
INIT_FAILED = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"


def traced(*functions: str, last: str = OOM) -> list[str]:
    """A traceback through functions of one file."""
    lines = ["Traceback (most recent call last):"]
    for function in functions:
        lines += [f'  File "/opt/vllm/v1/worker/gpu_worker.py", line 12, in {function}', "    something = here()"]
    return [*lines, last]


def capture() -> list[str]:
    """A traceback that ends in graph capture."""
    return traced("compile_or_warm_up_model", "capture_model")


def prefixed(lines: list[str], who: str, place: str = "multiproc_executor.py:522") -> list[str]:
    """As vLLM prints them from another process."""
    return [f"({who}) ERROR 06-05 06:18:13 [{place}] {line}" for line in lines]


def as_json(lines: list[str]) -> list[str]:
    """As a structured log has them: the traceback is one field of one record."""
    return [json.dumps({"level": "ERROR", "message": "WorkerProc hit an exception.", "exc_info": "\n".join(lines)})]


def as_docker(lines: list[str]) -> list[str]:
    """As Docker's json-file driver stores them."""
    return [json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-01-01T00:00:00Z"}) for line in lines]


@pytest.mark.parametrize(
    "log",
    [
        capture(),
        prefixed(capture(), "VllmWorker rank=3 pid=1090"),
        prefixed(capture(), "Worker_TP0_EP0 pid=12"),
        [f"ERROR 02-25 11:11:34 engine.py:139] {line}" for line in capture()],
        [f"[rank0]: {line}" for line in capture()],
        [f"(RayWorkerWrapper pid=88, ip=10.0.0.2) {line}" for line in capture()],
        [
            f"\x1b[1;36m(Worker pid=7)\x1b[0;0m \x1b[31mERROR 01-02 03:04:05 [a.py:1] {line}\x1b[0m"
            for line in capture()
        ],
        [f"{line}\r\n" for line in prefixed(capture(), "Worker pid=7")],
        [f"2026-01-02T03:04:05.123Z stderr F {line}" for line in prefixed(capture(), "EngineCore_DP0 pid=7")],
        [f"vllm-1  | {line}" for line in prefixed(capture(), "EngineCore pid=7")],
        as_json(capture()),
        as_docker(capture()),
    ],
    ids=[
        "plain",
        "worker",
        "expert",
        "V0",
        "rank",
        "ray",
        "colours",
        "CRLF",
        "kubernetes",
        "compose",
        "JSON",
        "docker",
    ],
)
def test_prefixes_colours_and_formats_do_not_matter(log: list[str]) -> None:
    failure = classify_log([*log, INIT_FAILED])
    assert (failure.is_capacity, failure.resource, failure.phase) == (True, "device", "cudagraph_capture")
    assert failure.numbers["tried_bytes"] == 64 * 2**20


def test_tracebacks_of_several_processes_may_be_interleaved() -> None:
    first = prefixed(capture(), "Worker_TP0 pid=1")
    second = prefixed(traced("load_model", last="KeyError: 'lm_head.weight'"), "Worker_TP1 pid=2")
    chance = random.Random(7)
    for _ in range(20):
        sources = [iter(first), iter(second)]
        failure = classify_log(_merged(sources, chance))
        assert (failure.is_capacity, failure.phase) == (True, "cudagraph_capture")


def _merged(sources: list[Iterator[str]], chance: random.Random) -> Iterator[str]:
    while sources:
        source = chance.choice(sources)
        line = next(source, None)
        if line is None:
            sources.remove(source)
        else:
            yield line


def test_wrappers_alone_prove_nothing() -> None:
    failure = classify_log(
        [*prefixed(["EngineCore failed to start."], "EngineCore pid=1"), INIT_FAILED.replace("{}", "{'EngineCore': 1}")]
    )
    assert (failure.is_capacity, failure.phase, failure.confidence) == (False, "other", "low")


def test_the_root_stands_above_its_wrappers() -> None:
    worker = prefixed(traced("load_model", last="KeyError: 'lm_head.weight'"), "Worker pid=2")
    core = prefixed(["Exception: WorkerProc initialization failed due to an exception"], "EngineCore pid=1")
    failure = classify_log([*worker, *core, INIT_FAILED])
    assert (failure.is_capacity, failure.phase) == (False, "weight_load")
    assert "lm_head" in failure.cause


def test_a_message_inside_a_wrapper_counts() -> None:
    text = (
        "RuntimeError: Worker failed with error 'No available memory for the cache blocks. Try increasing it', please "
        "check the stack trace above for the root cause"
    )
    assert classify_log([text]).phase == "no_kv_memory"


def test_the_last_line_of_a_traceback_may_be_missing() -> None:
    failure = classify_log([*traced("load_model")[:-1], INIT_FAILED])
    assert (failure.is_capacity, failure.phase) == (False, "weight_load")


def test_the_source_of_the_last_frame_may_name_the_phase() -> None:
    log = traced("compile_or_warm_up_model")
    log[-2] = "    self.model_runner.capture_model()"
    assert classify_log(log).phase == "cudagraph_capture"


def test_a_chain_of_exceptions_is_one_stack() -> None:
    cause = traced("_dummy_sampler_run")
    effect = traced(
        "determine_available_memory",
        "profile_run",
        "_dummy_sampler_run",
        last="RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.",
    )
    failure = classify_log(
        [*cause, "", "The above exception was the direct cause of the following exception:", *effect]
    )
    assert failure.phase == "profile_run"
    assert failure.numbers["dummy_requests"] == 1024
    assert failure.numbers["tried_bytes"] == 64 * 2**20


def test_source_code_in_a_traceback_is_no_evidence() -> None:
    log = traced("warm_up", last="TypeError: unsupported operand")
    log.insert(-1, '    raise RuntimeError("CUDA out of memory occurred when warming up sampler")')
    assert not classify_log(log).is_capacity


@pytest.mark.parametrize(
    ("progress", "phase"),
    [
        ([], "other"),
        (["Starting to load model Qwen/Qwen3-8B..."], "weight_load"),
        (["Loading weights took 12.3 seconds"], "profile_run"),
        (["GPU KV cache size: 123,456 tokens"], "kv_alloc"),
        (["Graph capturing finished in 20 secs, took 0.50 GiB"], "sampler_warmup"),
        (["Graph capturing finished in 20 secs", "Application startup complete."], "runtime"),
    ],
)
def test_without_a_traceback_progress_tells_the_phase(progress: list[str], phase: str) -> None:
    log = [f"(EngineCore pid=1) INFO 01-02 03:04:05 [core.py:1] {line}" for line in progress]
    assert classify_log([*log, OOM, INIT_FAILED]).phase == phase


def test_an_engine_that_dies_was_serving() -> None:
    dead = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue."
    assert classify_log([OOM, dead]).phase == "runtime"


def test_on_the_cpu_backend_the_machine_is_the_device() -> None:
    message = (
        "ValueError: To serve at least one request with the model's max seq len (2048), (0.12 GiB KV cache is needed"
    )
    assert classify_log([message]).resource == "device"
    platform = "INFO 01-02 03:04:05 [__init__.py:1] Automatically detected platform cpu."
    assert classify_log([platform, message]).resource == "host"


def test_of_several_starts_in_one_log_the_last_that_failed_counts() -> None:
    start = "(APIServer pid=1) INFO 01-02 03:04:05 [api_server.py:1] vLLM API server version 0.32.0"
    kv = "ValueError: No available memory for the cache blocks."
    assert classify_log([start, OOM, start, kv]).phase == "no_kv_memory"
    assert classify_log([start, kv, start, "INFO 01-02 03:04:05 [x.py:1] Application startup complete."]).phase == (
        "no_kv_memory"
    )


def test_a_killed_worker_is_the_root_of_what_the_others_say_after() -> None:
    log = [
        "Worker proc VllmWorker-2 died unexpectedly (exit code: -9), shutting down executor.",
        "torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error",
        INIT_FAILED,
    ]
    failure = classify_log(log)
    assert (failure.is_capacity, failure.resource, failure.numbers["exit_code"]) == (True, "host", -9)
    assert failure.confidence == "medium"


def test_an_exception_comes_before_the_kill_that_follows_it() -> None:
    log = [*traced("load_model", last="KeyError: 'x'"), INIT_FAILED.replace("{}", "{'EngineCore': -9}")]
    assert not classify_log(log).is_capacity


def test_a_refused_request_does_not_hide_what_ended_the_server() -> None:
    refused = "ValueError: This model's maximum context length is 4096 tokens."
    killed = "Worker proc VllmWorker-2 died unexpectedly (exit code: -9), shutting down executor."
    assert classify_log([refused, killed]).is_capacity


def test_a_log_may_be_one_endless_line() -> None:
    assert not classify_log(["Error " + "(" * 100_000]).is_capacity
    assert not classify_log(["{" * 100_000 + "Error}"]).is_capacity


# Exceptions


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch's."""


def test_an_exception_is_classified_by_its_frames_and_message() -> None:
    error = raised_in("compile_or_warm_up_model", "capture_model", error=OutOfMemoryError(OOM))
    failure = classify_exception(error)
    assert (failure.is_capacity, failure.resource, failure.phase) == (True, "device", "cudagraph_capture")
    assert failure.numbers["free_bytes"] == round(44.5 * 2**20)


def test_the_cause_of_an_exception_is_its_root() -> None:
    root = raised_in("load_model", error=OutOfMemoryError(OOM))
    try:
        raise RuntimeError("Engine core initialization failed. See root cause above.") from root
    except RuntimeError as error:
        failure = classify_exception(error)
    assert (failure.is_capacity, failure.phase) == (True, "weight_load")


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not classify_exception(first).is_capacity


@pytest.mark.parametrize("error", [MemoryError(), raised_in("load_model", error=MemoryError())])
def test_pythons_memory_error_is_the_machines(error: BaseException) -> None:
    failure = classify_exception(error)
    assert (failure.is_capacity, failure.resource) == (True, "host")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), KeyError("x"), AssertionError()])
def test_other_exceptions_are_not_about_memory(error: BaseException) -> None:
    assert not classify_exception(error).is_capacity
