"""Building and loading kernels: once for a level of vector instructions, not for a machine.

A library is named by a digest of all that makes it: source, compiler, flags, level. So one shared folder serves nodes
of different kinds, and processes that build at once do not disturb each other. An object is code: it is loaded only if
it belongs to this user, nobody else may write it, and it is what was built.
"""

import ctypes
import json
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from dst.files import sha256

_SOURCES: Final = sorted(Path(__file__).parent.glob("*.[ch]"))
_FLAGS: Final = ("-O3", "-std=gnu11", "-fPIC", "-fopenmp")
"""Never ``-ffast-math``: loading such a library turns denormals into zeros in the whole process."""

LEVELS: Final = {
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mbmi2"),
    "avx2": ("-mavx2", "-mfma", "-mbmi2"),
    "neon": (),
}
"""Level -> its flags, widest vectors first. Compilers that are older than names such as x86-64-v3 know these too."""

_TIMEOUT_S: Final = 120


class UnavailableError(RuntimeError):
    """There are no kernels on this machine; the message says why."""


def level() -> str:
    """Return the level of vector instructions that torch uses too; UnavailableError if kernels gain nothing on it."""
    import torch  # which building by itself does not need

    known = {"AVX512": "avx512", "AVX2": "avx2"}
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in known:
        return known[capability]
    if platform.machine() in ("aarch64", "arm64"):
        return "neon"
    raise UnavailableError(f"this CPU ({capability}) has no fused multiply-add, without which masks are as fast")


@cache
def load(folder: Path, at: str | None = None) -> ctypes.CDLL:
    """Return the kernels for this machine, built in ``folder`` unless they are there; UnavailableError says why not.

    ``at``: a level, if not the machine's own.
    """
    library = built(folder, at or level())
    try:
        return ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError as error:  # a mount that allows no code, an OpenMP that is not that of torch
        raise UnavailableError(f"kernels cannot be loaded ({error})") from error


def built(folder: Path, at: str) -> Path:
    """Return the library of a level, built in ``folder`` unless it is there; UnavailableError if it is not safe."""
    compiler = _compiler()
    sources = [source.read_text() for source in _SOURCES]
    name = sha256("\n".join([*sources, _version(compiler), *compiler[1:], *_FLAGS, *LEVELS[at], at]))[:16]
    library = folder / f"kernels-{at}-{name}.so"
    try:
        if not _is_built(library):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _build(compiler, at, library)
        _check_ours(folder)
        _check_ours(library)
    except OSError as error:
        raise UnavailableError(f"kernels cannot be built in {folder} ({error})") from error
    return library


@cache
def _compiler() -> tuple[str, ...]:
    """Return the command of the compiler: that of ``CC``, which may have options, or the first one that is here."""
    asked = os.environ.get("CC")
    for name, *options in [shlex.split(asked)] if asked and asked.strip() else [["cc"], ["gcc"], ["clang"]]:
        if found := shutil.which(name):
            return found, *options
    raise UnavailableError(f"there is no C compiler ({asked or 'cc, gcc or clang'}) on this machine")


@cache
def _version(compiler: tuple[str, ...]) -> str:
    return _run([*compiler, "--version"]).partition("\n")[0]


def _build(compiler: tuple[str, ...], at: str, library: Path) -> None:
    """Compile into private files, which get their names when they are whole."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".building-") as private:
        built, shared = [], Path(private, "kernels.so")
        for source in (source for source in _SOURCES if source.suffix == ".c"):
            built.append(str(Path(private, f"{source.stem}.o")))
            _run([*compiler, *_FLAGS, *LEVELS[at], "-c", str(source), "-o", built[-1]])
        # Linked without OpenMP, so that the runtime that torch has loaded serves: two in a process disturb each other.
        _run([*compiler, "-shared", *built, "-lm", "-o", str(shared)])
        shared.chmod(0o700)
        said = Path(private, "kernels.json")
        said.write_text(json.dumps({"sha256": sha256(shared.read_bytes())}))
        shared.replace(library)
        said.replace(library.with_suffix(".json"))


def _is_built(library: Path) -> bool:
    """Say whether a library is what was built, whole."""
    try:
        said = json.loads(library.with_suffix(".json").read_bytes())
        return bool(said["sha256"] == sha256(library.read_bytes()))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _check_ours(path: Path) -> None:
    """Raise UnavailableError for what somebody else owns or may write."""
    found = path.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnavailableError(f"{path} belongs to somebody else, or others may write it: remove it")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr or error.stdout).strip().splitlines()[-1:]
        raise UnavailableError(f"{command[0]} fails: {' '.join(last)}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]} cannot be run ({error})") from error
    return done.stdout
