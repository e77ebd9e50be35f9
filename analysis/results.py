"""The figures of experiments, as numbers: means over seeds, and missing seeds. Pure functions of a catalog."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analysis.runs import ACCURACY, FIGURES, SEED, comparable, is_done, plain
from analysis.text import cell_text
from dst.records.catalog import newest, recorded
from dst.records.read import read_networks
from dst.records.states import State
from dst.records.store import RecordError

VALUES: Final = ("accuracy", "accuracy_std", *FIGURES, "n", "expected", "missing")
"""Columns of ``accuracy_figures`` that are no labels."""

NETWORK_VALUES: Final = (
    *("phase", "phase_name", "step", "network"),
    *("realised_density", "accuracy", "accuracy_std", "n", "expected", "missing"),
)
"""Columns of ``network_figures`` that are no labels."""


class TableError(ValueError):
    """One table cannot show these runs."""


def accuracy_figures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each experiment, that is all runs that differ in nothing but the seed, as numbers.

    Columns: ``LABELS``; ``target``, ``correction`` and ``procedure``, if any run has one; ``schema``, if the runs have
    their ids by several versions of it; a column for every other config key by which two of the rows with equal labels
    differ;
    ``accuracy`` in percent and ``accuracy_std``, the mean and the sample standard deviation (n - 1) over the seeds that
    are done; the means ``FIGURES``; ``n`` seeds done of ``expected``, those that any experiment of its groups has;
    ``missing`` says what became of the others.
    ``TableError`` if a seed of an experiment occurs twice.
    """
    runs, shown = comparable(frame)
    seeds = {group: set(members[SEED]) for group, members in runs.groupby("group")}
    rows = []
    for _, members in runs.groupby("experiment"):
        expected = set().union(*(seeds[group] for group in members["group"]))
        labels = {name: plain(members[key].iloc[0]) for name, key in shown.items()}
        done = set(members.loc[is_done(members), SEED])
        rows.append(labels | _figures(members) | _completeness(members, expected, done, ACCURACY))
    rows.sort(key=lambda row: [_rank(row[name]) for name in shown])
    return pd.DataFrame(rows, columns=[*shown, *VALUES])


def missing_cells(frame: pd.DataFrame) -> list[str]:
    """Return the footnotes of ``accuracy_table``: a line a row with missing seeds, and a run without record."""
    figures = accuracy_figures(frame)
    notes = [
        f"missing in {_row_name(row, VALUES)}: {row['missing']}"
        for row in figures[figures["n"] < figures["expected"]].to_dict("records")
    ]
    return notes + _left_out(frame)


