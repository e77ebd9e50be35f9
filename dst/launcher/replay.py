"""Send a run's record to wandb's server, as one run, whatever became of its attempts.

What arrives is made from the record, not from the files that the mirror left: each attempt left one, and together they
hold also the steps that a resume took back. The server is asked what it has under the run's id and gets what it lacks,
so sending again, also after a failure half-way, duplicates nothing.
"""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from dst.records.read import read_json, read_layers, read_metrics, read_status, read_summary
from dst.tracking.wandb_mirror import WORKER, environment

_GRACE_S = 5.0
"""How much longer than its limit the process may take to say what went wrong."""


class ReplayError(RuntimeError):
    """A record that could not be sent; the message says why."""


def replay(folder: Path, *, project: str, entity: str | None, timeout_s: float) -> list[str]:
    """Send the record in a run folder and return what wandb found wanting, if anything.

    ``ReplayError`` unless the server has all of the history within ``timeout_s`` or so; ``RecordError`` if the record
    cannot be read. Nothing is written to the run folder.
    """
    temporary = Path(tempfile.mkdtemp(prefix="dst-wandb-"))
    lines = messages(folder, temporary, project=project, entity=entity, timeout_s=timeout_s)
    content = b"".join(json.dumps(message).encode() + b"\n" for message in lines)
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(WORKER)],  # -P: the modules beside the worker must not shadow others
            input=content,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(temporary, str(temporary)),
            start_new_session=True,
            timeout=timeout_s + _GRACE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ReplayError(f"wandb: not sent within {timeout_s:g} s") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    *notes, last = done.stdout.decode(errors="replace").splitlines() or ["wandb: its process ended unexpectedly"]
    if last != "finished":
        raise ReplayError("; ".join([*notes, last]))
    return notes


def messages(
    folder: Path, temporary: Path, *, project: str, entity: str | None, timeout_s: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the mirror's process is told of a record: how it begins, each line of its history, how it ended."""
    about, state = read_json(folder / "run.json"), (read_status(folder) or {}).get("state", "running")
    config, began = about["config"], datetime.fromisoformat(about["created"]).timestamp()
    tags = [config["model.name"], config["data.name"], config["sparsity.label"], *config["tracking.tags"]]
    yield (
        "begin",
        {
            "mode": "record",
            "project": project,
            "entity": entity,
            "notes": config["tracking.notes"],
            "id": folder.name,
            "name": about["name"],
            "group": config["output.group"],
            "tags": list(dict.fromkeys(tags)),
            "folder": str(temporary),
            "config": nested(config),
            "timeout_s": timeout_s,
            "start_time": began,
        },
    )
    for row in read_metrics(folder):
        # The time that wandb shows is that of the run, as far as it is on record, not that of the sending.
        yield "log", {**_with_nan(row), "_timestamp": began + (row.get("time/seconds") or 0.0)}
    rows = read_layers(folder)
    latest = {row["layer"]: row for row in rows}
    yield (
        "finish",
        {
            "summary": _with_nan(read_summary(folder) or {}),
            "layers": list(latest.values()),
            "state": "killed" if state == "running" else state,  # all that is known of it by now
            "must_arrive": True,
        },
    )


def nested(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of dotted keys as mappings within mappings."""
    tree: dict[str, Any] = {}
    for dotted, value in config.items():
        *above, name = dotted.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[name] = value
    return tree


def _with_nan(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line with the numbers that were not finite as such: records, being JSON, have null for them."""
    return {name: math.nan if value is None else value for name, value in row.items()}
