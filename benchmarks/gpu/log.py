"""What a start of vLLM 0.20 to 0.33 printed about its memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vllm_autofit.failures.classify import classify_log
from vllm_autofit.units import GIB

SIZES = {
    "weights_bytes": re.compile(r"Model loading took ([\d.]+) GiB"),
    "kv_cache_bytes": re.compile(r"Available KV cache memory: (-?[\d.]+) GiB"),
    "graphs_bytes": re.compile(r"Graph capturing finished in \d+ secs?, took (-?[\d.]+) GiB"),
    "graphs_estimated_bytes": re.compile(r"Estimated CUDA graph memory: (-?[\d.]+) GiB"),
}
TOKENS = re.compile(r"KV cache size: ([\d,]+) tokens")
CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
"""``v1/core/kv_cache_utils.py``; one line from 0.28 on, two before. Of several starts in a log, the last counts."""
TAIL_LINES = 40


def figures(text: str) -> dict[str, Any]:
    """What was printed, by name: bytes, tokens of the KV cache, context, requests of that context at once."""
    found: dict[str, Any] = {
        name: round(float(matches[-1]) * GIB) for name, pattern in SIZES.items() if (matches := pattern.findall(text))
    }
    if tokens := TOKENS.findall(text):
        found["kv_tokens"] = _number(tokens[-1])
    if concurrency := CONCURRENCY.findall(text):
        context, times = concurrency[-1]
        found |= {"context": _number(context), "concurrency": float(times)}
    return found


def failure(text: str) -> dict[str, Any]:
    """Why it failed, as ``vllm-autofit diagnose`` says, and the end of the log."""
    verdict = classify_log(text.splitlines())
    first: Mapping[str, str] = vars(verdict.remedies[0]) if verdict.remedies else {}
    return {
        "is_capacity_failure": verdict.is_capacity,
        "phase": verdict.phase,
        "cause": verdict.cause,
        "remedy": first.get("flag") or first.get("change", ""),
        "tail": text.splitlines()[-TAIL_LINES:],
    }


def _number(text: str) -> int:
    return int(text.replace(",", ""))
