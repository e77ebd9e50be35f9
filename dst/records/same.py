"""Which folders hold the same run, and which of them counts.

A folder of which people know nothing but its name may have been renamed, copied or restored from a backup. So what
holds a run is known by the id in its ``run.json``, and only the names that runs give their folders are believed as they
stand. Of the folders of a run the newest attempt counts, and of copies of an attempt one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dst.records.read import read_run
from dst.records.rows import Row, told
from dst.records.states import OVER
from dst.records.store import RecordError
from dst.words import one_line

_RUN_ID: Final = re.compile("[0-9a-f]{12}")
_DIGITS: Final = 3
"""A longer number behind the dot of a folder's name is no attempt; people write dates there."""

Rank = tuple[int, bool, str, int, int, bool, str]


@dataclass(frozen=True)
class Held:
    """A folder that holds a run. ``attempt``: which of its attempt folders; ``rank``: the highest of a run counts."""

    folder: Path
    attempt: int
    rank: Rank


def attempt_folder(folder: Path) -> int:
    """Return which attempt folder of its run this is by its name: 1 for ``<run_id>``, 2 for ``<run_id>.2``, ...."""
    number = folder.name.rpartition(".")[2] if "." in folder.name else ""
    return int(number) if number.isdecimal() and len(number) <= _DIGITS and int(number) > 0 else 1


def id_in(name: str) -> str:
    """Return the run id in the name of a run's folder."""
    return name.removesuffix(f".{attempt_folder(Path(name))}")


def is_named_by_id(folder: Path) -> bool:
    """Say whether a folder has the name that a run gives its first one, so that its record need not be asked."""
    return _RUN_ID.fullmatch(folder.name) is not None


def called(folder: Path, about: Mapping[str, Any]) -> str:
    """Return what a run is called, whatever its folder is: ``<run_id>``, in its second attempt folder ``<run_id>.2``.

    ``about``: its ``run.json``.
    """
    run = str(about.get("id", id_in(folder.name)))
    number = _number(folder, run, about)
    return run if number == 1 else f"{run}.{number}"


def attempt_of(folder: Path, run: str) -> int:
    """Return which attempt folder of a run this is: as its record says or, if that cannot be read, by its name."""
    try:
        return _number(folder, run, read_run(folder))
    except (OSError, RecordError):
        return _number(folder, run, {})


def by_id(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the run folders by the ids of their runs, in their order."""
    folders = list(folders)
    rows = _rows(folder for folder in folders if not is_named_by_id(folder))
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in folders:
        found[rows.get(folder, {}).get("id", id_in(folder.name))].append(folder)
    return dict(found)


def ranked(folders: Mapping[str, Sequence[Path]]) -> dict[str, list[Held]]:
    """Return what holds each run, the folder that counts first; ``folders``: those of each run, by its id."""
    several = (folder for its in folders.values() if len(its) > 1 for folder in its)
    alone = (its[0] for its in folders.values() if len(its) == 1 and not is_named_by_id(its[0]))
    rows = _rows([*several, *alone])
    held = {run: [_held(run, folder, rows.get(folder, {})) for folder in its] for run, its in folders.items()}
    return {run: sorted(its, key=lambda one: one.rank, reverse=True) for run, its in held.items()}


def copies(held: Sequence[Held]) -> tuple[Path, ...]:
    """Return the other folders of the attempt that counts."""
    return tuple(one.folder for one in held[1:] if one.attempt == held[0].attempt)


def rank(run: str, folder: Path, attempt: int, row: Mapping[str, Any]) -> Rank:
    """Return what decides which folder of a run counts.

    The newest attempt folder does; of that a finished one, then the one made last, then the one that was begun or
    continued most often (a copy is not, whatever step it stood at), then the one that has come furthest, then the one
    whose folder has the name that the run gave it. ``row``: what its record says.
    """
    created = row.get("created")
    return (
        attempt,
        row.get("state") in OVER,
        created if isinstance(created, str) else "",
        _count(row.get("attempt")),
        _count(row.get("step")),
        id_in(folder.name) == run,
        str(folder),
    )


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and value == value else 0  # not a missing value of pandas


def renamed_note(run: str, folder: Path) -> str:
    """Return the note about a run whose folder does not have the name that the run gave it."""
    return f"run {run} is in {one_line(str(folder))}, which was renamed"


def copies_note(run: str, counts: Path, others: Sequence[Path]) -> str:
    """Return the note about copies of a run."""
    listed = ", ".join(one_line(str(folder)) for folder in others)
    return f"run {run} is also in {listed}: {one_line(str(counts))} counts"


def _held(run: str, folder: Path, row: Row) -> Held:
    number = _number(folder, run, row)
    return Held(folder, number, rank(run, folder, number, row))


def _number(folder: Path, run: str, about: Mapping[str, Any]) -> int:
    """Return which attempt folder of a run this is: as recorded or, in records of earlier versions, by its own name."""
    recorded = about.get("attempt_folder")
    if isinstance(recorded, int):
        return recorded
    return attempt_folder(folder) if id_in(folder.name) == run else 1


def _rows(folders: Iterable[Path]) -> dict[Path, Row]:
    return {folder: {**first, **own} for folder, (first, own) in told(folders).items()}
