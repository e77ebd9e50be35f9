"""The rooms of the package as they are: in the contract of layers, in folders, and in what each file imports."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "dst"
DOC = (REPOSITORY / "docs" / "architecture.md").read_text()


@cache
def contracts() -> list[dict]:
    """Return the import contracts of ``pyproject.toml``."""
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@cache
def layers() -> tuple[frozenset[str], ...]:
    """Return the names of the rooms and top modules in each layer of the contract, from the top to the ground."""
    (contract,) = [contract for contract in contracts() if contract["type"] == "layers"]
    return tuple(
        frozenset(name.strip().removeprefix("dst.") for name in layer.split("|")) for layer in contract["layers"]
    )


def ground() -> frozenset[str]:
    """Return the modules of the ground floor: the lowest layers, which have no rooms."""
    return frozenset().union(*takewhile(lambda layer: layer <= top_modules(), reversed(layers())))


def floor(room: str) -> int:
    """Return the number of a room's layer, 0 at the top."""
    (number,) = [number for number, layer in enumerate(layers()) if room in layer]
    return number


def below(room: str) -> set[str]:
    """Return all that lies below a room."""
    return set().union(*layers()[floor(room) + 1 :])


def folders(package: Path = PACKAGE) -> set[str]:
    """Return the rooms that there are: folders with code."""
    return {path.name for path in package.iterdir() if path.is_dir() and any(path.rglob("*.py"))}


def top_modules(package: Path = PACKAGE) -> set[str]:
    """Return the modules at the top of the package."""
    return {path.stem for path in package.glob("*.py")} - {"__init__"}


def imported(room: str) -> set[str]:
    """Return the modules that the files of a room import, early or late or for types, as dotted names."""
    files = [PACKAGE / f"{room}.py"] if room in top_modules() else (PACKAGE / room).rglob("*.py")
    return {name for file in files for name in _imports(file)}


def importers(package: str) -> set[str]:
    """Return the files that import a package, relative to ours."""
    files = PACKAGE.rglob("*.py")
    return {
        file.relative_to(PACKAGE).as_posix()
        for file in files
        if any(name.partition(".")[0] == package for name in _imports(file))
    }


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative imports are not read here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
