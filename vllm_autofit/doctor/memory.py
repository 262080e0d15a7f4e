"""Verdicts on the devices: how much of them is free, and who holds the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_autofit.doctor.asking import Answer
from vllm_autofit.doctor.verdict import Level, Verdict
from vllm_autofit.units import GIB

PLAIN_SHARE = 0.9
"""What vLLM asks for by itself (``gpu_memory_utilization`` of 0.6 to 0.18; later ones ask for 0.92)."""


@dataclass(frozen=True)
class Memory:
    """The devices of this machine as they were read, and what to make of them.

    ``devices`` are the fields of ``DeviceFacts``, with the fields of each ``Holder`` under ``holders``.
    """

    devices: list[dict[str, Any]]
    verdicts: list[Verdict]


def look_at_memory(backend: str | None, nvidia: Answer, host: Answer, nodes: Sequence[Mapping[str, Any]]) -> Memory:
    """What the readings say.

    Args:
        backend: vLLM's; None where it isn't known.
        nvidia: the visible NVIDIA devices.
        host: the host and its processes.
        nodes: the host's memory as vLLM's CPU workers read it; none on other backends.
    """
    devices = list(nvidia.found.get("devices", []))
    hosts = [dict(each) for each in host.found.get("devices", [])]
    if nodes and hosts:
        holders = hosts[0]["holders"]
        hosts = [{**node, "holders": [] if place else holders} for place, node in enumerate(nodes)]
    verdicts = [*_nvidia_troubles(backend, nvidia), *(_room(device, True) for device in devices)]
    if host.trouble:
        verdicts.append(_no_answer("the host's processes", host.trouble))
    verdicts += [_room(each, backend == "cpu") for each in hosts]
    if (room := host.found.get("room_bytes")) is not None:
        says = f"a limit of a container or service leaves {room / GIB:.1f} GiB of the host's memory"
        do = "vllm-autofit stays below it; what vLLM itself sees of it depends on its version (docs/devices.md)"
        verdicts.append(Verdict("note", "devices", says, do))
    return Memory([*devices, *hosts], [*verdicts, *_orphans([*devices, *hosts])])


def label(device: Mapping[str, Any]) -> str:
    """What a device is called: several of one machine may have the same name."""
    return f"{device['name']} (device {device['index']})" if device["kind"] == "cuda" else str(device["name"])


def _nvidia_troubles(backend: str | None, nvidia: Answer) -> Iterator[Verdict]:
    if nvidia.trouble:
        do = "If nvidia-smi hangs too, the driver is stuck: look for Xid in the kernel's log; a reboot may be needed"
        yield Verdict("problem", "devices", f"the NVIDIA driver gives {nvidia.trouble}", do)
    elif error := nvidia.found.get("error"):
        if backend in ("cuda", ""):
            yield Verdict("problem", "devices", error.rpartition(". ")[0], error.rpartition(". ")[2])
        elif backend is None:
            yield Verdict("note", "devices", "no NVIDIA device can be read here", "None is needed to plan with --gpu")
    elif not nvidia.found["devices"]:
        level: Level = "problem" if backend == "cuda" else "note"
        do = "Name devices in CUDA_VISIBLE_DEVICES that nvidia-smi -L lists, each once"
        yield Verdict(level, "devices", "no NVIDIA device is visible", do)
    if backend not in ("cuda", "cpu", "", None):
        yield Verdict("note", "devices", f"vllm-autofit doesn't plan for the backend {backend}; vLLM's defaults stand")


def _no_answer(what: str, trouble: str) -> Verdict:
    return Verdict("problem", "devices", f"{what} can't be read: {trouble}", "Try ps aux: it may hang as well")


def _room(device: Mapping[str, Any], used_by_vllm: bool) -> Verdict:
    total, free = device["total_bytes"], device["free_bytes"]
    says = f"{label(device)}: {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if not used_by_vllm or free >= PLAIN_SHARE * total:
        return Verdict("ok", "devices", says)
    held = sum(holder["bytes"] or 0 for holder in device["holders"])
    if device["kind"] == "cuda" and not device["shares_host"]:
        says += f"; processes listed below hold {held / GIB:.1f} GiB of it"
        if held < (total - free) / 2:
            says += ", the rest is held by ones that can't be seen from here"
    do = "Plain vLLM asks for more than that; vllm-autofit asks for what is there. Stop what isn't needed"
    return Verdict("note", "devices", says, do)


def _orphans(devices: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """A process may hold memory of several devices, and of the host."""
    orphans = {each["pid"]: each for device in devices for each in device["holders"] if each["orphaned"]}
    engines = {each["pid"] for device in devices for each in device["holders"] if each["engine"]}
    for pid, orphan in orphans.items():
        says = f"{orphan['command']} (process {pid}, user {orphan['user']}) has lost its front end and still holds "
        says += " and ".join(
            f"{each['bytes'] / GIB:.1f} GiB of {label(device)}"
            for device in devices
            for each in device["holders"]
            if each["pid"] == pid and each["bytes"] is not None
        )
        yield Verdict("problem", "engines", says, f"End it: kill {pid}, or kill -9 {pid} if it stays")
    if engines and not orphans:
        yield Verdict("ok", "engines", f"{len(engines)} running, each with a front end")
