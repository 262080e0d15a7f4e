"""Which way the lever turns, and by how much."""

from __future__ import annotations

import pytest

from vllm_autofit.failures.classify import classify_log
from vllm_autofit.failures.failure import Remedy

UTILIZATION = "--gpu-memory-utilization"
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has a total capacity of 20.00 GiB"


def remedies(*lines: str) -> list[Remedy]:
    """What is advised for a log."""
    return list(classify_log(lines).remedies)


def in_function(name: str) -> str:
    """A frame."""
    return f'  File "/vllm/v1/worker/gpu_worker.py", line 1, in {name}'


def utilization_of(advice: list[Remedy]) -> Remedy:
    """The advice about the utilisation."""
    return next(each for each in advice if each.flag.startswith(UTILIZATION))


@pytest.mark.parametrize(
    "function", ["capture_model", "compile_or_warm_up_model", "initialize_kv_cache", "execute_model"]
)
def test_running_out_after_the_kv_cache_was_sized_asks_for_less(function: str) -> None:
    told = "INFO 01-02 03:04:05 [utils.py:1] non-default args: {'gpu_memory_utilization': 0.9}"
    lever = utilization_of(remedies(told, in_function(function), OOM))
    assert lever.flag == f"{UTILIZATION} 0.85"
    assert "lower" in lever.change


def test_without_the_present_share_the_step_is_told() -> None:
    lever = utilization_of(remedies(in_function("capture_model"), OOM))
    assert (lever.flag, lever.change) == (UTILIZATION, "ask for 0.05 less of the device")


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: No available memory for the cache blocks.",
        "ValueError: To serve at least one request with the model's max seq len (8), ...",
        "ValueError: max_num_seqs (9) exceeds available Mamba cache blocks (8).",
        "ValueError: Available memory on node 0 (7.15/11.96 GiB) on kv cache allocation is less than requested memory "
        "for kv (-0.55/0.12 GiB). Reduce CPU memory used by other processes.",
    ],
)
def test_no_room_for_the_kv_cache_asks_for_more(text: str) -> None:
    assert "more of the memory" in utilization_of(remedies(text)).change


def test_a_share_that_is_not_free_is_cut_to_what_is() -> None:
    text = "ValueError: Free memory on device cuda:0 ({}/100.0 GiB) on startup is less than desired (0.9, 90.0 GiB)"
    assert remedies(text.format("65.99"))[0].flag == f"{UTILIZATION} 0.65"
    first, second = remedies(text.format("7.0"))
    assert "stop the processes" in first.change
    assert second.flag == f"{UTILIZATION} 0.07"


@pytest.mark.parametrize(
    ("rest", "flag"),
    [
        ("the estimated maximum model length is 896.", "--max-model-len 896"),
        ("", "--max-model-len 1000"),
        (
            "The model's max seq len (9) is larger than the maximum number of tokens that can be stored in KV "
            "cache (432)",
            None,
        ),
    ],
)
def test_a_context_that_fits_is_named(rest: str, flag: str | None) -> None:
    text = (
        "ValueError: To serve at least one request with the model's max seq len (4000), (2.0 GiB KV cache is needed, "
        f"which is larger than the available KV cache memory (0.5 GiB). {rest}"
    )
    assert remedies(text if flag else f"ValueError: {rest}")[0].flag == (flag or "--max-model-len 432")


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("ValueError: max_num_seqs (1024) exceeds available Mamba cache blocks (600).", "--max-num-seqs 600"),
        (
            "RuntimeError: CUDA out of memory occurred when warming up sampler with 1024 dummy requests.",
            "--max-num-seqs 512",
        ),
        (
            "ValueError: Available memory on node 1 (37.9/125.63 GiB) on kv cache allocation is less than requested "
            "memory for kv (40.0 GiB).",
            "--kv-cache-memory-bytes 37G",
        ),
        (
            "ValueError: The worker already uses 66.4 GiB (model weights and runtime), more than the 62.82 GiB of CPU "
            "memory reserved for it on node 1, leaving none for the KV cache. Increase it to more than 0.56, or",
            f"{UTILIZATION} 0.61",
        ),
    ],
)
def test_the_first_remedy_has_its_number(text: str, flag: str) -> None:
    assert remedies(text)[0].flag == flag


@pytest.mark.parametrize("function", ["load_model", "profile_run"])
def test_what_no_share_of_the_device_cures_does_not_name_it(function: str) -> None:
    assert not [each for each in remedies(in_function(function), OOM) if each.flag.startswith(UTILIZATION)]


def test_dev_shm_is_not_cured_by_memory_settings() -> None:
    (only,) = remedies("RuntimeError: Insufficient space in /dev/shm for x: 160 MiB required, 2 MiB free.")
    assert "--shm-size" in only.flag


def test_what_is_not_memory_gets_no_memory_setting() -> None:
    for text in ("KeyError: 'x'", "RuntimeError: CUDA error: an illegal memory access was encountered"):
        assert remedies(text) == []
