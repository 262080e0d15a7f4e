"""Real starts on many versions of vLLM, and the page about them.

    python -m dev.versions [VERSION ...] [--folder FOLDER] [--out FILE] [--prepare] [--again] [--keep]

Makes an environment per version, runs the checks in it (``check.py``), removes it again, and writes the page from all
results so far. A version that has its result isn't run again; one that was interrupted goes on. A version takes two to
four minutes to install, up to 8 GB while it is there, and two minutes of two cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

from dev.environment import ROOT
from dev.versions.check import CHECKS, NOT_RUN
from dev.versions.environments import RELEASED, install_ours, make, packages
from dev.versions.page import page

WANTED = ("0.12.0", "0.16.0", "0.19.0", "0.24.0", "0.28.0", "0.30.0", "0.32.0")
SECONDS = 600
"""For the checks of one version."""


def main() -> int:
    """Returns an exit status: 0 if every check of every version named is passed."""
    options = _options()
    results: Path = options.folder / "results"
    results.mkdir(parents=True, exist_ok=True)
    for version in options.versions:
        result = results / f"{version}.json"
        if options.prepare:
            make(version, options.folder / version)
        elif options.again or not _is_complete(result):
            if options.again:
                shutil.rmtree(options.folder / version / "checks", ignore_errors=True)
            result.write_text(json.dumps(_result(version, options.folder / version), indent=1) + "\n")
            if not options.keep and _is_complete(result):
                shutil.rmtree(options.folder / version)
    found = {file.stem: json.loads(file.read_text()) for file in results.glob("*.json")}
    if found and options.out:
        options.out.write_text(page(found))
    return 0 if all(version in found and _is_well(found[version]) for version in options.versions) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"default: {' '.join(WANTED)}")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "versions", help="environments and results")
    parser.add_argument("--out", type=Path, help="the page, written anew: docs/compatibility.md")
    parser.add_argument("--prepare", action="store_true", help="only make the environments")
    parser.add_argument("--again", action="store_true", help="run versions that have a result, too")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    options = parser.parse_args()
    options.versions = options.versions or list(WANTED)
    for version in set(options.versions) - set(RELEASED):
        parser.error(f"nothing is known of vLLM {version} (dev/versions/environments.py)")
    return options


def _result(version: str, folder: Path) -> dict[str, Any]:
    """What became of each check, and of what the environment was made."""
    result: dict[str, Any] = {"date": date.today().isoformat(), "packages": {}}
    try:
        python = make(version, folder)
        install_ours(python)
        result["packages"] = packages(python)
    except subprocess.CalledProcessError as error:
        why = (error.stderr or "").strip().splitlines()[-1:] or ["no reason was given"]
        return result | {"found": dict.fromkeys(CHECKS, f"the environment could not be made: {why[0]}")}
    place = folder / "checks"
    place.mkdir(exist_ok=True)
    _run([str(python), "-m", "dev.versions.check", str(place)], place / "check.log")
    file = place / "found.json"
    found = json.loads(file.read_text()) if file.exists() else dict.fromkeys(CHECKS, NOT_RUN)
    return result | {"found": found}


def _run(command: list[str], log: Path) -> None:
    """Run the checks to their end; what they found so far counts when the time is up."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.terminate()  # it stops what it started
            process.wait()


def _is_complete(result: Path) -> bool:
    """Whether every check was tried."""
    return result.exists() and NOT_RUN not in json.loads(result.read_text())["found"].values()


def _is_well(result: dict[str, Any]) -> bool:
    return not any(result["found"].values())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the checks end, too
    sys.exit(main())
