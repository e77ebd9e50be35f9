"""What torch.compile builds: kept below the output root, and never left broken by a kill.

A process builds in a folder of its own. That begins as a copy of what earlier processes have left whole, and its new
files join those once a run has ended. The folder of a killed process is read by nobody, and removed by a later one.
"""

import atexit
import os
import secrets
import shutil
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from dst.files import replacing
from dst.records.lock import NAME, holder, locked, this_host

FOLDER: Final = ".inductor"
_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
_WHOLE: Final = "whole"
_ASKED: Final = os.environ.get(_VARIABLE)
"""Where it shall build; read before torch is imported, which sets the variable itself."""
_UNLOCKED_S: Final = 60.0
"""A folder of this age whose lock nobody holds is abandoned; a younger one may not have its lock yet."""

_own: Path | None = None


def build_below(root: Path) -> None:
    """Let torch.compile build below an output root, once for this process, unless the environment says where."""
    global _own
    if _own is not None or _ASKED:
        return
    ours = root.absolute() / FOLDER / str(os.getuid())
    ours.mkdir(parents=True, exist_ok=True)
    if ours.lstat().st_uid != os.getuid():
        return  # what somebody else put there is not executed
    ours.chmod(0o700)
    own = ours / f"{this_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    own.mkdir(mode=0o700)
    lock = ExitStack()
    lock.enter_context(locked(own))
    _remove_abandoned(ours)
    if (ours / _WHOLE).is_dir():
        # Without what another process has begun to keep: it may go at any moment, or be what a kill has left.
        shutil.copytree(ours / _WHOLE, own, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.tmp"))
    os.environ[_VARIABLE], _own = str(own), own
    atexit.register(_leave, own, lock)


def keep() -> None:
    """Let later processes have what this one has built; its run has ended, so that all of it is whole."""
    if _own is None:
        return
    try:
        for file in [path for path in _own.rglob("*") if path.is_file()]:
            target = _own.parent / _WHOLE / file.relative_to(_own)
            if file.name != NAME and file.suffix not in (".lock", ".tmp") and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as (copy,):
                    copy.write(file.read_bytes())
    except OSError as error:
        print(f"warning: what torch.compile built is not kept for later: {error}", file=sys.stderr, flush=True)


def _remove_abandoned(ours: Path) -> None:
    for folder in ours.iterdir():
        with suppress(OSError):
            is_old = time.time() - folder.stat().st_mtime > _UNLOCKED_S
            if folder.name != _WHOLE and is_old and holder(folder) is None:
                shutil.rmtree(folder)


def _leave(own: Path, lock: ExitStack) -> None:
    if own.name.split("-")[-2] == str(os.getpid()):  # not in a process that was forked from this one
        lock.close()
        shutil.rmtree(own, ignore_errors=True)
