"""The tables of a report: columns, rows and footnotes as text, which a page shows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.built import Table
from analysis.names import look
from analysis.report.gather import Run, counted, grouped, minute, span
from analysis.report.mend import for_seeds, mend
from analysis.rows import Row, TableError, rows
from analysis.runs import SEED
from dst.records.states import State
from dst.run.report import duration

TEXT, LONG, NUMBER, CODE, COMMAND, STATE = "text", "long", "number", "code", "command", "state"
"""Kinds of columns: how their cells are shown."""


@dataclass(frozen=True)
class Sheet:
    """A table of a page.

    ``columns``: heading and kind; ``heads``: how many of them, from the left, name a row. ``notes`` are lists of lines
    below it, each with what stands above it, if anything does.
    """

    id: str
    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]
    heads: int = 1
    notes: Sequence[tuple[str, Sequence[str]]] = ()


def _sheet(id: str, caption: str, rows: Iterable[Mapping[tuple[str, str], object]], heads: int = 1) -> Sheet:
    """Return a table of rows that say heading and kind of each cell; empty columns are left out."""
    texts = [{column: "" if value is None else str(value) for column, value in row.items()} for row in rows]
    columns = [column for column in (texts[0] if texts else ()) if any(row[column] for row in texts)]
    return Sheet(id, caption, columns, [[row[column] for column in columns] for row in texts], heads)


def of_table(id: str, caption: str, table: Table, numbers: int) -> Sheet:
    """Return a table of results: the last ``numbers`` of its columns are numbers, the others name a row."""
    text = table.text
    if "method" in text:
        text = text.assign(method=[look(method).name for method in text["method"]])
    heads = len(text.columns) - numbers
    columns = [(str(name), TEXT if place < heads else NUMBER) for place, name in enumerate(text.columns)]
    rows = [[str(value) for value in row] for row in text.itertuples(index=False)]
    notes = [("".join(table.differences[:1]), table.differences[1:]), ("", table.footnotes)]
    return Sheet(id, caption, columns, rows, heads, [note for note in notes if note[1]])


# -- what ran ----------------------------------------------------------------------------------------------------------


def groups(runs: Sequence[Run]) -> Sheet:
    """Return the groups, each with its runs and commands."""
    return _sheet(
        "groups",
        "Groups and their commands",
        [
            {
                ("group", TEXT): group,
                ("command", COMMAND): command,
                ("runs", NUMBER): len(members),
                ("states", TEXT): counted(run.state for run in members),
                ("when", TEXT): span(members),
            }
            for (group, command), members in _by(runs, "group", "command")
        ],
    )


def machines(runs: Sequence[Run]) -> Sheet:
    """Return on which machines the runs were made, and by which code."""
    known = [run for run in runs if run.host]
    return _sheet(
        "machines",
        "Machines and code",
        [
            {
                ("host", TEXT): host,
                ("device", TEXT): device,
                ("platform", TEXT): platform,
                ("determinism", TEXT): determinism,
                ("code", CODE): version,
                ("runs", NUMBER): len(members),
            }
            for (host, device, platform, determinism, version), members in _by(
                known, "host", "device", "platform", "determinism", "version"
            )
        ],
    )


def data_sets(runs: Sequence[Run]) -> Sheet:
    """Return the data sets by the digest of their content."""
    sets = grouped((run for run in runs if run.dataset), lambda run: tuple(map(str, run.dataset.values())))
    return _sheet(
        "data-sets",
        "Data sets, by the digest of their content",
        [
            {
                ("data set", TEXT): members[0].dataset.get("name"),
                ("SHA-256", CODE): members[0].dataset.get("digest"),
                ("runs", NUMBER): len(members),
            }
            for members in sets.values()
        ],
    )


def all_runs(runs: Sequence[Run]) -> Sheet:
    """Return a line for each run."""
    return _sheet(
        "runs",
        "All runs",
        [
            {
                ("run", TEXT): run.name,
                ("id", CODE): run.id,
                ("group", TEXT): run.group,
                ("state", STATE): run.state.value,
                ("test accuracy (%)", NUMBER): None if run.accuracy is None else f"{100 * run.accuracy:.2f}",
                ("training time", NUMBER): None if run.seconds is None else duration(run.seconds),
                ("begun", TEXT): run.created and minute(run.created),
                ("folder", CODE): run.folder,
            }
            for run in runs
        ],
    )


def _by(runs: Iterable[Run], *names: str) -> Iterable[tuple[Any, list[Run]]]:
    return grouped(runs, lambda run: tuple(getattr(run, name) for name in names)).items()


# -- what is missing ---------------------------------------------------------------------------------------------------


def unfinished(runs: Sequence[Run]) -> Sheet:
    """Return the runs without a result, why, and what mends it."""
    lacking = [run for run in runs if run.state != State.DONE or run.accuracy is None]
    return _sheet(
        "unfinished",
        "Runs without a result",
        [
            {
                ("run", TEXT): run.name,
                ("state", STATE): run.state.value,
                ("step", NUMBER): run.step,
                ("why", LONG): run.why,
                ("what to do", LONG): mend(run).advice,
                ("command", COMMAND): mend(run).command,
                ("folder", CODE): run.folder,
            }
            for run in lacking
        ],
    )


def not_run(frame: pd.DataFrame, runs: Sequence[Run]) -> Sheet:
    """Return the experiments of which other experiments beside them have more seeds, and how to run these."""
    cells = [(name, seeds, for_seeds(run, seeds)) for name, seeds, run in _not_run(frame, runs)]
    return _sheet(
        "not-run",
        "Seeds that were never run",
        [
            {
                ("experiment", TEXT): name,
                ("seeds", TEXT): ", ".join(map(str, seeds)),
                ("what to do", LONG): how.advice,
                ("command", COMMAND): how.command,
            }
            for name, seeds, how in cells
        ],
    )


def _not_run(frame: pd.DataFrame, runs: Sequence[Run]) -> Iterable[tuple[str, list[int], Run]]:
    """Yield each experiment that lacks seeds which its sweep has: its name, these seeds, and one of its runs."""
    by_folder = {run.folder: run for run in runs}
    for row in _experiments(frame):
        if lacking := sorted(int(seed) for seed in row.expected - set(row.runs[SEED])):
            yield row.name, lacking, by_folder[row.runs["folder"].iloc[0]]


def _experiments(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of tables; none if no table can show these runs."""
    try:
        return rows(frame)
    except TableError:
        return []


def aside(pairs: Sequence[tuple[str, str]]) -> Sheet:
    """Return the folders that do not count, since another one of the same run does."""
    rows = [{("folder", CODE): this, ("counted instead", CODE): that} for this, that in pairs]
    return _sheet("aside", "Copies and earlier attempts, which do not count", rows)
