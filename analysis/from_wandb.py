"""Runs from a project of wandb, where records are not at hand: ``python -m analysis.from_wandb PROJECT --out DIR``.

Each run becomes a folder with what wandb has of its record, so that the catalog of them is that of the records, and
tables, figures, notebooks and the report work on it. wandb has neither the command (so the runs of a group are one
sweep) nor layers and networks in a form that is read here. A run whose config is not of this version of the code is
left out, with a note: what it is cannot be told.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

import dst
from analysis.names import parted
from analysis.runs import load
from analysis.text import show
from dst.config.identity import SCHEMA_VERSION, identity, run_id
from dst.config.schema import ConfigError, flatten
from dst.records.states import State
from dst.records.store import Record, RecordError
from dst.run import given
from dst.run.terminal import program
from dst.run.verified import from_yaml

_STATES: Final = {
    "finished": State.DONE,
    "crashed": State.KILLED,
    "preempted": State.PREEMPTED,
    "preempting": State.PREEMPTED,
    "running": State.RUNNING,
}
"""State in wandb -> state of the record; any other is failed."""


class FetchError(RuntimeError):
    """The project cannot be read; the message says why."""


def frame(project: str, out: Path, entity: str | None = None) -> pd.DataFrame:
    """Return the catalog of a project's runs, whose folders are made in ``out``; ``FetchError``, ``NoRunsError``."""
    fetch(project, out, entity)
    return load([out])


def fetch(project: str, out: Path, entity: str | None = None) -> list[str]:
    """Make a folder in ``out`` for each run of a project, and return notes about runs that were left out."""
    notes = []
    for run in _fetched(project, entity):
        try:
            _record(run, out)
        except (ConfigError, RecordError) as error:
            notes.append(f"left out: run {run['id']}: {error}")
    return notes


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the folders, say what was left out, and return the exit code."""
    about = "Makes a folder for each run of a project of wandb, for tables and figures where the records are elsewhere."
    parser = argparse.ArgumentParser(prog="python -m analysis.from_wandb", description=about)
    parser.add_argument("project", type=given.word, metavar="PROJECT")
    parser.add_argument("--entity", type=given.word, help="the user or team that has it (default: wandb's)")
    parser.add_argument("--out", type=given.path, required=True, metavar="DIR", help="where the folders go")
    options = parser.parse_args(arguments)
    try:
        notes = fetch(options.project, options.out, options.entity)
    except FetchError as error:
        show([f"wandb project {options.project}: {error}"], sys.stderr)
        return 2
    except OSError as error:
        show([f"--out {options.out}: cannot write there ({error})"], sys.stderr)
        return 2
    show(notes, sys.stderr)
    show([f"{len(list(options.out.glob('*/*/run.json')))} runs in {options.out}"])
    return 0


def _fetched(project: str, entity: str | None) -> Iterator[dict[str, Any]]:
    """Yield the runs that a process of wandb's own prints."""
    words = [project, *(["--entity", entity] if entity else [])]
    with tempfile.TemporaryDirectory(prefix="dst-wandb-") as temporary:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dst.tracking.fetch", *words],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment(temporary),
        )  # fmt: skip
    if done.returncode:
        raise FetchError(next(reversed(done.stderr.strip().splitlines()), "its process ended unexpectedly"))
    yield from (json.loads(line) for line in done.stdout.splitlines())


def _environment(temporary: str) -> dict[str, str]:
    """Return the environment of that process: it imports this code, and wandb writes to a temporary folder."""
    paths = [str(Path(dst.__path__[0]).resolve().parent), os.environ.get("PYTHONPATH")]
    folders = {f"WANDB_{name}_DIR": f"{temporary}/{name.lower()}" for name in ("CACHE", "DATA", "CONFIG", "ARTIFACT")}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), **folders, "WANDB_SILENT": "1"}


def _record(run: Mapping[str, Any], out: Path) -> None:
    """Make the folder of a run. ``ConfigError`` if its config is no config of this code, or not that of its id."""
    told = {name: value for name, value in run["config"].items() if not name.startswith("_")}
    method = str(told.pop("method", ""))
    config = from_yaml(json.dumps(told))
    if run_id(config) != run["id"].partition(".")[0]:
        raise ConfigError([f"its config is that of run {run_id(config)} in this version of the code"])
    about = {
        **{"schema": SCHEMA_VERSION, "id": run_id(config), "name": run["name"], "created": run["created"] or ""},
        **{"identity": identity(config), "config": flatten(config), "changed": _changed(method)},
    }
    state = _STATES.get(run["state"], State.FAILED)
    folder = out / (run["group"] or "default") / run["id"]
    with Record.create(folder, config_yaml=json.dumps(told), run=about, durable=False) as record:
        for row in run["history"]:
            step, attempt = int(row["step"]), int(row["attempt"])
            record.log(step=step, epoch=float(row["epoch"]), attempt=attempt, values=_numbers(row))
        if state == State.DONE:
            record.write_summary(_numbers(run["summary"]))
        record.write_status(state, attempt=1, step=int(run["summary"].get("step") or 0))


def _changed(method: str) -> dict[str, str]:
    """Return what was changed in a method, as its name tells it."""
    _, changes = parted(method)
    return {f"sparsity.{key}": value for key, _, value in (word.partition("=") for word in changes.split())}


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures among what wandb has, without its own and the place of a row."""
    names = [name for name in values if not name.startswith("_") and name not in ("step", "epoch", "attempt")]
    return {name: _finite(values[name]) for name in names if _is_number(values[name])}


def _is_number(value: Any) -> bool:
    return value in ("NaN", "Infinity", "-Infinity") or (isinstance(value, int | float) and not isinstance(value, bool))


def _finite(value: Any) -> Any:
    """Return a number, or None for one that is not finite, as records have it."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(program(main))
