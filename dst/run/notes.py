"""What people should know about the runs of a command before it goes on: where they were found, and what is like them.

A note is told once for a command, whatever number of runs it is about.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from dst.config.schema import get
from dst.options import shown
from dst.records.read import read_status
from dst.records.same import copies_note, id_in, ranked, renamed_note
from dst.records.states import OVER, State
from dst.records.store import RecordError
from dst.run.cell import Cell
from dst.run.look import Look
from dst.run.twins import twins
from dst.words import few, one_line

_SEARCHED: Final = 50
"""Of so many new runs of a command, at most, others that are like them are sought."""


def notes(cells: Sequence[Cell], there: Look, program: Path) -> Iterator[str]:
    """Yield the notes about the cells of a command; ``there``: what lies below their roots.

    ``program``: the folder of the program, where people often start it.
    """
    closed = [
        f"{one_line(str(folder))} cannot be read ({error.strerror}): runs in it are not found"
        for folder, error in there.closed.items()
    ]
    yield from (f"warning: {text}" for text in few(closed, more="more folders cannot be read"))
    for root in dict.fromkeys(cell.config.output.root for cell in cells):
        yield from _second_tree(Path(root), program)
    found = [
        (cell.id, cell.found, cell.copies) for cell in cells if cell.found and cell.config.output.resume != "never"
    ]
    yield from _listed([renamed_note(run, folder) for run, folder, _ in found if id_in(folder.name) != run])
    yield from _listed([copies_note(run, folder, copies) for run, folder, copies in found if copies])
    yield from _listed([*_twins(cells, there)])


def _listed(told: Sequence[str]) -> Iterator[str]:
    yield from (f"note: {text}" for text in few(told))


def _second_tree(root: Path, program: Path) -> Iterator[str]:
    """Yield that a relative root is new here, while there is one of that name where people start the program."""
    if root.is_absolute() or root.exists():
        return
    here = Path.cwd()
    for folder in (*here.parents, program):
        with suppress(OSError):
            if folder.resolve() != here and any(not path.name.startswith(".") for path in (folder / root).iterdir()):
                where, other = one_line(str(here / root)), shlex.quote(f"output.root={folder / root}")
                yield f"note: records go to {where}, which is new; to go on in another: {other}"
                return


def _twins(cells: Sequence[Cell], there: Look) -> Iterator[str]:
    """Yield which runs that are begun anew differ from a recorded one in nothing but how they are computed."""
    asked = {cell.id for cell in cells}
    new = [cell for cell in cells if cell.found is None]
    for cell in new[:_SEARCHED]:
        runs = there.runs[cell.config.output.root]
        for run, others in twins(cell.config, cell.identity, runs.keys() - asked):
            folder = ranked({run: runs[run]})[run][0].folder
            yield _twin(cell, run, others, folder)
            break


def _twin(cell: Cell, run: str, others: Mapping[str, Any], folder: Path) -> str:
    told = ", ".join(
        f"{key} ({shown(value)} there, {shown(get(cell.config, key))} here)" for key, value in others.items()
    )
    given = " ".join(f"{key}={shown(value)}" for key, value in others.items())
    state = _state(folder)
    verb = "report" if state in OVER else "continue"
    return (
        f"run {cell.id} begins anew: run {run} in {one_line(str(folder))} is {state}, but differs in {told}, which can "
        f"change bits; to {verb} that one: {given}"
    )


def _state(folder: Path) -> State:
    try:
        state: State = (read_status(folder) or {"state": State.UNKNOWN})["state"]
        return state
    except (OSError, RecordError):
        return State.UNREADABLE
