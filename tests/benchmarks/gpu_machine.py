"""What the results in the tests of the proof on a GPU are bound to."""

from __future__ import annotations

from vllm_autofit.units import GIB

MACHINE = {
    "device": "a device", "total_bytes": 80 * GIB, "kind": "cuda", "driver": "575", "vllm": "0.32.0", "torch": "2.9",
    "vllm_autofit": "0.1", "python": "3.11", "free_at_first_bytes": 79 * GIB,
}  # fmt: skip
