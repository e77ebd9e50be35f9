"""Reading one run folder, finished or not, also while it is being written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dst.records.store import RESUME_EVENT, RecordError


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; ``RecordError`` if it holds anything else, ``FileNotFoundError``."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise RecordError(f"{path} is not JSON ({error}): restore it from a copy, or remove the run folder") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} holds a {type(value).__name__}, not a mapping: restore it, or remove the run folder")
    return value


def read_status(folder: Path) -> dict[str, Any] | None:
    """Return the run's ``status.json``, None if it has none; ``RecordError`` if it is damaged."""
    return _read_optional(folder / "status.json")


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the run's ``summary.json``, None if it has none; ``RecordError`` if it is damaged."""
    return _read_optional(folder / "summary.json")


def read_launch(folder: Path) -> dict[str, Any] | None:
    """Return the run's ``launch.json``, None if it was not launched as a job; ``RecordError`` if it is damaged."""
    return _read_optional(folder / "launch.json")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the valid history by step: a row for each logged step, lines of the same step merged, later values win.

    A resume at step k voids the lines before it that lie beyond k; what a crash tore is left out.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line in _lines(folder / "metrics.jsonl"):
        merge(rows, line)
    return [rows[step] for step in sorted(rows)]


def merge(rows: dict[int, dict[str, Any]], line: dict[str, Any]) -> None:
    """Take the next line of ``metrics.jsonl`` into the rows by step."""
    if line.get("event") == RESUME_EVENT:
        for step in [step for step in rows if step > line["step"]]:
            del rows[step]
    else:
        rows.setdefault(line["step"], {}).update(line)


def read_layers(folder: Path) -> list[dict[str, Any]]:
    """Return the valid rows of ``layers.jsonl`` by step, layers in the order of the model.

    A (step, layer) occurs once: the later row wins. A resume voids as in ``read_metrics``.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for line in _lines(folder / "layers.jsonl"):
        if line.get("event") == RESUME_EVENT:
            rows = {key: row for key, row in rows.items() if key[0] <= line["step"]}
        else:
            rows[line["step"], line["layer"]] = line
    return sorted(rows.values(), key=lambda row: int(row["step"]))


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """Return what is known of each attempt at a run, oldest first; later lines add to earlier ones."""
    rows: dict[int, dict[str, Any]] = {}
    for line in _lines(folder / "attempts.jsonl"):
        rows.setdefault(line["attempt"], {}).update(line)
    return [rows[number] for number in sorted(rows)]


def _read_optional(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except FileNotFoundError:
        return None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a history."""
    if path.exists():
        yield from parsed(path.read_bytes())


def parsed(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the complete lines in a piece of a history; a torn one gives itself away, as no beginning of it is JSON."""
    for text in data.split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            yield line
