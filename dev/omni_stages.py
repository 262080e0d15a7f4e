"""vLLM-Omni's own files of stages, and how `vllm-autofit plan --stages` fills them.

    python -m dev.omni_stages [VERSION ...]

Fetches the package without its dependencies, keeps its files of stages below .cache/vllm-omni, fills those that name
two or more engines on a device for devices of 24, 48, 80 and 141 GiB, checks the sums and what changed in the text, and
prints a Markdown table. Exit status 1 where a check fails. `make test` runs the same checks on what is kept.
"""

from __future__ import annotations

import difflib
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from vllm_autofit.cli.main import EXIT_DOES_NOT_FIT, EXIT_OK
from vllm_autofit.cli.main import main as command
from vllm_autofit.stages.reading import read_stages
from vllm_autofit.stages.stage import SHARE, StageFile

VERSIONS = ("0.16.0", "0.20.0", "0.24.0", "0.30.0")
GIB = 2**30
DEVICES_GIB = (24, 48, 80, 141)
KEPT = Path(__file__).resolve().parent.parent / ".cache" / "vllm-omni"
CONTEXT_BYTES = 600 * 2**20
"""What each process takes at least beside its share: a CUDA context, see ``memory/overhead.py``."""


@dataclass(frozen=True)
class Filled:
    """One device of one file, filled."""

    file: str
    device_gib: int
    device: int
    shares: tuple[tuple[int, float], ...]
    """Number of the stage and its share, once for each process on the device."""
    said: str
    """What the command said."""
    failures: tuple[str, ...]
    """What is wrong; nothing should be."""

    @property
    def sum(self) -> float:
        """Of the shares."""
        return sum(share for _, share in self.shares)


def files() -> list[Path]:
    """The files that are kept and name two or more engines on a device, for NVIDIA's platform."""
    found = []
    for path in sorted(KEPT.glob("*/vllm_omni/**/*.yaml")):
        if "platforms" not in path.parts and has_stages(path) and crowded(read_stages(path)):
            found.append(path)
    return found


def has_stages(path: Path) -> bool:
    """Whether it is a file of stages at all: one of forced alignment isn't."""
    words = ("stages:", "stage_args:", "base_config:")
    return any(line.startswith(words) for line in path.read_text(encoding="utf-8").splitlines())


def crowded(file: StageFile) -> list[int]:
    """Devices with two or more engines."""
    everywhere = [device for stage in file.stages for device in stage.devices]
    return sorted({device for device in everywhere if everywhere.count(device) > 1})


def fill(path: Path, device_gib: int) -> list[Filled]:
    """What the command makes of one file, on each of its crowded devices."""
    name = f"{path.relative_to(KEPT).parts[0]} {path.name}"
    with tempfile.TemporaryDirectory() as folder:
        for each in path.parent.glob("*.yaml"):  # a file that is based on another finds it beside it
            (Path(folder) / each.name).write_bytes(each.read_bytes())
        output, said = Path(folder) / path.name, StringIO()
        with redirect_stderr(said):
            status = command(["plan", "--stages", str(path), "--gpu-memory", str(device_gib), "--output", str(output)])
        if status != EXIT_OK:
            failed: tuple[str, ...] = () if status == EXIT_DOES_NOT_FIT else (f"exit status {status}",)
            devices = crowded(read_stages(path))
            return [Filled(name, device_gib, device, (), said.getvalue(), failed) for device in devices]
        file = read_stages(output)
        failures = tuple(_stray_changes(path.read_text(encoding="utf-8"), output.read_text(encoding="utf-8")))
    return [
        Filled(
            name,
            device_gib,
            device,
            shares := _shares(file, device),
            said.getvalue(),
            (*failures, *_wrong_sum(shares, device_gib * GIB)),
        )
        for device in crowded(file)
    ]


def _shares(file: StageFile, device: int) -> tuple[tuple[int, float], ...]:
    return tuple((each.id, each.share or 0) for each in file.stages for there in each.devices if there == device)


def _wrong_sum(shares: tuple[tuple[int, float], ...], total: int) -> Iterator[str]:
    """What each asks for, as vLLM reckons it, and a context for each must have room; little may be left."""
    asked = sum(math.ceil(total * share) + CONTEXT_BYTES for _, share in shares)
    if asked > total:
        yield f"{asked - total} bytes too many"
    if not all(share for _, share in shares):
        yield "a stage without a share"
    if asked < 0.75 * total:
        yield f"only {asked / total:.0%} of the device used"


def _stray_changes(before: str, after: str) -> Iterator[str]:
    """Changed lines that are about anything but a share; a comment on a changed line has to stay."""
    changes = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[:2] in ("- ", "+ ")]
    removed = [line[2:] for line in changes if line[0] == "-"]
    added = [line[2:] for line in changes if line[0] == "+"]
    allowed = (f"{SHARE}:", "- stage_id:", "stages:")
    for line in removed:
        if not line.strip().startswith(f"{SHARE}:"):
            yield f"removed: {line}"
        comment = line.partition("#")[2]
        if comment and not any(new.endswith("#" + comment) for new in added):
            yield f"lost a comment: {line}"
    yield from (f"added: {line}" for line in added if line.strip() and not line.strip().startswith(allowed))


def fetch(version: str) -> None:
    """Keep one version's YAML files."""
    if (KEPT / version).exists():
        return
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        subprocess.run([*words, f"vllm-omni=={version}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            package.extractall(KEPT / version, [name for name in package.namelist() if name.endswith(".yaml")])


def main(versions: list[str]) -> int:
    """Fetch, fill, check and print. Returns an exit status."""
    for version in versions or VERSIONS:
        fetch(version)
    print("| file | device | GiB | shares | sum |\n|---|---|---|---|---|")
    wrong = 0
    for path in files():
        for device_gib in DEVICES_GIB:
            for each in fill(path, device_gib):
                shares = ", ".join(f"{stage}: {share}" for stage, share in each.shares) or "doesn't fit"
                print(f"| {each.file} | {each.device} | {device_gib} | {shares} | {each.sum:.4f} |")
                for failure in each.failures:
                    wrong += 1
                    print(f"WRONG: {each.file} on {device_gib} GiB: {failure}\n{each.said}", file=sys.stderr)
    print(f"{wrong} failures", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
