"""Reading one run folder, finished or not, also while it is being written.

Every known field is checked against what the writer writes; a ``RecordError`` names the file and the field. So callers
can rely on the types of all known fields. Unknown fields are passed on as they are.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from dst.records.states import RECORDED, State
from dst.records.store import COMPUTE, LAYERS, METRICS, NETWORKS, RESUME_EVENT, RecordError

_TEXT: Final = "text"
_PATH: Final = "a path"
_ID: Final = "a line of at most 200 characters"
_COUNT: Final = "an integer from 0 to 2^53"
_SEED: Final = "an integer from 0 to 2^64"
_NUMBER: Final = "a number from 0 to 2^53"
_FIGURE: Final = "a finite number"
_VALUE: Final = "no integer beyond the range of floats"
_FLAT: Final = "a mapping"

_JOB: Final = re.compile("[1-9][0-9]{0,9}(_[0-9]{1,9})?")
_LARGEST: Final = 2**53
"""The largest count or time; up to here floats are exact."""


def _is_job(value: Any) -> bool:
    return isinstance(value, str) and _JOB.fullmatch(value) is not None


_HOLDS: Final[dict[str, Callable[[Any], bool]]] = {
    _TEXT: lambda value: isinstance(value, str),
    _PATH: lambda value: isinstance(value, str) and "\0" not in value,
    _ID: lambda value: isinstance(value, str) and len(value) <= 200 and value.isprintable(),
    _COUNT: lambda value: type(value) is int and 0 <= value <= _LARGEST,
    _SEED: lambda value: type(value) is int and 0 <= value <= 2**64,
    _NUMBER: lambda value: type(value) in (int, float) and 0 <= value <= _LARGEST,
    _FIGURE: lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max,
    _VALUE: lambda value: type(value) is not int or abs(value) <= sys.float_info.max,
    _FLAT: lambda value: isinstance(value, dict),
    "a state": lambda value: value in RECORDED,
    "a process id": lambda value: _is_job(value) and "_" not in value and 1 < int(value) < 2**31,
    "a SLURM job id": _is_job,
    "a truth value": lambda value: isinstance(value, bool),
    "nothing": lambda value: value is None,
}
"""What a field may be, in words -> whether a value is that."""

_STATUS: Final = {
    **{"state": "a state", "attempt": _COUNT, "step": _COUNT, "total_steps": f"{_COUNT} or nothing"},
    **{"error": f"{_TEXT} or nothing", "heartbeat": _NUMBER, "host": _TEXT, "pid": _COUNT},
}
_STATUS_MORE: Final = {
    **{"started": _NUMBER, "started_step": _COUNT, "elapsed_s": _NUMBER},
    **{"job": f"{_ID} or nothing", "traceback": f"{_TEXT} or nothing"},
}
_RUN: Final = {
    **{"schema": _COUNT, "id": _TEXT, "name": _TEXT, "created": _TEXT, "identity": _FLAT, "config": _FLAT},
    **{"changed": _FLAT, "swept": _FLAT, "config_digest": _TEXT, "determinism": _TEXT, "command": _TEXT, "cwd": _PATH},
    **{"root": _PATH, "attempt_folder": _COUNT},
    **{"code": _FLAT, "versions": _FLAT},
    **{"host": _TEXT, "platform": _TEXT, "machine": _TEXT, "device": _TEXT, "dataset": _FLAT, "sources": _FLAT},
}
_RUN_WITHIN: Final = {
    **{"identity": {"seed": _SEED}, "config": {"seed": _SEED}},
    "code": {"git": f"{_TEXT} or nothing", "diff": f"{_TEXT} or nothing"},
}
_LAUNCH: Final = {
    **{"cluster": _TEXT, "submitted": _NUMBER, "settings": _FLAT, "cwd": _PATH, "runs": _COUNT},
    **{"job": f"{_ID} or nothing", "logs": _PATH, "code": _PATH, "host": _TEXT},
    **{"process_started": f"{_TEXT} or nothing"},
}
_NETWORK: Final = {"phase_name": _TEXT, "name": _TEXT, "density": _FIGURE, "active": _COUNT}
_NETWORK_MORE: Final = {"val/loss": f"{_FIGURE} or nothing", "val/accuracy": f"{_FIGURE} or nothing"}
_JOB_OF: Final = {"local": "a process id or nothing", "slurm": "a SLURM job id or nothing"}
"""What a job is on each cluster. It gets signals, and SLURM's commands take ids as arguments: both must be no other's.
Process 1 is none that we started."""
_SETTINGS: Final = {
    **{"cluster": _TEXT, "wait": "a truth value", "max_parallel": f"{_COUNT} or nothing", "runs_per_job": _COUNT},
    "max_submitted": f"{_COUNT} or nothing",
}


def read_run(folder: Path) -> dict[str, Any]:
    """Return the run's ``run.json``, every known field of the right type; ``RecordError``, OSError."""
    path = folder / "run.json"
    about = read_json(path)
    _check(path, about, _RUN)
    for part, fields in _RUN_WITHIN.items():
        values = about.get(part, {})
        whole = {name: _VALUE for name, value in values.items() if type(value) is int and abs(value) > _LARGEST}
        _check(path, values, whole | fields, within=f"{part}.")
    if "code" in about:
        _check(path, about["code"], {"digest": _TEXT}, needed=True, within="code.")
    return about


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; ``RecordError`` if it holds anything else, ``FileNotFoundError``."""
    try:
        value = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is not JSON ({error}): restore it from a copy, or remove the run folder") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} holds a {type(value).__name__}, not a mapping: restore it, or remove the run folder")
    return value


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the run's ``status.json``, with a State; None if it has none, ``RecordError`` if it is damaged."""
    path = folder / "status.json"
    status = _read_optional(path)
    if status is not None:
        _check(path, status, _STATUS, needed=True)
        _check(path, status, _STATUS_MORE)
        status["state"] = State(status["state"])
    return status


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the run's ``summary.json``, None if it has none; ``RecordError`` if it is damaged."""
    path = folder / "summary.json"
    summary = _read_optional(path)
    if summary is not None:
        _check(path, summary, {name: f"{_FIGURE} or nothing" for name in summary if "/" in name})
    return summary


