"""Where a run comes from: its code, libraries and machine."""

import os
import platform
import shlex
import subprocess
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from dst.files import sha256
from dst.records.lock import this_host

PACKAGE: Final = Path(__file__).resolve().parents[1]
"""The folder of the package."""

_LIBRARIES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")


_SOURCES: Final = (".py", ".c", ".h")


def pasteable(module: str, *words: object) -> str:
    """Return the command that starts a module of this code, as it can be pasted into a shell in this folder."""
    command = shlex.join(["python", "-m", module, *map(str, words)])
    searched = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    is_found = any(Path(folder).resolve() == PACKAGE.parent for folder in searched)
    return command if is_found else f"PYTHONPATH={shlex.quote(str(PACKAGE.parent))} {command}"


@cache
def code_version() -> dict[str, Any]:
    """Return the digest of the package's sources and, if there is git, the commit and the digest of its diff.

    The digest tells whether two runs were made by the same code; the commit tells where to find it. It is taken once in
    each process, since imported code does not change any more.
    """
    diff = _git("diff", "HEAD")
    return {
        "digest": code_digest(PACKAGE),
        "git": _git("rev-parse", "HEAD"),
        "diff": sha256(diff)[:16] if diff else None,
    }


def code_digest(package: Path) -> str:
    """Return the digest of a package's sources."""
    sources = sorted(path for path in package.rglob("*") if _is_source(path.relative_to(package), path))
    named = (f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0" for path in sources)
    return sha256(b"".join(named))[:16]


def passed_over(folder: str, names: Iterable[str]) -> set[str]:
    """Return the names in a folder that ``shutil.copytree`` shall ignore: hidden, compiled, and links to nowhere."""
    return {
        name
        for name in names
        if name.startswith(".")
        or name == "__pycache__"
        or not (Path(folder, name).is_file() or Path(folder, name).is_dir())
    }


def library_versions() -> dict[str, str | None]:
    """Return the versions of Python and of the libraries that can change a result, without importing them."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def _is_source(name: Path, path: Path) -> bool:
    """Say whether this is a source file. Editors put hidden files and broken links beside the files they edit."""
    return path.suffix in _SOURCES and path.is_file() and not any(part.startswith(".") for part in name.parts)


def machine() -> dict[str, str]:
    """Return the host's name and its processor's architecture."""
    return {"host": this_host(), "platform": platform.platform(), "machine": platform.machine()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Return git's answer about the package's folder; None if there is no git or no repository."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
