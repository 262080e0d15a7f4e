"""``vllm-autofit doctor`` where there is no vLLM: what it prints, and its exit status."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_autofit

NEEDED = ("psutil", "filelock", "platformdirs", "pynvml", "vllm_autofit")
RUN = "import sys; sys.path.append({place!r}); from vllm_autofit.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A folder with what we need and no vLLM."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        found = Path(spec.origin)
        source = found.parent if found.name == "__init__.py" else found
        (folder / source.name).symlink_to(source)
    return str(folder)


def doctor(place: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", RUN.format(place=place), "doctor", *arguments],
        env={**os.environ, "PATH": "/nowhere", "PYTHONPATH": "", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_vllm_it_says_so_and_all_else(place: str) -> None:
    done = doctor(place, HF_TOKEN="hf_secret")
    assert done.stderr == ""
    assert "note     plugin       vLLM isn't installed here" in done.stdout
    assert "GiB free" in done.stdout
    assert "hf_secret" not in done.stdout


def test_a_problem_is_the_exit_status(place: str) -> None:
    done = doctor(place, "--format", "json", VLLM_AUTOFIT_POLCY="safe")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["schema"], document["verdict"], document["vllm"]) == (1, "problem", None)
    assert document["version"] == vllm_autofit.__version__
    assert [each["do"] for each in document["checks"] if "POLCY" in each["says"]] == [
        "Did you mean VLLM_AUTOFIT_POLICY?"
    ]


def test_notes_alone_are_no_problem(place: str) -> None:
    document = json.loads(doctor(place, "--format", "json").stdout)
    own = [each for each in document["checks"] if each["check"] not in ("devices", "engines")]
    assert {each["level"] for each in own} == {"ok", "note"}, "whatever runs beside on this machine"
