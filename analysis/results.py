"""The figures of experiments, as numbers: over seeds, and missing seeds. Pure functions of a catalog."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analysis.rows import MISSING, Row, completeness, completeness_of, left_out, rows
from analysis.rows import TableError as TableError
from analysis.runs import ACCURACY, FIGURES, LABELS, SEED, comparable, is_done
from dst.records.read import read_networks
from dst.records.states import State
from dst.records.store import RecordError

VALUES: Final = ("accuracy", "accuracy_std", *FIGURES, "n", "expected", MISSING)
"""Columns of ``accuracy_figures`` that are no labels."""

NETWORK_VALUES: Final = (
    *("phase", "phase_name", "step", "network"),
    *("realised_density", "accuracy", "accuracy_std", "n", "expected", MISSING),
)
"""Columns of ``network_figures`` that are no labels."""

CHOSEN_BY: Final = "val/accuracy"
"""The summary's value by which ``best_val`` chooses among seeds."""

Summary = Callable[[pd.DataFrame, str], tuple[float, float]]
"""What is shown of the finished runs of an experiment, for a column of figures: the figure and its deviation."""


def accuracy_figures(frame: pd.DataFrame, summary: str = "mean") -> pd.DataFrame:
    """Return one row for each experiment, that is all runs that differ in nothing but the seed, as numbers.

    Columns: ``LABELS``; ``target``, ``correction`` and ``procedure``, if any run has one; ``schema``, if the runs have
    their ids by several versions of it; a column for every other config key by which two of the rows with equal labels
    differ;
    ``accuracy`` in percent and ``accuracy_std``, by default the mean and the sample standard deviation (n - 1) over the
    seeds that are done (see ``SUMMARIES``); ``FIGURES``, summarised alike; ``n`` seeds done of ``expected``, those that
    any experiment of its sweeps has; ``missing`` says what became of the others.
    ``TableError`` if a seed of an experiment occurs twice.
    """
    return figures_of(rows(frame), summary)


def figures_of(found: Sequence[Row], summary: str = "mean") -> pd.DataFrame:
    """Return ``accuracy_figures`` of rows."""
    numbers = [row.labels | summarised(row, summary) | completeness(row) for row in found]
    return pd.DataFrame(numbers, columns=[*(found[0].labels if found else LABELS), *VALUES])


def summarised(row: Row, summary: str) -> dict[str, Any]:
    """Return accuracy in percent, its deviation and ``FIGURES`` over the seeds of an experiment that are done."""
    done = row.runs[is_done(row.runs)]
    accuracy, deviation = SUMMARIES[summary](done, ACCURACY)
    others = {name: SUMMARIES[summary](done, value)[0] for name, value in FIGURES.items()}
    return {"accuracy": 100 * accuracy, "accuracy_std": 100 * deviation, **others}


def missing_cells(frame: pd.DataFrame) -> list[str]:
    """Return the footnotes of ``accuracy_table``: a line a row with missing seeds, and a run without record."""
    return missing_of(rows(frame)) + left_out(frame)


def missing_of(found: Sequence[Row]) -> list[str]:
    """Return a line for each row with missing seeds."""
    told = [(row.name, completeness(row)) for row in found]
    return [f"missing in {name}: {of[MISSING]}" for name, of in told if of["n"] < of["expected"]]


def network_figures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each network that the runs of an experiment make on the way, as numbers.

    Columns: those that name a row of ``accuracy_figures``; ``phase`` (from 0), ``phase_name``, ``step`` and the name of
    the ``network``, in the order in which they are made; the mean ``realised_density``; ``accuracy`` in percent and
    ``accuracy_std`` on the validation set, over the seeds; ``n`` seeds that have it of ``expected``; ``missing`` says
    what became of the others. A network counts once it is made, whatever becomes of its run. ``TableError`` as there.
    """
    return network_figures_of(frame, [*network_rows(frame)])


def network_figures_of(frame: pd.DataFrame, found: Sequence[tuple[Row, dict[str, Any]]]) -> pd.DataFrame:
    """Return ``network_figures`` of a catalog and its ``network_rows``."""
    numbers = [row.labels | figures for row, figures in found]
    return pd.DataFrame(numbers, columns=[*comparable(frame)[1], *NETWORK_VALUES])


def network_rows(frame: pd.DataFrame) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield the experiment and the figures, ``NETWORK_VALUES``, of each row of ``network_figures``."""
    for row in rows(frame):
        made, unreadable = _networks(row.runs)
        states = row.runs["state"].mask(row.runs["folder"].isin(unreadable), State.UNREADABLE.value)
        runs = row.runs.assign(state=states)
        for place, networks in made.groupby(["phase", "phase_name", "step", "name"], sort=False):
            accuracy = 100 * networks["val/accuracy"].astype(float)
            figures = {
                **dict(zip(("phase", "phase_name", "step", "network"), place, strict=True)),
                "realised_density": networks["density"].mean(),
                **{"accuracy": accuracy.mean(), "accuracy_std": accuracy.std(ddof=1)},
            }
            yield row, figures | completeness_of(runs, row.expected, set(networks[SEED]), "it")


def missing_networks(frame: pd.DataFrame) -> list[str]:
    """Return the footnotes of ``network_table``: what seeds lack, and a line a run that cannot be read."""
    return missing_networks_of(frame, [*network_rows(frame)])


def missing_networks_of(frame: pd.DataFrame, found: Sequence[tuple[Row, dict[str, Any]]]) -> list[str]:
    """Return ``missing_networks`` of a catalog and its ``network_rows``."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for row, figures in found:
        if figures["n"] < figures["expected"]:
            lacking.setdefault((row.name, figures[MISSING]), []).append(figures["network"])
    notes = [f"missing in {name}, {', '.join(networks)}: {why}" for (name, why), networks in lacking.items()]
    _, unreadable = _networks(comparable(frame)[0])
    return notes + left_out(frame) + [f"not in the table: {error}" for error in sorted(unreadable.values())]


def _mean(done: pd.DataFrame, column: str) -> tuple[float, float]:
    values = done[column].astype(float)
    return values.mean(), values.std(ddof=1)


def _median(done: pd.DataFrame, column: str) -> tuple[float, float]:
    """The deviation is the sample's, as beside a mean."""
    values = done[column].astype(float)
    return values.median(), values.std(ddof=1)


def _best_val(done: pd.DataFrame, column: str) -> tuple[float, float]:
    """The seed of the best validation accuracy, the first of equal ones; no figure if none has any."""
    ranked = done.reindex(columns=[CHOSEN_BY, SEED, column]).dropna(subset=[CHOSEN_BY])
    values = ranked.sort_values([CHOSEN_BY, SEED], ascending=[False, True])[column]
    return float(values.iloc[0]) if len(values) else float("nan"), float("nan")


SUMMARIES: Final[dict[str, Summary]] = {"mean": _mean, "median": _median, "best_val": _best_val}
"""How the seeds of an experiment become one figure."""


def _networks(runs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the networks of all runs in order, with the run's folder and seed; and folders that cannot be read."""
    made, unreadable = [], {}
    for folder, seed in zip(runs["folder"], runs[SEED], strict=True):
        try:
            networks = read_networks(Path(folder))
        except RecordError as error:
            unreadable[folder] = str(error)
        else:
            made += [{**row, "nth": nth, "folder": folder, SEED: seed} for nth, row in enumerate(networks)]
    columns = ["folder", SEED, "phase", "phase_name", "step", "nth", "name", "density", "val/accuracy"]
    return pd.DataFrame(made, columns=columns).sort_values(["phase", "step", "nth"], kind="stable"), unreadable
