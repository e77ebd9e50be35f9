"""Remove what no run needs any more: ``python -m dst.launcher.clean DIR``, which by default only says what it would.

Runs, their checkpoints and their records are never touched, only what was put beside them and can be had again: copies
of the code, logs and files of jobs, decoded data sets, and what a killed sender to wandb has left.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dst.files import size
from dst.launcher.arguments import command, runs_below
from dst.launcher.observe import JOB_FILES, observe
from dst.records.lock import LockedError, locked
from dst.records.read import read_launch, read_run
from dst.records.states import OVER, State
from dst.records.store import RecordError
from dst.run.environment import FROZEN
from dst.run.terminal import program
from dst.tracking.mirrored import SCRATCH

_DESCRIPTION = """\
Say what lies in an output root that no run needs which is queued, running or unfinished, and with --remove remove it:
copies of the code (.code), logs of jobs (.launch), decoded data sets (.cache), and what killed processes have left of
wandb. Runs and their records stay. Finished runs need none of it; data sets are decoded again where they are needed."""

_CACHE: Final = ".cache"
_NEW_S: Final = 3600.0
"""A temporary folder that is younger may be that of a process that is just being started."""


@dataclass(frozen=True)
class _Needs:
    """What unfinished runs need, by name: copies of the code, folders of jobs' logs, and data sets."""

    code: frozenset[str]
    logs: frozenset[str]
    data: frozenset[str]


def main(arguments: Sequence[str]) -> int:
    """Print what is not needed, remove it if asked to, and return the exit code."""
    parser = command("clean", _DESCRIPTION)
    parser.add_argument("--remove", action="store_true", help="remove it, instead of only saying so")
    options = parser.parse_args(arguments)
    root: Path = options.dir
    with ExitStack() as stack:
        try:
            if options.remove and (root / JOB_FILES).is_dir():  # nothing is submitted meanwhile
                stack.enter_context(locked(root / JOB_FILES))
            needs = _needs(root)
        except LockedError as error:
            print(f"error: another command submits runs to {root} ({error.holder}): try again later", file=sys.stderr)
            return 1
        except (RecordError, OSError) as error:
            print(f"error: nothing is removed, since it is unknown what is needed: {error}", file=sys.stderr)
            return 1
        if needs is None:
            return 2
        return _report([*_unneeded(root, needs), *_left_of_wandb()], remove=options.remove)


def _needs(root: Path) -> _Needs | None:
    """Return what the unfinished runs below an output root need; None if there is no such folder.

    RecordError if that cannot be read of one of them.
    """
    found = runs_below(root)
    if found is None:
        return None
    observed = observe([run.folder for run in found if run.state is None])
    states = [*((run.state, run.why) for run in found), *((run.state, run.why) for run in observed)]
    if damaged := [str(why) for state, why in states if state == State.UNREADABLE]:
        raise RecordError(damaged[0])
    needing = [Path(run.folder) for run in observed if run.state not in OVER or run.is_taken or run.has_job]
    known = [(read_run(folder), read_launch(folder) or {}) for folder in needing]
    code = {Path(launch["code"]).name for _, launch in known if launch.get("code")}
    begun = {str(about.get("code", {}).get("digest")) for about, _ in known}
    logs = {Path(launch["logs"]).name for _, launch in known if launch.get("logs")}
    data = {str(about.get("config", {}).get("data.name")) for about, _ in known}
    return _Needs(frozenset(code | begun), frozenset(logs), frozenset(data))


def _unneeded(root: Path, needs: _Needs) -> Iterator[tuple[Path, str]]:
    """Yield what lies in an output root that no unfinished run needs, and what it is."""
    for path in _inside(root / FROZEN):
        if path.name not in needs.code:
            yield path, "code of finished runs"
    for path in _inside(root / JOB_FILES):
        if path.is_dir() and path.name not in needs.logs:
            yield path, "logs of finished runs"
    for path in _inside(root / _CACHE):
        named = path.name.lstrip(".")  # hidden while it is being written
        if not any(named.startswith((f"{name}-", f"{name}.")) for name in needs.data):
            yield path, "decoded data"


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _left_of_wandb() -> Iterator[tuple[Path, str]]:
    """Yield temporary folders of senders to wandb whose processes were killed."""
    left = [path for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*") if _is_old_and_own(path)]
    used = b"".join(_environments()) if left else b""
    for path in left:
        if os.fsencode(path) not in used:
            yield path, "left of a sender to wandb"


def _is_old_and_own(path: Path) -> bool:
    try:
        about = path.lstat()
    except FileNotFoundError:  # its sender has just ended
        return False
    return about.st_uid == os.getuid() and time.time() - about.st_mtime > _NEW_S


def _environments() -> Iterator[bytes]:
    """Yield the environment of each process of this user."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            yield path.read_bytes()
        except OSError:  # it has ended, or is another user's
            continue


def _report(unneeded: Iterable[tuple[Path, str]], *, remove: bool) -> int:
    """Print, and remove if asked to; return the exit code."""
    total, count, failed = 0, 0, False
    for path, what in unneeded:
        try:
            taken = _bytes(path)
            if remove:
                _remove(path)
        except FileNotFoundError:  # somebody else has just removed it
            continue
        except OSError as error:
            failed = True
            print(f"error: cannot remove {path}: {error}", file=sys.stderr)
            continue
        total, count = total + taken, count + 1
        print(f"{'removed' if remove else 'would remove'}  {size(taken):>10}  {path}  ({what})")
    hint = "" if remove or not count else "; --remove removes them"
    print(f"{count} {'removed' if remove else 'not needed'}, {size(total)}{hint}")
    return 1 if failed else 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _bytes(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files: list[Any] = [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]
    return sum(file.lstat().st_size for file in files if file.is_file() or file.is_symlink())


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
