"""Writing one run folder: small files replaced atomically, histories appended line by line."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from dst.files import replace_text, sync_folder, telling_space
from dst.records.lock import this_host
from dst.records.states import RECORDED, State

RESUME_EVENT: Final = "resume"
"""``event`` of a history line that voids all earlier lines of later steps."""

METRICS: Final = "metrics.jsonl"
LAYERS: Final = "layers.jsonl"
COMPUTE: Final = "compute.jsonl"
NETWORKS: Final = "networks.jsonl"

_RESERVED: Final = frozenset({"event", "step", "epoch", "attempt"})


class RecordError(ValueError):
    """A value that a record cannot hold, or a folder without a readable record."""


class Record:
    """The record of one run, for the process that writes it; readers use ``read`` and ``catalog``.

    The histories are opened when they are first written to, so a record can be opened only to change its status.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.folder = folder
        self._durable = durable
        self.fence: Callable[[], None] = lambda: None
        """Raises OSError if this process may not write any more, since another one carries the run out by now."""
        self._opened: dict[str, _History] = {}

    @classmethod
    def create(cls, folder: Path, *, config_yaml: str, run: Mapping[str, Any], durable: bool = True) -> Self:
        """Make the folder and write ``config.yaml`` and ``run.json``.

        ``durable``: wait until the small files are on the disk. A caller that makes many records can skip this and
        call ``os.sync`` once for all of them.

        ``RecordError`` if the folder holds a record already; ``OSError`` if it cannot be written.
        """
        taken = f"{folder} holds a record already: continue it with Record.open, or choose a new folder"
        if (folder / "run.json").exists():
            raise RecordError(taken)
        if (folder / "checkpoints").exists():
            raise RecordError(f"{folder} holds checkpoints but no record (run.json): restore it, or remove the folder")
        folder.mkdir(parents=True, exist_ok=True)
        record = cls(folder, durable=durable)
        record.write_config(config_yaml)
        try:  # last: it is what makes the folder a run; what another start has just written there stays
            replace_text(folder / "run.json", _json(run, indent=2), durable=durable, new=True)
        except FileExistsError as error:
            raise RecordError(taken) from error
        return record

    @classmethod
    def open(cls, folder: Path, *, durable: bool = True) -> Self:
        """Open the record in a folder to continue it; ``RecordError`` if there is none."""
        if not (folder / "run.json").exists():
            raise RecordError(f"no record in {folder} (it has no run.json): make one with Record.create")
        return cls(folder, durable=durable)

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints; it is made when the first one is saved."""
        return self.folder / "checkpoints"

    @property
    def networks(self) -> Path:
        """The folder of the networks that the run makes on the way, if they are kept."""
        return self.folder / "networks"

    @property
    def has_history(self) -> bool:
        """Say whether an attempt has begun to write a history."""
        return any((self.folder / name).exists() for name in (METRICS, LAYERS, NETWORKS))

    def write_config(self, config_yaml: str) -> None:
        """Replace ``config.yaml``."""
        self._replace("config.yaml", config_yaml)

    def write_launch(self, launch: Mapping[str, Any]) -> None:
        """Replace ``launch.json``: which job runs it, and how it was submitted."""
        self._replace("launch.json", _json(launch, indent=2))

    def write_run(self, run: Mapping[str, Any]) -> None:
        """Replace ``run.json``, when more is known about the run than at its submission."""
        self._replace("run.json", _json(run, indent=2))

    def write_status(
        self,
        state: State,
        *,
        attempt: int,
        step: int,
        total_steps: int | None = None,
        error: str | None = None,
        **more: Any,
    ) -> None:
        """Replace ``status.json``, with a heartbeat (unix time), host and process id; ``more``: further fields.

        ``RecordError`` if the state is not one of ``RECORDED``.
        """
        if state not in RECORDED:
            raise RecordError(f"unknown state '{state}'; allowed: {', '.join(RECORDED)}")
        status = {
            "state": state,
            "attempt": attempt,
            "step": step,
            "total_steps": total_steps,
            "error": error,
            "heartbeat": time.time(),
            "host": this_host(),
            "pid": os.getpid(),
            **more,
        }
        self._replace("status.json", _json(status, indent=2))

    def _replace(self, name: str, text: str) -> None:
        self.fence()
        replace_text(self.folder / name, text, durable=self._durable)

    def log_attempt(self, attempt: int, **facts: Any) -> None:
        """Append facts about an attempt to ``attempts.jsonl``; its start and its end are separate lines."""
        self.fence()
        history = _History(self.folder / "attempts.jsonl")
        try:
            history.append([{"attempt": attempt, **facts}])
            history.sync()
        finally:
            history.close()

    def write_summary(self, values: Mapping[str, Any]) -> None:
        """Replace ``summary.json``, the final figures by metric name; non-finite numbers become null."""
        self._replace("summary.json", _json(values, indent=2))

    def log(self, *, step: int, epoch: float, attempt: int, values: Mapping[str, float | int | str | None]) -> None:
        """Append one line to ``metrics.jsonl``; non-finite numbers become null.

        ``RecordError`` if a value is named like one of the line's own fields; ``OSError`` if the disk is full.
        """
        _refuse_reserved(values, _RESERVED)
        self._history(METRICS).append([{"step": step, "epoch": epoch, "attempt": attempt, **values}])

    def log_layers(self, *, step: int, attempt: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append to ``layers.jsonl`` a line for each layer: ``layer``, ``size``, ``active``, ``explored``, ....

        ``RecordError`` if a row does not name its layer or has a field named like the line's own.
        """
        self._log_rows(LAYERS, step, attempt, rows)

    def log_compute(self, *, step: int, attempt: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append to ``compute.jsonl`` a line for each layer that was timed: ``layer``, ``density``, ``choice``, ....

        ``RecordError`` as with ``log_layers``.
        """
        self._log_rows(COMPUTE, step, attempt, rows)

    def _log_rows(self, name: str, step: int, attempt: int, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = []
        for row in rows:
            _refuse_reserved(row, _RESERVED - {"epoch"})
            if "layer" not in row:
                raise RecordError(f"a row of {name} needs the name of its 'layer'; given: {', '.join(row)}")
            lines.append({"step": step, "attempt": attempt, **row})
        self._history(name).append(lines)

    def log_network(
        self,
        *,
        attempt: int,
        phase: int,
        phase_name: str,
        step: int,
        name: str,
        density: float,
        active: int,
        loss: float | None = None,
        accuracy: float | None = None,
    ) -> None:
        """Append one line to ``networks.jsonl``: a network that the run has made on the way.

        ``phase`` (from 0) and ``step``: where it was made. ``loss`` and ``accuracy``: on the validation set; None:
        there is none, and the line has no such values.
        """
        figures = {"val/loss": loss, "val/accuracy": accuracy}
        line = {
            **{"phase": phase, "phase_name": phase_name, "step": step, "attempt": attempt},
            **{"name": name, "density": density, "active": active},
            **{key: value for key, value in figures.items() if value is not None},
        }
        self._history(NETWORKS).append([line])

    def mark_resume(self, *, step: int, attempt: int, phase: int = 0) -> None:
        """Void what the histories say of training beyond the point from which it continues.

        Lines of metrics and layers are void beyond the step. A network is void if it was made at this point or later:
        what began the phase at its first step is done again, and so is what ended it at its last. Those of earlier
        phases stay, also of the same step.
        """
        marker = {"event": RESUME_EVENT, "step": step, "attempt": attempt}
        for name in (METRICS, LAYERS):
            self._history(name).append([marker])
        if (self.folder / COMPUTE).exists():
            self._history(COMPUTE).append([marker])
        if (self.folder / NETWORKS).exists():
            self._history(NETWORKS).append([{**marker, "phase": phase}])

    def sync(self) -> None:
        """Wait until all histories are on the disk. Call it before a checkpoint becomes visible."""
        self.fence()
        for history in self._opened.values():
            history.sync()

    def close(self) -> None:
        """Close the histories; the next write opens them again."""
        while self._opened:
            self._opened.popitem()[1].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _history(self, name: str) -> "_History":
        if name not in self._opened:
            self._opened[name] = _History(self.folder / name)
        return self._opened[name]


class _History:
    """An append-only file of JSON lines that stays open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        is_new = not path.exists()
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if is_new:
            sync_folder(path.parent)
        size = os.fstat(self._file).st_size
        self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        data = "".join(_json(line) + "\n" for line in lines).encode()
        if not data:
            return
        if self._is_torn:  # the next line must not join a line that a crash or a full disk cut off
            data = b"\n" + data
        self._is_torn = True
        rest = memoryview(data)
        with telling_space(self._path, len(data)):
            while rest:
                rest = rest[os.write(self._file, rest) :]
        self._is_torn = False

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _refuse_reserved(values: Mapping[str, Any], reserved: frozenset[str]) -> None:
    if taken := sorted(reserved & values.keys()):
        raise RecordError(f"{', '.join(taken)}: every history line has this field; rename it, e.g. train/{taken[0]}")


def _json(value: Mapping[str, Any], indent: int | None = None) -> str:
    try:
        return json.dumps(_finite(value), allow_nan=False, indent=indent)
    except TypeError as error:
        raise RecordError(f"{error}: records hold plain numbers, text, null, lists and mappings; convert it") from error


def _finite(value: Any) -> Any:
    """Return the value with non-finite numbers, which JSON does not have, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
