"""What a process may take of an NVIDIA device less than NVML says: a client of MPS, and any process under WSL."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping

from vllm_autofit.units import GIB, MIB

MPS_LIMIT = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
"""NVIDIA's multi-process service: bytes that a client may take, as in ``0=2G,1=512M``. With ``0=1G``, CUDA told
0.98 GiB free of an unchanged total (published for a T4), so vLLM still multiplies the whole."""

ENTRY = re.compile(r"\s*(\w[\w-]*)\s*=\s*(\d+)\s*([GMK]?)B?\s*", re.IGNORECASE)
UNITS = {"G": GIB, "M": MIB, "K": 1024, "": 1}

WSL_UNSEEN_BYTES = 768 * MIB
"""Taken by Windows' side of the driver without NVML's notice: 770 MB on an RTX 5090 that nothing else used, where vLLM
read 30.12 of 31.84 GiB free with its context (Alex8791-cyber/cognithor#318). Other devices: not measured."""


def mps_limit(environ: Mapping[str, str], *names: str) -> int | None:
    """The bytes that MPS lets this process take of a device; None where no limit is set.

    Args:
        environ: for ``CUDA_MPS_PINNED_DEVICE_MEM_LIMIT``.
        names: the numbers and the UUID that may mean the device; where several have limits, the smallest counts.
    """
    entries = [ENTRY.fullmatch(entry) for entry in environ.get(MPS_LIMIT, "").split(",")]
    limits = [
        int(entry[2]) * UNITS[entry[3].upper()]
        for entry in entries
        if entry is not None and any(_means(entry[1], name) for name in names)
    ]
    return min(limits, default=None)


def in_wsl() -> bool:
    """Whether Windows runs this kernel (its Subsystem for Linux 2); told as vLLM does (``platforms/interface.py``)."""
    return "microsoft" in platform.release().lower()


def _means(written: str, name: str) -> bool:
    return name == written or (written.startswith("GPU-") and name.startswith(written))
