"""Send runs to wandb, each once and complete: ``python -m dst.launcher.sync DIR``.

The record of a run is sent, even if parts of it were sent while it trained. A run that was killed and continued arrives
as one run. ``<run folder>/wandb/sent.json`` says what has arrived, so the next call sends only what is new.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from dst.launcher.arguments import command, folders_below
from dst.records.lock import holder
from dst.records.read import read_status
from dst.records.states import State
from dst.records.store import RecordError
from dst.run import given
from dst.run.terminal import program
from dst.tracking.described import WrongNameError, destination
from dst.tracking.limits import wrong_name
from dst.tracking.mirror import Sending
from dst.tracking.mirrored import PLACE, NotSentError, contents, read_book
from dst.words import one_line


class Verdict(StrEnum):
    """What can be the result of sending a run."""

    SENT = "sent"
    WOULD_SEND = "would send"
    UP_TO_DATE = "up to date"
    LEFT_OUT = "left out"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """The result of sending a run, and details about it."""

    verdict: Verdict
    detail: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the runs at or below a folder; return 0 if all went well, 1 if a run was not sent, 2 for a wrong command."""
    options = _parser().parse_args(arguments)
    folders = folders_below(options.dir)
    if folders is None:
        return 2
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
        print(f"{outcome.verdict:<10}  {one_line(str(folder))}{outcome.detail and f'  {outcome.detail}'}", flush=True)
    print(_summary(verdicts))
    return 1 if Verdict.FAILED in verdicts else 0


def sync_run(
    folder: Path, *, project: str | None, entity: str | None, timeout_s: float, with_running: bool, dry_run: bool
) -> Outcome:
    """Send one run unless it is up to date.

    ``project`` and ``entity`` override those of the run's config. Trouble is an outcome, never an exception.
    """
    try:
        project, entity = destination(folder, project, entity)
        if (why := _why_not(folder, with_running)) is not None:
            return Outcome(Verdict.LEFT_OUT, why)
        if contents(folder, project, entity).items() <= read_book(folder).items():
            return Outcome(Verdict.UP_TO_DATE)
        where = f"-> {f'{entity}/' if entity else ''}{project}"
        if dry_run:
            return Outcome(Verdict.WOULD_SEND, where)
        return Outcome(
            Verdict.SENT, "; ".join([where, *send(folder, project=project, entity=entity, timeout_s=timeout_s)])
        )
    except WrongNameError as error:
        told = f"tracking.{error.option}={error.name} {error.problem}: choose another one with --{error.option}"
        return Outcome(Verdict.FAILED, told)
    except (NotSentError, RecordError, OSError) as error:
        return Outcome(Verdict.FAILED, str(error))
    except Exception as error:  # a record may hold anything; the other runs are sent
        return Outcome(Verdict.FAILED, f"its record cannot be read ({type(error).__name__}: {error})")


def send(folder: Path, *, project: str, entity: str | None, timeout_s: float) -> list[str]:
    """Send a record and return wandb's complaints, if any; ``NotSentError`` unless it has arrived."""
    sending = Sending(folder.resolve(), timeout_s, project=project, entity=entity)
    told = [f"wandb: {line}" for line in sending.end()]
    if not sending.is_finished:
        raise NotSentError("; ".join(told))
    return told


def _why_not(folder: Path, with_running: bool) -> str | None:
    """Return why a run is not sent now; None if it is sent."""
    status = read_status(folder) or {}
    if not status.get("attempt") and not (folder / "metrics.jsonl").exists():
        return "it has not begun"
    if who := holder(folder / PLACE):
        return f"it is being sent already ({who})"
    who = holder(folder) if status.get("state") == State.RUNNING and not with_running else None
    return None if who is None else f"running ({who}); --running sends what there is"


def _summary(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "no runs"
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict if verdict in verdicts)


def _parser() -> argparse.ArgumentParser:
    parser = command("sync", "Send runs to wandb, however they were tracked: each run once, its attempts as one.")
    add = parser.add_argument
    add("--project", type=_name, help="wandb project (default: each run's tracking.project, or dst)")
    add(
        "--entity",
        type=_name,
        help="wandb user or team (default: each run's tracking.entity, then wandb's own default)",
    )
    add("--timeout-s", type=given.seconds, default=120.0, metavar="S", help="limit for each run (default: 120)")
    add("--running", action="store_true", help="also send what there is of runs that are running")
    add("--dry-run", action="store_true", help="print what would be sent, send nothing")
    return parser


def _name(text: str) -> str:
    if problem := wrong_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} {problem}")
    return text


if __name__ == "__main__":
    sys.exit(program(main))
