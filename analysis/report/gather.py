"""What a report tells about runs beside their figures: who made them, where they stand, and what mends them."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analysis.runs import ACCURACY, SEED, plain
from dst.launcher.observe import observe
from dst.records.catalog import catalog, copies_in
from dst.records.read import read_launch, read_run, read_status
from dst.records.states import UNFINISHED, WITHOUT_RECORD, State
from dst.records.store import RecordError


@dataclass(frozen=True)
class Run:
    """One run as a report tells of it; what its record does not say is None or empty.

    ``created`` and ``ended``: when its record was made and last written, in UTC. ``cwd``: the folder in which its
    command was given. ``is_job``: it was submitted as a job, so ``requeue`` can take it.
    """

    id: str
    name: str
    group: str
    folder: str
    state: State
    why: str | None = None
    step: int | None = None
    seed: int | None = None
    accuracy: float | None = None
    seconds: float | None = None
    created: str | None = None
    ended: str | None = None
    command: str | None = None
    cwd: str | None = None
    is_job: bool = False
    host: str | None = None
    platform: str | None = None
    device: str | None = None
    determinism: str | None = None
    code: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The version of the code that made it, as text; empty if its record does not say."""
        changed = f" with changes {self.code['diff']}" if self.code.get("diff") else ""
        commit = f"commit {self.code['git'][:12]}{changed}, " if self.code.get("git") else ""
        return f"{commit}sources {self.code['digest']}" if self.code else ""


def present(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a catalog with the states that are true now: a run whose process is gone is lost, not running."""
    unfinished = frame[frame["state"].isin(UNFINISHED)]
    frame = frame.copy()
    for index, seen in zip(unfinished.index, observe(map(Path, unfinished["folder"])), strict=True):
        frame.loc[index, "state"] = seen.state.value
        frame.loc[index, "error"] = seen.why
    return frame


def gather(frame: pd.DataFrame, tell: Callable[[str], None] = lambda _: None) -> list[Run]:
    """Return the runs of a catalog in order of group, name and seed. ``tell`` hears how far it is."""
    runs = []
    for nth, row in enumerate(frame.to_dict("records"), 1):
        runs.append(_run(row))
        if nth % _TOLD_EVERY == 0:
            tell(f"read {nth} of {len(frame)} runs")
    return sorted(runs, key=lambda run: (run.group, run.name, run.seed or 0, run.id))


_TOLD_EVERY: Final = 1000


def set_aside(folders: Sequence[Path], frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the run folders that a catalog leaves out, since another folder of the same run counts: (this, that)."""
    counted = dict(zip(frame["id"], frame["folder"], strict=True))
    found = {
        (place, counted[row["id"]])
        for folder in folders
        for row in catalog(folder, all_attempts=True).to_dict("records")
        for place in (row["folder"], *copies_in(row["copies"]))
        if row["id"] in counted and row["state"] not in WITHOUT_RECORD
    }
    return sorted((this, that) for this, that in found if not _is_same(this, that))


def _is_same(this: str, that: str) -> bool:
    return Path(this).resolve() == Path(that).resolve()


def _run(row: Mapping[Hashable, Any]) -> Run:
    known = {name: plain(row.get(name)) for name in ("name", "created", "step")}
    numbers = {"seed": plain(row.get(SEED)), "accuracy": plain(row.get(ACCURACY))}
    run = Run(
        id=str(row["id"]),
        name=str(known["name"] or row["id"]),
        group=str(row["group"]),
        folder=str(row["folder"]),
        state=State(row["state"]),
        why=plain(row.get("error")),
        step=None if known["step"] is None else int(known["step"]),
        seed=None if numbers["seed"] is None else int(numbers["seed"]),
        accuracy=numbers["accuracy"],
        seconds=plain(row.get("time/seconds")),
        created=known["created"],
    )
    return run if run.state in WITHOUT_RECORD else replace(run, **_recorded(Path(run.folder)))


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what the record in a folder says about the origin of its run."""
    try:
        about, status, launch = read_run(folder), read_status(folder) or {}, read_launch(folder)
    except (OSError, RecordError):  # it has been damaged or removed since the catalog was read
        return {}
    texts = ("command", "cwd", "host", "platform", "device", "determinism")
    told = {name: about[name] for name in (*texts, "code", "versions", "dataset") if name in about}
    cwd = {} if "cwd" in told or not launch or "cwd" not in launch else {"cwd": launch["cwd"]}
    return {**told, **cwd, "is_job": launch is not None, "ended": _utc(status.get("heartbeat"))}


def _utc(seconds: float | None) -> str | None:
    """Return a time as records write it; None for one that no calendar has."""
    try:
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return None


def counted(states: Iterable[State]) -> str:
    """Return how many runs are in each state, as text: ``9 done, 2 failed``."""
    counts = Counter(states)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def grouped(runs: Iterable[Run], key: Callable[[Run], Hashable]) -> dict[Hashable, list[Run]]:
    """Return runs by a key, in the order in which the keys first occur."""
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def span(runs: Iterable[Run]) -> str:
    """Return from when to when runs were made, by the minute."""
    times = sorted(moment for run in runs for time in (run.created, run.ended) if (moment := _moment(time)))
    if not times:
        return ""
    first, last = times[0], times[-1]
    if f"{first:{_MINUTE}}" == f"{last:{_MINUTE}}":
        return f"{first:{_MINUTE}} UTC"
    return f"{first:{_MINUTE}} to {last:{'%H:%M' if first.date() == last.date() else _MINUTE}} UTC"


_MINUTE: Final = "%Y-%m-%d %H:%M"


def minute(time: str) -> str:
    """Return a time of a record as a day and a minute, or as it is if no calendar has it."""
    moment = _moment(time)
    return f"{moment:{_MINUTE}} UTC" if moment else time


def _moment(time: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(time or "")
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
