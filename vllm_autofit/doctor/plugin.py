"""Verdicts on the plugin: does vLLM load it, and do the functions that it hooks look as it knows them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vllm_autofit import switched_off
from vllm_autofit.doctor.asking import Answer
from vllm_autofit.doctor.verdict import Verdict

NAME = "vllm_autofit"
"""Of our entry point: what ``VLLM_PLUGINS`` has to name."""
NAMED = 5


def plugin_verdicts(answer: Answer, environ: Mapping[str, str]) -> list[Verdict]:
    """What ``hooks/report.py`` found, or why it found nothing."""
    report = answer.found
    trouble = answer.trouble or report.get("error", "")
    elsewhere = _interpreter_of_vllm(environ)
    if elsewhere is not None and elsewhere.parent != Path(sys.executable).parent:
        says = f"the command vllm runs with {elsewhere}, vllm-autofit with {sys.executable}"
        return [Verdict("problem", "plugin", says, "Install vllm-autofit where vLLM is, and run its doctor there")]
    if report.get("installed") is False:
        return [Verdict("note", "plugin", "vLLM isn't installed here: plans are made, and no launch is touched")]
    if trouble:
        how = "Try python -c 'import vllm.engine.arg_utils': what ails it ails `vllm serve` too"
        return [Verdict("problem", "plugin", f"vLLM can't be looked at: {trouble}", how)]
    return [_loaded(report, environ), *_seams(report["seams"]), *_names(report)]


def _interpreter_of_vllm(environ: Mapping[str, str]) -> Path | None:
    """Python of the environment that the command ``vllm`` belongs to; None where there is none, or it can't be told."""
    command = shutil.which("vllm", path=environ.get("PATH", ""))
    if command is None:
        return None
    try:
        with Path(command).open("rb") as script:
            first = os.fsdecode(script.readline(4096)).strip()
    except OSError:
        return None
    path = Path(first.removeprefix("#!"))
    return path if first.startswith("#!/") and path.name.startswith("python") else None


def _loaded(report: Mapping[str, Any], environ: Mapping[str, str]) -> Verdict:
    where = f"vLLM {report['vllm']}, backend {report['backend'] or 'none'}"
    if NAME not in report["plugins"]:
        do = "Install vllm-autofit with the package manager of the environment that holds vLLM"
        return Verdict("problem", "plugin", f"{where} doesn't find vllm-autofit among its plugins", do)
    if report["loaded"]:
        return Verdict("ok", "plugin", f"{where} loads vllm-autofit")
    if switched_off(environ):
        return Verdict("note", "plugin", f"{where}; VLLM_AUTOFIT turns vllm-autofit off")
    if _left_out(environ):
        do = f"Add {NAME} to VLLM_PLUGINS, separated by a comma without blanks, or unset it"
        return Verdict("problem", "plugin", f"{where} doesn't load vllm-autofit: VLLM_PLUGINS leaves it out", do)
    return Verdict(
        "problem", "plugin", f"{where} found vllm-autofit and didn't load it", "Look for warnings in its log"
    )


def _left_out(environ: Mapping[str, str]) -> bool:
    chosen = environ.get("VLLM_PLUGINS")
    return chosen is not None and NAME not in chosen.split(",")  # vLLM 0.32 strips no blanks either


def _seams(seams: list[dict[str, Any]]) -> Iterator[Verdict]:
    broken = [seam for seam in seams if seam["state"] in ("changed", "missing")]
    absent = sum(seam["state"] == "absent" for seam in seams)
    held = len(seams) - len(broken) - absent
    says = f"{held} of {len(seams)} functions of vLLM's are as vllm-autofit knows them"
    if absent:
        says += f"; {absent} aren't in this vLLM, and needn't be"
    if not broken:
        yield Verdict("ok", "seams", says)
    for seam in broken:
        found = f" ({seam['detail']})" if seam["detail"] else ""
        do = "Install a vllm-autofit that knows this vLLM; until then vLLM runs without this part"
        says = f"{seam['function']} is {seam['state']}{found}: {seam['without']} doesn't work"
        yield Verdict("problem", "seams", says, do)


def _names(report: Mapping[str, Any]) -> Iterator[Verdict]:
    if report["missing_fields"]:
        missing = ", ".join(report["missing_fields"])
        yield Verdict("problem", "settings", f"this vLLM has no {missing}", "vllm-autofit leaves it alone")
    for kind, unknown in (("options", report["unknown_fields"]), ("variables", report["unknown_variables"])):
        if unknown:
            says = f"vLLM {report['vllm']} has {len(unknown)} {kind} that this vllm-autofit doesn't know: "
            says += ", ".join(unknown[:NAMED]) + (", ..." if len(unknown) > NAMED else "")
            yield Verdict("note", "settings", says, "A start that sets one of them learns from its like alone")
