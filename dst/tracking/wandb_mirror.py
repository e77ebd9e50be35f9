"""Mirror a run to wandb from a process of its own, so that nothing that happens to wandb can happen to the run.

This side only writes JSON lines to a pipe, never waiting: no wandb code, thread, signal handler or random number comes
into the training process, a hanging server costs nothing until the end, and there no more than ``timeout_s``. When the
run is killed (SIGKILL) the mirror sees the pipe close and finishes its files; wandb itself would lose its buffer.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dst.tracking.tracker import RunFacts

WORKER = Path(__file__).with_name("wandb_worker.py")
"""The program that talks to wandb."""

_BACKLOG_BYTES = 64 * 2**20
"""How much may wait for a mirror that does not read."""

_EXIT_S = 1.0
"""How long a mirror that has finished may take to end."""

_NOT_OURS = (
    "WANDB_SERVICE",
    "WANDB_DISABLED",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
    "WANDB_RUN_ID",
    "WANDB_RESUME",
)
"""Of an enclosing wandb run; ours is described by the config alone."""


class WandbMirror:
    """A tracker that hands everything to ``wandb_worker.py``.

    ``timeout_s``: how long the run may be held up in total. Trouble is told once, on stderr.
    """

    def __init__(
        self, *, mode: str, project: str, entity: str | None, tags: Sequence[str], notes: str | None, timeout_s: float
    ) -> None:
        self._options = {"mode": mode, "project": project, "entity": entity, "notes": notes}
        self._tags, self._timeout_s = list(tags), timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: str | None = None
        self._attempt = 0
        self._rows: list[dict[str, Any]] = []
        self._backlog = bytearray()
        self._reports = b""
        self._has_warned = False

    def begin(self, facts: RunFacts) -> None:
        """Start the mirror; it needs about a second, in which training goes on."""
        self._attempt = facts.attempt
        content = {
            **self._options,
            "id": facts.id,
            "name": facts.name,
            "group": facts.group,
            "tags": list(dict.fromkeys([*facts.tags, *self._tags])),
            "folder": str(facts.folder.resolve()),
            "config": facts.config,
            "timeout_s": self._timeout_s,
        }
        try:
            self._start(facts.folder.resolve())
        except OSError as error:
            self._give_up(f"the mirror could not be started: {error}")
        self._send("begin", content)

    def log(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Mirror one line of the history."""
        self._send("log", {"step": step, "epoch": epoch, "attempt": self._attempt, **values})

    def layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the latest counts for the table at the end."""
        self._rows = [dict(row) for row in rows]

    def finish(self, summary: Mapping[str, Any], state: str) -> None:
        """End the mirror, and wait until it has ended, but not longer than ``timeout_s``."""
        self._send("finish", {"summary": dict(summary), "layers": self._rows, "state": state})
        deadline = time.monotonic() + self._timeout_s
        try:
            while self._process is not None and time.monotonic() < deadline:
                self._wait(deadline - time.monotonic())
            if self._process is not None:
                self._give_up(f"not finished after {self._timeout_s:g} s")
        finally:
            self._kill()

    # -- the process ---------------------------------------------------------------------------------------------------

    def _start(self, folder: Path) -> None:
        self._temporary = tempfile.mkdtemp(prefix="dst-wandb-")  # a socket lies there: its path must be short
        # Signals are for the run. Blocked ones stay blocked in the mirror and in wandb's own process, from their first
        # instruction on, so that a stop request to the whole group or SLURM step does not kill them before the end.
        wanted = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],  # -P: the modules beside the worker must not shadow others
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(folder, self._temporary),
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        os.set_blocking(self._pipe, False)
        os.set_blocking(self._reporting, False)

    @property
    def _pipe(self) -> int:
        assert self._process is not None
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def _reporting(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        if self._process is None:
            return
        self._backlog += json.dumps([kind, content]).encode() + b"\n"
        self._write()
        if self._process is not None:
            self._read()
        if len(self._backlog) > _BACKLOG_BYTES:
            self._give_up("it does not keep up")

    def _write(self) -> None:
        """Write what the pipe takes now."""
        try:
            while self._backlog:
                del self._backlog[: os.write(self._pipe, self._backlog)]
        except BlockingIOError:
            pass
        except OSError:  # it has ended; why is in its last report
            self._backlog.clear()

    def _read(self) -> None:
        """Tell what the mirror reports; note its end."""
        try:
            data = os.read(self._reporting, 65536)
        except BlockingIOError:
            return
        *lines, self._reports = (self._reports + data).split(b"\n")
        for line in lines:
            if line == b"finished":
                self._kill(_EXIT_S)
                return
            self._warn(line.decode(errors="replace"))
        if not data:
            self._give_up("it ended unexpectedly")

    def _wait(self, seconds: float) -> None:
        """Wait until the mirror reports or reads."""
        waiting = [self._pipe] if self._backlog else []
        readable, writable, _ = select.select([self._reporting], waiting, [], seconds)
        if writable:
            self._write()
        if readable:
            self._read()

    def _give_up(self, reason: str) -> None:
        self._kill()
        self._warn(f"wandb: {reason}; the record is complete without it (tracking=none does without wandb)")

    def _kill(self, patience: float = 0.0) -> None:
        """End the mirror if it does not end by itself; wandb's own process ends with it."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self._backlog.clear()

    def _warn(self, text: str) -> None:
        if not self._has_warned:
            tqdm.write(f"warning: {text}", file=sys.stderr)
        self._has_warned = True


def environment(folder: Path, temporary: str) -> dict[str, str]:
    """Return the environment of the program that talks to wandb: what wandb writes goes into ``folder``."""
    wandb = folder / "wandb"
    return {
        **{name: value for name, value in os.environ.items() if name not in _NOT_OURS},
        "WANDB_CACHE_DIR": str(wandb / "cache"),
        "WANDB_DATA_DIR": str(wandb / "data"),
        "WANDB_ARTIFACT_DIR": str(wandb / "artifacts"),
        "WANDB_ERROR_REPORTING": "false",
        "TMPDIR": temporary,
    }