def network_figures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each network that the runs of an experiment make on the way, as numbers.

    Columns: those that name a row of ``accuracy_figures``; ``phase`` (from 0), ``phase_name``, ``step`` and the name of
    the ``network``, in the order in which they are made; the mean ``realised_density``; ``accuracy`` in percent and
    ``accuracy_std`` on the validation set, over the seeds; ``n`` seeds that have it of ``expected``; ``missing`` says
    what became of the others. A network counts once it is made, whatever becomes of its run. ``TableError`` as there.
    """
    runs, shown = comparable(frame)
    made, unreadable = _networks(runs)
    runs["state"] = runs["state"].mask(runs["folder"].isin(unreadable), State.UNREADABLE.value)
    seeds = {group: set(members[SEED]) for group, members in runs.groupby("group")}
    rows = []
    for _, members in runs.groupby("experiment"):
        expected = set().union(*(seeds[group] for group in members["group"]))
        labels = {name: plain(members[key].iloc[0]) for name, key in shown.items()}
        own = made[made["folder"].isin(members["folder"])].sort_values(["phase", "step", "nth"], kind="stable")
        for place, networks in own.groupby(["phase", "phase_name", "step", "name"], sort=False):
            accuracy = 100 * networks["val/accuracy"].astype(float)
            figures = {
                **dict(zip(("phase", "phase_name", "step", "network"), place, strict=True)),
                "realised_density": networks["density"].mean(),
                **{"accuracy": accuracy.mean(), "accuracy_std": accuracy.std(ddof=1)},
            }
            rows.append(labels | figures | _completeness(members, expected, set(networks[SEED]), "it"))
    rows.sort(key=lambda row: [_rank(row[name]) for name in shown])
    return pd.DataFrame(rows, columns=[*shown, *NETWORK_VALUES])


def missing_networks(frame: pd.DataFrame) -> list[str]:
    """Return the footnotes of ``network_table``: what seeds lack, and a line a run that cannot be read."""
    figures = network_figures(frame)
    lacking: dict[tuple[str, str], list[str]] = {}
    for row in figures[figures["n"] < figures["expected"]].to_dict("records"):
        lacking.setdefault((_row_name(row, NETWORK_VALUES), row["missing"]), []).append(row["network"])
    notes = [f"missing in {name}, {', '.join(networks)}: {why}" for (name, why), networks in lacking.items()]
    _, unreadable = _networks(comparable(frame)[0])
    return notes + _left_out(frame) + [f"not in the table: {error}" for error in sorted(unreadable.values())]


def _figures(runs: pd.DataFrame) -> dict[str, Any]:
    done = runs[is_done(runs)]
    accuracy = 100 * done[ACCURACY].astype(float)
    means = {name: done[value].astype(float).mean() for name, value in FIGURES.items()}
    return {"accuracy": accuracy.mean(), "accuracy_std": accuracy.std(ddof=1), **means}


def _networks(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the networks of all runs, each with the run's folder and seed; and folders where they cannot be read."""
    made, unreadable = [], {}
    for folder, seed in zip(runs["folder"], runs[SEED], strict=True):
        try:
            networks = read_networks(Path(folder))
        except RecordError as error:
            unreadable[folder] = str(error)
        else:
            made += [{**row, "nth": nth, "folder": folder, SEED: seed} for nth, row in enumerate(networks)]
    columns = ["folder", SEED, "phase", "phase_name", "step", "nth", "name", "density", "val/accuracy"]
    return pd.DataFrame(made, columns=columns), unreadable


def _row_name(row: Mapping[Any, Any], values: Sequence[str]) -> str:
    """Return the labels of a row as one text; ``values``: its columns that are no labels."""
    parts = [cell_text(row[name]) for name in ("data", "model", "method")]
    others = [name for name in row if name not in ("data", "model", "method", *values)]
    return " ".join([*parts, *(f"{name}={cell_text(row[name])}" for name in others)])


def _left_out(frame: pd.DataFrame) -> list[str]:
    """Return a note for each run whose record does not exist or cannot be read."""
    runs = newest(frame)
    return [f"not in the table: {error}" for error in runs["error"].drop(recorded(runs).index).sort_values()]


def _completeness(runs: pd.DataFrame, expected: set[int], found: set[int], what: str) -> dict[str, Any]:
    """Return how many of the expected seeds were found, and what became of the runs that lack ``what``."""
    if runs[SEED].duplicated().any():
        folders = runs.loc[runs[SEED].duplicated(keep=False), "folder"]
        raise TableError(f"one seed of one experiment twice, under different ids: {', '.join(folders)}. Leave one out")
    ended = {**dict.fromkeys(expected, "not run"), **dict(zip(runs[SEED], runs["state"], strict=True))}
    ended |= {seed: f"done without {what}" for seed in expected - found if ended[seed] == State.DONE}
    missing = "; ".join(f"seed {cell_text(seed)} {ended[seed]}" for seed in sorted(expected - found))
    return {"n": len(found), "expected": len(expected), "missing": missing}


def _rank(value: Any) -> tuple[int, Any]:
    """Return a key that sorts the values of a mixed column: missing values, then numbers, then text."""
    return (0, 0) if pd.isna(value) else (2, value) if isinstance(value, str) else (1, value)
