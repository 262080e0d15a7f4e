"""What is said of a failed attempt, of a failed start, and of one that is refused."""

from __future__ import annotations

from typing import Any

from vllm_autofit.render.failure import attempt_line, holder_text, last_line, refusal_text

GIB = 2**30
OOM: dict[str, Any] = {
    "phase": "cudagraph_capture",
    "is_capacity": True,
    "cause": "The device ran out of memory while CUDA graphs were captured.",
    "numbers": {"tried_bytes": 2 * GIB, "free_bytes": GIB, "total_bytes": 80 * GIB, "device_index": 0},
    "remedies": [
        {"change": "ask for 0.02 less of the device", "flag": "--gpu-memory-utilization", "why": "it gets smaller"},
        {"change": "stop the processes that hold memory", "flag": "", "why": ""},
    ],
}
BEFORE = {"gpu_memory_utilization": 0.9, "max_model_len": 4096}


def test_the_last_line_has_cause_figures_one_option_and_what_comes_next() -> None:
    assert last_line(OOM, attempts=3, taught=True) == (
        "The device ran out of memory while CUDA graphs were captured (2.00 GiB tried, 1.00 GiB free). "
        "It was tried 3 times. What helps: ask for 0.02 less of the device (--gpu-memory-utilization). "
        "The next start knows, and plans for it."
    )


def test_a_failure_that_is_not_of_memory_has_no_figures() -> None:
    failure = {"is_capacity": False, "type": "OSError", "message": "no such file\nsecond", "numbers": OOM["numbers"]}
    assert last_line(failure, attempts=1, taught=False) == "OSError: no such file."
    explained = {**failure, "cause": "The model isn't there."}
    assert last_line(explained, attempts=1, taught=False) == "OSError: no such file. The model isn't there."
    same = {**failure, "cause": "OSError: no such file"}
    assert last_line(same, attempts=1, taught=False) == "OSError: no such file."


def test_a_failure_of_which_nothing_is_known_is_a_line_too() -> None:
    assert last_line({"type": "ValueError"}, attempts=1, taught=False) == "ValueError."


def test_an_attempt_says_what_the_next_one_does_otherwise() -> None:
    line = attempt_line(1, OOM, BEFORE, {"gpu_memory_utilization": 0.85, "max_model_len": -1})
    assert line.endswith(
        "free). Trying again with gpu_memory_utilization=0.85 instead of 0.9, max_model_len=auto instead of 4096."
    )
    assert line.startswith("attempt 1 failed: The device ran out")


def test_an_attempt_with_the_same_settings_says_why() -> None:
    said = attempt_line(1, OOM, BEFORE, BEFORE)
    assert said.endswith("Trying again with the same settings: what was missing is free now.")


def test_a_refusal_has_reasons_holders_remedies_and_the_way_around_it() -> None:
    text = refusal_text(["3 GiB are missing"], ["--max-model-len 8192: 2 GiB"], [holder_text(7, GIB, "python x", "me")])
    assert text.splitlines() == [
        "vllm-autofit doesn't start this, since it can't succeed: 3 GiB are missing.",
        "  Memory is held by python x (process 7, user me): 1.00 GiB.",
        "  1. --max-model-len 8192: 2 GiB",
        "  VLLM_AUTOFIT_REFUSE=0 starts it all the same.",
    ]
    assert holder_text(7, None, "", "") == "a process that can't be seen from here (process 7): an unknown amount"
