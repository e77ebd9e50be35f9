"""Keep the MPS control daemon of one job: ``python -m dst.launcher.keeper 0=8000M 1=8000M``, which that job starts.

Each word is how much memory of a GPU a client may have. It says ``ready FOLDER`` or ``refused REASON`` on its output, a
pipe, and ends the daemon once its input ends: after a word, if the job is over; without one, if the job's process is
gone, whatever killed it. Its runs may still be saving then, so the daemon first waits for them. If the keeper itself
is killed, the system kills the daemon.

Requests to stop are not meant for the daemon: SLURM sends them to all processes of a job, whose runs shall save first.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from dst.signals import REQUESTS, die_with_parent

PROGRAM: Final = "nvidia-cuda-mps-control"

PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"

_LONGEST: Final = 80
"""What the name of the folder may have, since that of a socket in it has at most 107 bytes."""
_START_S: Final = 20.0
_QUIT_S: Final = 10.0
_SAVE_S: Final = 60.0
"""How long the runs of a job that was killed may take to save."""
_POLL_S: Final = 0.05
_LOG_LINES: Final = 40
"""What MPS says of a fault, with all its clients."""


class RefusedError(RuntimeError):
    """The daemon did not start; the message says why."""


def main(limits: Sequence[str]) -> int:
    """Start the daemon, keep it until the input ends, and end it."""
    for number in REQUESTS:  # what is ignored stays so in the daemon and its servers
        signal.signal(number, signal.SIG_IGN)
    folder = _folder()
    try:
        _keep(folder, {**os.environ, PIPES: str(folder), LOGS: str(folder)}, limits)
    except RefusedError as error:
        print(f"refused {error}", flush=True)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _keep(folder: Path, environment: Mapping[str, str], limits: Sequence[str]) -> None:
    with (folder / "output").open("wb") as output:
        daemon = subprocess.Popen(
            [PROGRAM, "-f"],  # in the foreground: a process of ours, which cannot be lost
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - the keeper has no threads
        )
    try:
        _await_start(daemon, folder)
        for limit in limits:  # before the first client
            _ask(environment, f"set_default_device_pinned_mem_limit {limit.replace('=', ' ')}")
        print(f"ready {folder}", flush=True)
        if not sys.stdin.read():
            _await_clients(environment)
        with suppress(RefusedError, subprocess.TimeoutExpired):
            _ask(environment, "quit")
            daemon.wait(_QUIT_S)
    finally:
        with suppress(ProcessLookupError):  # its servers, too
            os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()


def last_words(folder: Path) -> list[str]:
    """Return the ends of the daemon's logs."""
    lines: list[str] = []
    for name in ("output", "control.log", "server.log"):
        with suppress(OSError):
            lines += (folder / name).read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return [line.strip() for line in lines if line.strip()]


def _folder() -> Path:
    """Make a folder for sockets and logs that nobody else may enter, on this machine and with a short name."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="dst-mps-", dir=usual if len(os.fsencode(usual)) <= _LONGEST else "/tmp"))


def _await_start(daemon: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for the daemon's socket. Raises RefusedError if it ends before, or takes too long."""
    deadline = time.monotonic() + _START_S
    while not (folder / "control").exists():
        code = daemon.poll()
        if code is not None or time.monotonic() > deadline:
            why = f"it does not start within {_START_S:g} s" if code is None else f"it ended with exit code {code}"
            raise RefusedError(": ".join([f"{PROGRAM}: {why}", *last_words(folder)[-1:]]))
        time.sleep(_POLL_S)


def _await_clients(environment: Mapping[str, str]) -> None:
    """Wait until the daemon serves nobody any more, but not for ever."""
    deadline = time.monotonic() + _SAVE_S
    with suppress(RefusedError):
        while time.monotonic() < deadline and _clients(environment):
            time.sleep(10 * _POLL_S)


def _clients(environment: Mapping[str, str]) -> list[str]:
    servers = [word for word in _ask(environment, "get_server_list").split() if word.isdecimal()]
    told = [_ask(environment, f"get_client_list {server}") for server in servers]
    return [word for text in told for word in text.split() if word.isdecimal()]


def _ask(environment: Mapping[str, str], word: str) -> str:
    """Give the daemon a command, and return its answer. Raises RefusedError if it does not take it."""
    try:
        done = subprocess.run(
            [PROGRAM],
            env=dict(environment),
            input=f"{word}\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=_QUIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(f"{PROGRAM}: {word}: {error}") from error
    if done.returncode:
        raise RefusedError(" ".join(f"{PROGRAM}: {word}: exit code {done.returncode} {done.stdout}".split()))
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
