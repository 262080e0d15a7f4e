"""Verdicts on what the starts are remembered in."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_autofit.doctor.asking import Answer
from vllm_autofit.doctor.verdict import Verdict


def cache_verdicts(answer: Answer) -> list[Verdict]:
    """What ``readings.cache`` found, or why it found nothing."""
    if answer.trouble:
        do = "Is it on a network file system that doesn't answer? VLLM_AUTOFIT_CACHE_DIR names another folder"
        return [Verdict("problem", "cache", f"the cache folder can't be looked at: {answer.trouble}", do)]
    return list(_verdicts(answer))


def _verdicts(answer: Answer) -> Iterator[Verdict]:
    found = answer.found
    folder = found["folder"]
    another = "Make it a folder that this user can read and write, or name another one in VLLM_AUTOFIT_CACHE_DIR"
    if found["error"]:
        says = f"{folder}: {found['error']}; nothing is remembered"
        yield Verdict("problem", "cache", says, another)
    elif found["exists"]:
        yield Verdict("ok", "cache", f"{folder} can be read and written")
    else:
        yield Verdict("ok", "cache", f"{folder} will be made at the first start")
    if found.get("locks") is False:
        says = f"{folder} is on a file system without locks; a file that marks who writes takes their place"
        yield Verdict("note", "cache", says)
    if found.get("unusable"):
        says = f"this user can't read and write all of {folder}: {', '.join(found['unusable'])}"
        yield Verdict("problem", "cache", says, f"Make this user the owner: chown -R USER {folder}")
    if found.get("findings"):
        says = ", ".join(f"{count} × {problem}" for problem, count in found["findings"].items())
        do = "`vllm-autofit history check` names them, with --repair it repairs them; nothing is lost"
        yield Verdict("note", "cache", f"in {folder}: {says}", do)
    for message in found["layers_skipped"]:
        yield Verdict("problem", "layers", message, "Correct it, or take it out of VLLM_AUTOFIT_PROFILES")
    if found["layers"] and not found["layers_skipped"]:
        yield Verdict("ok", "layers", f"{', '.join(found['layers'])} can be read")
