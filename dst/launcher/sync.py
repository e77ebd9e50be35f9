"""Send runs that were tracked offline to wandb, each once and whole: ``python -m dst.launcher.sync DIR``.

A run that was killed and continued has several offline folders under one id; it arrives as one run, made from its
record. ``<run folder>/wandb/sent.json`` says what was sent, so that the next call sends what is new.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dst.launcher.arguments import command, folders_below
from dst.launcher.replay import ReplayError, replay
from dst.records.lock import holder
from dst.records.read import read_json, read_status
from dst.records.store import RecordError, replace_text
from dst.terminal import program

SENT, FAILED, LEFT_OUT, UP_TO_DATE, WOULD_SEND = "sent", "failed", "left out", "up to date", "would send"
"""What can become of a run."""

_FILES: Final = ("run.json", "metrics.jsonl", "layers.jsonl", "summary.json")
"""What is sent, besides the state."""

_DEFAULT_PROJECT: Final = "dst"


@dataclass(frozen=True)
class Outcome:
    """What became of a run, and what there is to say of it."""

    verdict: str
    detail: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the runs at or below a folder; 0 if all went well, 1 if a run could not be sent, 2 for a wrong command."""
    options = _parser().parse_args(arguments)
    below = folders_below(options.dir)
    if below is None:
        return 2
    folders = [folder for folder in below if offline_folders(folder)]
    verdicts = []
    for folder in folders:
        outcome = sync_run(
            folder,
            project=options.project,
            entity=options.entity,
            timeout_s=options.timeout_s,
            with_running=options.running,
            dry_run=options.dry_run,
        )
        verdicts.append(outcome.verdict)
        print(f"{outcome.verdict:<10}  {folder}{outcome.detail and f'  {outcome.detail}'}", flush=True)
    print(_summary(verdicts))
    return 1 if FAILED in verdicts else 0


def offline_folders(folder: Path) -> list[Path]:
    """Return what wandb left of each offline attempt of a run, oldest first."""
    return sorted(path for path in folder.glob("wandb/offline-run-*") if path.is_dir())


def sync_run(
    folder: Path, *, project: str | None, entity: str | None, timeout_s: float, with_running: bool, dry_run: bool
) -> Outcome:
    """Send one run unless it is up to date, and note what was sent.

    ``project`` and ``entity``: where to, if not where the run's config says. Trouble is an outcome, never an exception.
    """
    try:
        status, config = read_status(folder) or {}, read_json(folder / "run.json")["config"]
        who = holder(folder) if status.get("state") == "running" else None
        if who is not None and not with_running:
            return Outcome(LEFT_OUT, f"running ({who}); --running sends what there is")
        project = project or config["tracking.project"] or _DEFAULT_PROJECT
        entity = entity or config["tracking.entity"]
        book = contents(folder, project=project, entity=entity, state=status.get("state"))
        what = _what(len(offline_folders(folder)), project, entity)
        if book == read_book(folder):
            return Outcome(UP_TO_DATE)
        if dry_run:
            return Outcome(WOULD_SEND, what)
        notes = replay(folder, project=project, entity=entity, timeout_s=timeout_s)
        # What was read before it was sent: a run that goes on meanwhile is sent again the next time.
        replace_text(folder / "wandb" / "sent.json", json.dumps(book, indent=2))
    except (ReplayError, RecordError, OSError) as error:
        return Outcome(FAILED, str(error))
    except KeyError as error:
        return Outcome(FAILED, f"run.json lacks {error}")
    except (TypeError, ValueError, AttributeError) as error:  # a key of its config is not what it must be
        return Outcome(FAILED, f"run.json is damaged: {error}")
    return Outcome(SENT, "; ".join([what, *notes]))


def contents(folder: Path, *, project: str, entity: str | None, state: str | None) -> dict[str, Any]:
    """Return what the book says of a run that is sent as it is now: where to, and size and SHA-256 of each file."""
    return {
        "server": os.environ.get("WANDB_BASE_URL"),
        "project": project,
        "entity": entity,
        "state": state,
        "files": {name: _fingerprint(folder / name) for name in _FILES if (folder / name).exists()},
    }


def read_book(folder: Path) -> dict[str, Any] | None:
    """Return what was sent of a run; None if nothing was, or if the book is damaged: then it is sent again."""
    try:
        return read_json(folder / "wandb" / "sent.json")
    except (FileNotFoundError, RecordError):
        return None


def _what(attempts: int, project: str, entity: str | None) -> str:
    return f"{attempts} offline {'folder' if attempts == 1 else 'folders'} -> {f'{entity}/' if entity else ''}{project}"


def _fingerprint(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _summary(verdicts: Sequence[str]) -> str:
    if not verdicts:
        return "no runs that were tracked offline"
    return ", ".join(
        f"{verdicts.count(verdict)} {verdict}"
        for verdict in (SENT, WOULD_SEND, UP_TO_DATE, LEFT_OUT, FAILED)
        if verdict in verdicts
    )


def _parser() -> argparse.ArgumentParser:
    parser = command("sync", "Send runs that were tracked offline to wandb: each run once, its attempts as one.")
    add = parser.add_argument
    add("--project", help="wandb project (default: each run's tracking.project)")
    add("--entity", help="wandb user or team (default: each run's tracking.entity, then wandb's own default)")
    add("--timeout-s", type=_positive, default=120.0, metavar="S", help="limit for each run (default: 120)")
    add("--running", action="store_true", help="send also what there is of runs that are running")
    add("--dry-run", action="store_true", help="say what would be sent, send nothing")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, not {text}")
    return value


if __name__ == "__main__":
    sys.exit(program(main))
