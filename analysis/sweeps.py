"""Which runs belong to one sweep, and which settings are no column because they only tell sweeps apart."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from analysis.selection import NAMING, SCHEMA
from analysis.text import cell_text

_PLACE: Final = ("data", "model")


def sweeps(runs: pd.DataFrame) -> pd.Series:
    """Return the number of the sweep of each run; ``runs`` have a group, a command and an experiment.

    Runs of one command are a sweep; a later command that adds seeds or cells to experiments of its group continues it.
    Records without a command are told apart by their group. It does not matter where copies of a run lie.
    """
    group = _filled(runs, "config.output.group", runs["group"])
    launches = [
        ("command", command) if command else ("group", place)
        for command, place in zip(_filled(runs, "command", ""), group, strict=True)
    ]
    parent = {launch: launch for launch in launches}

    def root(launch: tuple[str, str]) -> tuple[str, str]:
        while parent[launch] != launch:
            launch = parent[launch]
        return launch

    first: dict[tuple[str, str], tuple[str, str]] = {}
    for launch, *key in zip(launches, group, runs["experiment"], strict=True):
        parent[root(launch)] = root(first.setdefault((key[0], key[1]), launch))
    roots = [root(launch) for launch in launches]
    numbers = {one: number for number, one in enumerate(sorted(set(roots)))}
    return pd.Series([numbers[one] for one in roots], index=runs.index, dtype=int)


def _filled(runs: pd.DataFrame, column: str, otherwise: Any) -> list[str]:
    """Return a column of text, with something else where a run has none."""
    values = runs[column] if column in runs else pd.Series(None, index=runs.index, dtype=object)
    return [*values.astype(object).where(values.notna(), otherwise)]


def folded(labels: Sequence[Mapping[str, Any]], sweep: Sequence[int], sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Return the labels of rows as they are shown: a key that only tells sweeps apart stands behind the method.

    ``labels``: name -> value of each row; ``sweep``: the number of its sweep; ``sizes``: how many runs it has. The
    largest sweep of a data set and model is shown as it is; rows of others say in which of these keys they differ from
    it. So a single run that was started beside a sweep changes none of its rows.
    """
    keys = _between(labels, sweep)
    shown = []
    for row, own in zip(labels, sweep, strict=True):
        beside = [other for other in zip(labels, sweep, sizes, strict=True) if _same(other[0], row, _PLACE)]
        main = _largest(beside)
        usual = [] if own == main else [other for other, its, _ in beside if its == main]
        marks = [f"{key}={cell_text(row[key])}" for key in keys if usual and _is_unusual(row, usual, key)]
        kept = {name: value for name, value in row.items() if name not in keys}
        shown.append(kept | {"method": " ".join([cell_text(row["method"]), *marks])})
    return shown


def _between(labels: Sequence[Mapping[str, Any]], sweep: Sequence[int]) -> list[str]:
    """Return the keys in which no two rows of one sweep with equal labels differ."""
    names = [name for name in (labels[0] if labels else {}) if not _names_a_row(name)]
    values: dict[Any, set[str]] = {}
    for row, own in zip(labels, sweep, strict=True):
        alike = (own, *(cell_text(row[name]) for name in row if _names_a_row(name)))
        for name in names:
            values.setdefault((name, alike), set()).add(cell_text(row[name]))
    within = {name for (name, _), found in values.items() if len(found) > 1}
    return [name for name in names if name not in within]


def _names_a_row(name: str) -> bool:
    return name in (*NAMING, SCHEMA)


def _largest(rows: Sequence[tuple[Mapping[str, Any], int, int]]) -> int:
    """Return the sweep with most runs; of equal ones the first."""
    runs: dict[int, int] = {}
    for _, own, size in rows:
        runs[own] = runs.get(own, 0) + size
    return min(runs, key=lambda own: (-runs[own], own))


def _is_unusual(row: Mapping[str, Any], usual: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Return whether a row's value is not that of the rows to which it is compared.

    These are the ones of its own labels, else of its method, else all; where they do not agree, every value is unusual
    but that of a row that has none.
    """
    by_name = [name for name in row if _names_a_row(name)]
    alike = [other for other in usual if _same(other, row, by_name)]
    alike = alike or [other for other in usual if _same(other, row, ("method",))] or [*usual]
    values = {cell_text(other[key]) for other in alike}
    return not pd.isna(row[key]) if len(values) > 1 else cell_text(row[key]) not in values


def _same(one: Mapping[str, Any], other: Mapping[str, Any], names: Sequence[str]) -> bool:
    return all(cell_text(one[name]) == cell_text(other[name]) for name in names)
