"""What the machine and the file systems say, as JSON on stdout: ``python -m vllm_autofit.doctor.readings WHAT``."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_autofit.errors import DeviceError, StoreError
from vllm_autofit.experience.files import write_json
from vllm_autofit.experience.locking import locks_work
from vllm_autofit.experience.store import Store
from vllm_autofit.facts.cgroups import memory_room
from vllm_autofit.facts.devices import host_memory, nvidia_devices, nvidia_processes
from vllm_autofit.facts.holders import device_holders, host_holders
from vllm_autofit.facts.weights import hub_cache
from vllm_autofit.settings import read_settings

LARGEST_PROCESSES = 5
NAMED = 3
"""Of paths that are all wrong for the same reason."""


def nvidia() -> dict[str, Any]:
    """The visible devices and who holds memory of them."""
    try:
        devices = nvidia_processes(os.environ)
        candidates = nvidia_devices(os.environ, 0) if devices else []
    except DeviceError as error:
        return {"devices": [], "error": str(error)}
    return {
        "order_matters": len(candidates) > len(devices),
        "devices": [
            {**asdict(device), "holders": [asdict(holder) for holder in device_holders(processes)]}
            for device, processes in devices
        ],
    }


def host() -> dict[str, Any]:
    """The host's memory, what control groups leave of it, and the processes that hold the most of it, but for those
    that ask."""
    holders = host_holders(LARGEST_PROCESSES, without=os.getppid())
    devices = [{**asdict(host_memory()), "holders": [asdict(holder) for holder in holders]}]
    return {"devices": devices, "room_bytes": memory_room()}


def cache() -> dict[str, Any]:
    """The folder of the records, the layers below it, and the settings that name them."""
    settings = read_settings()
    folder = settings.cache_dir
    return {
        "settings": list(settings.warnings),
        "folder": str(folder),
        "exists": os.access(folder, os.F_OK),
        **_use_of(folder),
        "layers": [str(layer) for layer in settings.profiles],
        "layers_skipped": _skipped(settings.profiles),
    }


def hub() -> dict[str, Any]:
    """The local cache of models."""
    folder = hub_cache(os.environ)
    return {"folder": str(folder), "models": sum(1 for _ in folder.glob("models--*"))}


def _use_of(folder: Path) -> dict[str, Any]:
    """Whether records can be written and read. Where there is no folder yet, one is made beside it and removed."""
    try:
        if not os.access(folder, os.F_OK):
            there = next(each for each in folder.parents if os.access(each, os.F_OK))
            with tempfile.TemporaryDirectory(dir=there) as trial:
                return {"error": "", "locks": _write(Path(trial))}
        locks = _write(folder)
        unusable = [str(path) for path in sorted(folder.rglob("*")) if not os.access(path, os.R_OK | os.W_OK)]
        findings = Counter() if unusable else Counter(finding.problem for finding in Store(folder).check())
    except OSError as error:
        return {"error": error.strerror or str(error)}
    except StoreError as error:
        return {"error": error.reason}
    return {"error": "", "locks": locks, "findings": findings, "unusable": unusable[:NAMED]}


def _write(folder: Path) -> bool:
    """Write a file the way that a start does, and say whether locks work."""
    trial = folder / f"doctor-{os.getpid()}.json"
    write_json(trial, {})
    try:
        return locks_work(trial)
    finally:
        trial.unlink()


def _skipped(layers: tuple[Path, ...]) -> list[str]:
    """What of the layers can't be read. Beside an empty folder of our own: reading that would set damage aside."""
    with tempfile.TemporaryDirectory() as empty:
        store = Store(Path(empty), layers)
        for _ in store.everything():
            pass
        store.pins()
    return store.skipped


READINGS: Mapping[str, Callable[[], dict[str, Any]]] = {"nvidia": nvidia, "host": host, "cache": cache, "hub": hub}

if __name__ == "__main__":
    json.dump(READINGS[sys.argv[1]](), sys.stdout)
