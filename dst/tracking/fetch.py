"""The program that reads a project of wandb: ``python -m dst.tracking.fetch PROJECT``, for ``analysis.from_wandb``.

It prints a line of JSON for each run on the server: ``id``, ``name``, ``group``, ``state``, ``created``, ``config``,
``summary`` and ``history``. It has a process of its own for the reason that ``send`` has one: wandb starts threads and
a process, and may hang. The exit code is 1 if the project cannot be read; then standard error says why.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from dst.tracking.send import _first_line


def main() -> None:
    """Print all runs, and leave without waiting for exit hooks and threads of wandb."""
    options = _parser().parse_args()
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what wandb prints is no run
    code = 0
    try:
        for run in _runs(options.project, options.entity, options.timeout_s):
            print(json.dumps(run), file=reports, flush=True)
    except Exception as error:
        print(_first_line(error), file=sys.stderr, flush=True)
        code = 1
    os._exit(code)


def _runs(project: str, entity: str | None, timeout_s: int) -> Iterator[dict[str, Any]]:
    import wandb

    api = wandb.Api(timeout=timeout_s)
    for run in api.runs(f"{entity or api.default_entity}/{project}", lazy=False):
        lines = int(run.historyLineCount or 0)
        history = run.history(samples=lines, pandas=False) if lines else []
        if len(history) != lines:
            raise RuntimeError(f"the server gave {len(history)} of {lines} lines of the history of {run.id}: try again")
        yield {
            "id": run.id,
            "name": run.name,
            "group": run.group,
            "state": run.state,
            "created": run.created_at,
            "config": dict(run.config),
            "summary": run.summary._json_dict,
            "history": history,
        }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dst.tracking.fetch")
    parser.add_argument("project")
    parser.add_argument("--entity")
    parser.add_argument("--timeout-s", type=int, default=60)
    return parser


if __name__ == "__main__":
    main()