def read_launch(folder: Path) -> dict[str, Any] | None:
    """Return the run's ``launch.json``, None if it was not submitted as a job; ``RecordError`` if it is damaged."""
    path = folder / "launch.json"
    launch = _read_optional(path)
    if launch is not None:
        _check(path, launch, _LAUNCH)
        _check(path, launch.get("settings", {}), _SETTINGS, within="settings.")
        if (may_be := _JOB_OF.get(launch.get("cluster", ""))) is not None:
            _check(path, launch, {"job": may_be})
    return launch


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the valid history by step: one row for each logged step. Lines of one step are merged, later values win.

    A resume at step k voids all earlier lines beyond step k. Lines that a crash cut off are left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    path = folder / METRICS
    for line in _lines(path, {"step": _COUNT}):
        _check(path, line, {"time/seconds": f"{_NUMBER} or nothing"})
        merge(rows, line)
    return [rows[step] for step in sorted(rows)]


def merge(rows: dict[int, dict[str, Any]], line: dict[str, Any]) -> None:
    """Add the next line of ``metrics.jsonl`` to the rows by step."""
    if line.get("event") == RESUME_EVENT:
        for step in [step for step in rows if step > line["step"]]:
            del rows[step]
    else:
        rows.setdefault(line["step"], {}).update(line)


def read_layers(folder: Path) -> list[dict[str, Any]]:
    """Return the valid rows of ``layers.jsonl`` by step, layers in the order of the model.

    Each (step, layer) occurs once: the later row wins. A resume voids rows as in ``read_metrics``.
    """
    return _rows_of_layers(folder / LAYERS)


def read_compute(folder: Path) -> list[dict[str, Any]]:
    """Return the valid rows of ``compute.jsonl``: which layers were timed, how long they took, what was chosen.

    As ``read_layers``; nothing where no layer is timed.
    """
    return _rows_of_layers(folder / COMPUTE)


def _rows_of_layers(path: Path) -> list[dict[str, Any]]:
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for line in _lines(path, {"step": _COUNT}):
        if line.get("event") == RESUME_EVENT:
            rows = {key: row for key, row in rows.items() if key[0] <= line["step"]}
        else:
            _check(path, line, {"layer": _TEXT}, needed=True)
            rows[line["step"], line["layer"]] = line
    return sorted(rows.values(), key=lambda row: int(row["step"]))


def read_networks(folder: Path) -> list[dict[str, Any]]:
    """Return the valid rows of ``networks.jsonl`` by phase and step, in the order in which they were made.

    Each (phase, step, name) occurs once: the later row wins. A resume at phase p and step k voids all earlier rows of
    phase p from step k on, and those of later phases.
    """
    path = folder / NETWORKS
    rows: dict[tuple[int, int, str], dict[str, Any]] = {}
    for line in _lines(path, {"phase": _COUNT, "step": _COUNT}):
        if line.get("event") == RESUME_EVENT:
            rows = {key: row for key, row in rows.items() if key[:2] < (line["phase"], line["step"])}
        else:
            _check(path, line, _NETWORK, needed=True)
            _check(path, line, _NETWORK_MORE)
            rows[line["phase"], line["step"], line["name"]] = line
    return [rows[key] for key in sorted(rows, key=lambda key: key[:2])]


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the facts about each attempt at a run, oldest first; later lines add to earlier ones."""
    rows: dict[int, dict[str, Any]] = {}
    for line in _lines(folder / "attempts.jsonl", {"attempt": _COUNT}):
        rows.setdefault(line["attempt"], {}).update(line)
    return [rows[number] for number in sorted(rows)]


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; ``RecordError`` if it cannot be read now, ``FileNotFoundError``."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RecordError(f"{path} cannot be read now: {error}") from error


def _read_optional(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


def _check(
    path: Path, values: Mapping[str, Any], fields: Mapping[str, str], *, needed: bool = False, within: str = ""
) -> None:
    """Raise RecordError if a field is not what it may be, or is missing although it is ``needed``."""
    for name, may_be in fields.items():
        if name in values:
            value = values[name]
            if any(holds(value) for holds in _alternatives(may_be)):
                continue
        elif not needed:
            continue
        found = repr(values[name])[:40] if name in values else "missing"
        raise RecordError(f"{path}: {within}{name} must be {may_be}, but is {found}: restore it from a copy")


@cache
def _alternatives(may_be: str) -> tuple[Callable[[Any], bool], ...]:
    """Return what says whether a value is what it may be: one of them has to say yes."""
    return tuple(_HOLDS[kind] for kind in may_be.split(" or "))


def _lines(path: Path, fields: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a history. ``fields``: those that every line must have."""
    if path.exists():
        for line in parsed(read_bytes(path)):
            _check(path, line, fields, needed=True)
            yield line


def parsed(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the complete lines in a piece of a history. A line that was cut off is not JSON, so it is noticed."""
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line
