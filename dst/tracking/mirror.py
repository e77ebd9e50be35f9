"""Send a run's record to wandb from a separate process, so that no failure of wandb can affect the run.

No code, thread, signal handler or random number of wandb enters the training process. Nothing is handed over either:
the other process reads the record. A hanging server costs no time until the end, and there at most ``timeout_s``.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

import dst
from dst.files import telling_space
from dst.records.provenance import pasteable
from dst.signals import REQUESTS, blocked
from dst.tracking.mirrored import SCRATCH

_EXIT_S = 1.0
"""How long a process that has finished may take to end."""

_NOT_OURS = (
    "WANDB_SERVICE",
    "WANDB_DISABLED",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
    "WANDB_RUN_ID",
    "WANDB_RESUME",
)
"""Variables of an enclosing wandb run; our runs are described by their records alone."""


class Sending:
    """The process that sends a record (``dst.tracking.send``), for the process that started it.

    ``timeout_s``: how long it may take once the run is over. ``project`` and ``entity`` override those of the record.
    """

    def __init__(
        self, folder: Path, timeout_s: float, *, project: str | None = None, entity: str | None = None
    ) -> None:
        self._timeout_s = timeout_s
        self._unread, self._has_spoken = b"", False
        with telling_space(Path(tempfile.gettempdir(), "dst-wandb")):
            self._temporary = tempfile.mkdtemp(prefix=SCRATCH)  # it holds a socket, whose path must be short
        options = {"timeout-s": timeout_s, "project": project, "entity": entity}
        words = [f"--{name}={value}" for name, value in options.items() if value is not None]
        try:
            self._process = _start([str(folder), *words], self._temporary)
        except BaseException:
            shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        os.set_blocking(self._output.fileno(), False)

    @property
    def is_running(self) -> bool:
        """Say whether it may still report something."""
        return not self._output.closed

    @property
    def is_finished(self) -> bool:
        """Say whether everything has arrived."""
        return self._process.returncode == 0

    def reported(self) -> list[str]:
        """Return what it has reported since the last call, without waiting: each line is a problem."""
        try:
            data = os.read(self._output.fileno(), 65536)
        except BlockingIOError:
            return []
        *lines, self._unread = (self._unread + data).split(b"\n")
        told = [line.decode(errors="replace") for line in lines]
        if not data:
            self.kill(_EXIT_S)
            if not self.is_finished and not self._has_spoken:
                told.append("its process ended unexpectedly")
        self._has_spoken = self._has_spoken or bool(told)
        return told

    def end(self) -> list[str]:
        """Tell it that the run is over, wait at most ``timeout_s`` until all is sent, and return what it reports."""
        told, deadline = [], time.monotonic() + self._timeout_s
        try:
            self._input.close()
            while self.is_running and (left := deadline - time.monotonic()) > 0:
                select.select([self._output], [], [], left)
                told += self.reported()
            if self.is_running:
                told.append(f"not finished after {self._timeout_s:g} s")
            return told
        finally:
            self.kill()

    def kill(self, patience: float = 0.0) -> None:
        """End the process unless it ends by itself; wandb's own process ends with it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        self._process.wait()
        self._input.close()
        self._output.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _start(arguments: list[str], temporary: str) -> "subprocess.Popen[bytes]":
    # Signals are meant for the run. They are blocked in the new process and in wandb's own from the first instruction
    # on, so that a request to stop a whole group or SLURM step does not kill them too early.
    with blocked({*REQUESTS, signal.SIGUSR1}):
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "dst.tracking.send", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(temporary),
            start_new_session=True,
        )


def _environment(temporary: str) -> dict[str, str]:
    """Return the environment of the program: it imports this code, and wandb writes to a temporary folder."""
    paths = [str(Path(dst.__path__[0]).resolve().parent), os.environ.get("PYTHONPATH")]
    return {
        **{name: value for name, value in os.environ.items() if name not in _NOT_OURS},
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "WANDB_CACHE_DIR": f"{temporary}/cache",
        "WANDB_DATA_DIR": f"{temporary}/data",
        "WANDB_ARTIFACT_DIR": f"{temporary}/artifacts",
        "WANDB_ERROR_REPORTING": "false",
        "TMPDIR": temporary,
    }


class WandbMirror:
    """A tracker that has the record sent while it grows. The first problem is printed to stderr."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._folder = Path()
        self._sending: Sending | None = None
        self._has_warned = False

    def begin(self, folder: Path) -> None:
        """Start the process. It needs about a second; training goes on meanwhile."""
        self._folder = folder
        try:
            self._sending = Sending(folder.resolve(), self._timeout_s)
        except OSError as error:
            self._warn([f"it could not be started: {error}"])

    def poll(self) -> None:
        """Print what the process reports."""
        if self._sending is not None and self._sending.is_running:
            self._warn(self._sending.reported())

    def finish(self) -> None:
        """Wait until everything is sent, but at most ``timeout_s``."""
        if self._sending is not None and self._sending.is_running:
            self._warn(self._sending.end())

    def _warn(self, told: list[str]) -> None:
        if told and not self._has_warned:
            self._has_warned = True
            command = pasteable("dst.launcher.sync", self._folder)
            later = f"its record is complete, send it later with: {command}"
            tqdm.write(f"warning: wandb: {told[0]}; the run goes on and {later}", file=sys.stderr)
