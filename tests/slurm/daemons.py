"""Starting daemons in one folder, and stopping every one that ever ran there."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_START_S = 60.0
_STOP_S = 20.0
_POLL_S = 0.05


class DaemonError(RuntimeError):
    """A daemon that does not come up; the message ends with what it logged last."""


def start(
    name: str,
    command: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    is_up: Callable[[], bool],
    timeout_s: float = _START_S,
) -> None:
    """Start a daemon that stays in the foreground and wait until ``is_up``.

    Its pid is in ``<name>.pid`` from the first moment, so that ``stop`` finds it however the start ends.
    ``DaemonError`` if it ends or is not up in time.
    """
    with (folder / f"{name}.out").open("wb") as output:
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    (folder / f"{name}.pid").write_text(f"{process.pid}\n")
    deadline = time.monotonic() + timeout_s
    while not is_up():
        if process.poll() is not None:
            raise DaemonError(f"{name} ended with code {process.returncode}:\n{tail(name, folder)}")
        if time.monotonic() > deadline:
            raise DaemonError(f"{name} is not up after {timeout_s:.0f} s:\n{tail(name, folder)}")
        time.sleep(_POLL_S)
    process.returncode = 0  # it is stopped by its pid file: let Popen not warn that it still runs


def tail(name: str, folder: Path, lines: int = 20) -> str:
    """Return the last lines of what a daemon printed and logged."""
    texts = [
        path.read_text(errors="replace") for path in (folder / f"{name}.out", folder / f"{name}.log") if path.exists()
    ]
    return "\n".join("\n".join(text.splitlines()[-lines:]) for text in texts)


def stop(names: Sequence[str], folder: Path) -> None:
    """Stop daemons by their pid files, one after the other; what does not end in time is killed."""
    for name in names:
        pid = _pid(folder / f"{name}.pid")
        # A number alone could be anybody's by now: only a process that runs in the folder is the daemon.
        if pid is not None and _runs_in(pid, folder):
            _end(pid)


def kill_jobs(conf: Path) -> None:
    """Kill what is left of the jobs of the cluster with this ``slurm.conf``."""
    wanted = f"SLURM_CONF={conf}".encode()
    for pid in _pids():
        environ = _read(Path(f"/proc/{pid}/environ")).split(b"\0")
        is_step = _read(Path(f"/proc/{pid}/comm")).startswith(b"slurmstepd")
        if wanted in environ and (is_step or any(entry.startswith(b"SLURM_JOB_ID=") for entry in environ)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if not _gone(pid, _STOP_S):
            os.kill(pid, signal.SIGKILL)
            _gone(pid, _STOP_S)


def _gone(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(ChildProcessError):  # the child of another process, of an earlier run of the tests
            os.waitpid(pid, os.WNOHANG)
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(_POLL_S)
    return False


def _runs_in(pid: int, folder: Path) -> bool:
    command = _read(Path(f"/proc/{pid}/cmdline")) + _read(Path(f"/proc/{pid}/environ"))
    return str(folder).encode() in command


def _pid(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _pids() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile, or is not ours
        return b""
