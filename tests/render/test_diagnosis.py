"""A failure as people and as programs read it."""

from __future__ import annotations

import json

from vllm_autofit.failures.failure import Failure, Remedy
from vllm_autofit.render.diagnosis import diagnosis_account, diagnosis_document

FAILURE = Failure(
    True,
    "device",
    "cudagraph_capture",
    "The device ran out of memory while CUDA graphs were captured.",
    {"tried_bytes": 64 * 2**20, "total_bytes": 24 * 2**30, "max_num_seqs": 256, "gpu_memory_utilization": 0.95},
    (
        Remedy("lower it to 0.90", "--gpu-memory-utilization 0.90", "it leaves room"),
        Remedy("stop what else runs", "", "it holds memory"),
    ),
    "high",
)


def test_the_document_has_exactly_the_promised_keys() -> None:
    document = json.loads(json.dumps(diagnosis_document(FAILURE)))
    assert document == {
        "is_capacity_failure": True,
        "resource": "device",
        "phase": "cudagraph_capture",
        "numbers": {
            "tried_bytes": 67108864,
            "total_bytes": 25769803776,
            "max_num_seqs": 256,
            "gpu_memory_utilization": 0.95,
        },
        "cause": "The device ran out of memory while CUDA graphs were captured.",
        "remedies": [
            {"change": "lower it to 0.90", "flag": "--gpu-memory-utilization 0.90", "why": "it leaves room"},
            {"change": "stop what else runs", "flag": "", "why": "it holds memory"},
        ],
        "confidence": "high",
    }


def test_the_account_begins_with_the_cause_and_names_the_flag() -> None:
    assert diagnosis_account(FAILURE, None).splitlines() == [
        "The device ran out of memory while CUDA graphs were captured.",
        "  out of device memory; phase cudagraph_capture; confidence high",
        "",
        "  tried                   64.00 MiB",
        "  total                   24.00 GiB",
        "  max num seqs            256",
        "  gpu memory utilization  0.95",
        "",
        "Change: --gpu-memory-utilization 0.90 (lower it to 0.90): it leaves room",
        "  or: stop what else runs: it holds memory",
    ]


def test_the_account_is_no_wider_than_the_terminal() -> None:
    assert all(len(line) <= 60 for line in diagnosis_account(FAILURE, 60).splitlines())


def test_where_nothing_is_known_little_is_said() -> None:
    text = diagnosis_account(Failure(False, "none", "other", "Nothing here says that anything failed."), None)
    assert text.splitlines() == [
        "Nothing here says that anything failed.",
        "  not a lack of memory; phase other; confidence low",
    ]
