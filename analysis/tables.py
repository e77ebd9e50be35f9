"""Tables of results, as pure functions of a catalog: ``python -m analysis.tables DIR [--csv FILE] [--latex FILE]``.

``--networks``: of the networks that runs make on the way, whose figures are in each run's own folder.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Final

import pandas as pd

from dst.records.catalog import catalog, newest, recorded
from dst.records.label import WRAPPERS
from dst.records.read import read_networks
from dst.records.states import State
from dst.records.store import RecordError
from dst.run.terminal import program

SEED: Final = "config.seed"
ACCURACY: Final = "test/accuracy"
METHOD: Final = "method"
SCHEMA: Final = "schema"

LABELS: Final = {
    "data": "config.data.name",
    "model": "config.model.name",
    "method": METHOD,
    "density": "config.sparsity.density",
}
"""Columns that name a row -> the catalog's columns that they show."""

TARGET: Final = "config.sparsity.reparametrize.density"
"""The catalog's column of the density that learned masks are asked for; ``density`` is that of their first ones."""

FIGURES: Final = {
    "realised_density": "sparsity/density",
    "rs": "sparsity/rs",
    "flops_test_ratio": "flops/test_ratio",
    "flops_train_ratio": "flops/train_ratio",
}
"""Columns of means over the seeds -> the summary's values that they average."""

VALUES: Final = ("accuracy", "accuracy_std", *FIGURES, "n", "expected", "missing")
"""Columns of ``accuracy_figures`` that are no labels."""

NETWORK_VALUES: Final = (
    *("phase", "phase_name", "step", "network"),
    *("realised_density", "accuracy", "accuracy_std", "n", "expected", "missing"),
)
"""Columns of ``network_figures`` that are no labels."""

_HEADINGS: Final = {
    "realised_density": "realised density",
    "rs": "Rs",
    "flops_test_ratio": "test FLOPs / dense",
    "flops_train_ratio": "train FLOPs / dense",
}
_NOTHING: Final = "—"
_DIGEST: Final = re.compile("[0-9a-f]{64}")
_LATEX: Final = str.maketrans({"\\": r"\textbackslash "} | {character: f"\\{character}" for character in "_%&#${}"})


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
        labels = {name: _plain(members[key].iloc[0]) for name, key in shown.items()}
        done = set(members.loc[_is_done(members), SEED])
        rows.append(labels | _figures(members) | _completeness(members, expected, done, ACCURACY))
    rows.sort(key=lambda row: [_rank(row[name]) for name in shown])
    return pd.DataFrame(rows, columns=[*shown, *VALUES])


def accuracy_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``accuracy_figures`` as text to read, with ``n`` as "2/3" where seeds are missing.

    A value that does not exist, like the deviation of one run, is a dash. ``missing_cells`` are its footnotes.
    """
    figures = accuracy_figures(frame)
    table = figures.drop(columns=list(VALUES)).map(cell_text)
    table["test accuracy (%)"] = _accuracies(figures)
    for name, heading in _HEADINGS.items():
        table[heading] = figures[name].map(lambda value: cell_text(value, ".4g"))
    table["n"] = _counts(figures)
    return table


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
        labels = {name: _plain(members[key].iloc[0]) for name, key in shown.items()}
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


def network_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``network_figures`` as text to read, like ``accuracy_table``; ``missing_networks`` are its footnotes."""
    figures = network_figures(frame)
    table = figures.drop(columns=list(NETWORK_VALUES)).map(cell_text)
    table["phase"], table["network"] = figures["phase_name"], figures["network"]
    table["step"] = figures["step"].map(cell_text)
    table["val accuracy (%)"] = _accuracies(figures)
    table["realised density"] = figures["realised_density"].map(lambda value: cell_text(value, ".4g"))
    table["n"] = _counts(figures)
    return table


def missing_networks(frame: pd.DataFrame) -> list[str]:
    """Return the footnotes of ``network_table``: what seeds lack, and a line a run that cannot be read."""
    figures = network_figures(frame)
    lacking: dict[tuple[str, str], list[str]] = {}
    for row in figures[figures["n"] < figures["expected"]].to_dict("records"):
        lacking.setdefault((_row_name(row, NETWORK_VALUES), row["missing"]), []).append(row["network"])
    notes = [f"missing in {name}, {', '.join(networks)}: {why}" for (name, why), networks in lacking.items()]
    _, unreadable = _networks(comparable(frame)[0])
    return notes + _left_out(frame) + [f"not in the table: {error}" for error in sorted(unreadable.values())]


def latex(frame: pd.DataFrame, *, networks: bool = False) -> str:
    """Return the table of results, or of networks, and its footnotes as LaTeX; the document needs ``booktabs``."""
    table, footnotes, numbers = (
        (network_table(frame), missing_networks(frame), 4)
        if networks
        else (accuracy_table(frame), missing_cells(frame), 6)
    )
    column_format = "l" * (len(table.columns) - numbers) + "r" * numbers
    body = table.to_latex(index=False, escape=True, column_format=column_format)
    notes = [f"\\par\\footnotesize {note.translate(_LATEX)}\n" for note in footnotes]
    return "".join([body, *notes]).replace("±", r"$\pm$").replace(_NOTHING, "--")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the runs below a folder, write it to files if asked to, and return the exit code."""
    about = "Table of the runs below a folder, and of those elsewhere that belong to a group in it."
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description=about)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of runs, e.g. outputs or outputs/<group>")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the numbers as CSV")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="also write the table as LaTeX")
    parser.add_argument("--networks", action="store_true", help="of the networks that the runs have made on the way")
    options = parser.parse_args(arguments)
    is_folder = options.dir.is_dir()
    frame = catalog(options.dir) if is_folder else pd.DataFrame()
    if frame.empty:
        what = "holds no run (no run.json in it or below)" if is_folder else "is no folder"
        print(f"{options.dir} {what}: give the folder that runs were written to, e.g. outputs", file=sys.stderr)
        return 2
    figures, shown, footnotes = (
        (network_figures(frame), network_table(frame), missing_networks(frame))
        if options.networks
        else (accuracy_figures(frame), accuracy_table(frame), missing_cells(frame))
    )
    if options.networks and figures.empty:
        print(f"no run in {options.dir} has made networks on the way (none has a networks.jsonl)", file=sys.stderr)
        print(*footnotes, sep="\n", end="\n" * bool(footnotes), file=sys.stderr)
        return 2
    print(shown.to_string(index=False))
    if footnotes:
        print("", *footnotes, sep="\n")
    try:
        if options.csv:
            figures.to_csv(options.csv, index=False, float_format="%.10g", lineterminator="\n")
        if options.latex:
            options.latex.write_text(latex(frame, networks=options.networks), encoding="utf-8")
    except OSError as error:
        print(f"cannot write the table: {error}", file=sys.stderr)
        return 1
    return 0


def comparable(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the newest runs that can be read, in order of seed, and the columns that tell their experiments apart.

    These are ``LABELS``, ``TARGET`` and ``WRAPPERS`` that any of them has, and whatever else experiments of equal
    labels differ in: name in a table -> column. The runs have their ``experiment`` as a column: their schema and
    identity without the seed, as text. If runs of one experiment give its method several names, all of them have all
    these as their method.
    """
    runs = recorded(newest(frame))
    wanted = [SCHEMA, SEED, ACCURACY, *LABELS.values(), TARGET, *WRAPPERS, *FIGURES.values()]
    runs = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *wanted])]).sort_values([SEED, "id"])
    identities = [json.loads(text) for text in runs["identity"]]
    keys = sorted({key for identity in identities for key in identity} - {SEED.removeprefix("config.")})
    texts = pd.DataFrame({SCHEMA: runs[SCHEMA].map(_text)}, index=runs.index)
    for key in keys:  # a key that is not in a run's identity has its default there
        texts[f"config.{key}"] = [json.dumps(identity.get(key), sort_keys=True) for identity in identities]
    runs["experiment"] = ["\n".join(row) for row in texts.itertuples(index=False)]
    runs[METHOD] = runs.groupby("experiment")[METHOD].transform(_names)
    wrapping = {kind: kind for kind, usual in WRAPPERS.items() if (runs[kind] != usual).any()}
    target = {"target": TARGET} if runs[TARGET].notna().any() else {}
    others = {key.removeprefix("config."): key for key in _distinguishing(runs, texts)}
    return runs, {**LABELS, **target, **wrapping, **others}


def _distinguishing(runs: pd.DataFrame, texts: pd.DataFrame) -> list[str]:
    """Return the keys by which experiments of equal labels differ: the schema, then others within one schema."""
    alike = [*(runs[column].map(_text) for column in (*LABELS.values(), TARGET, *WRAPPERS)), texts[SCHEMA]]
    others = [key for key in texts.columns.drop(SCHEMA) if texts.groupby(alike)[key].nunique().max() > 1]
    return [*([SCHEMA] if texts[SCHEMA].nunique() > 1 else []), *others]


def _names(methods: pd.Series) -> str | None:
    """Return all names that runs of one experiment give their method; None if they give none."""
    return ", ".join(sorted(set(methods.dropna()))) or None


def _text(value: Any) -> str:
    return json.dumps(_plain(value))


def _figures(runs: pd.DataFrame) -> dict[str, Any]:
    done = runs[_is_done(runs)]
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


def _accuracies(figures: pd.DataFrame) -> list[str]:
    """Return mean and deviation of each row as text; a dash where there is none."""
    pairs = zip(figures["accuracy"], figures["accuracy_std"], strict=True)
    return [_NOTHING if pd.isna(mean) else f"{mean:.2f} ± {cell_text(std, '.2f')}" for mean, std in pairs]


def _counts(figures: pd.DataFrame) -> list[str]:
    """Return of each row how many seeds it has, as "2/3" where some are missing."""
    counts = zip(figures["n"], figures["expected"], strict=True)
    return [str(n) if n == expected else f"{n}/{expected}" for n, expected in counts]


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


def _is_done(runs: pd.DataFrame) -> pd.Series:
    return (runs["state"] == State.DONE) & runs[ACCURACY].notna()


def _plain(value: Any) -> Any:
    """Return a cell of a catalog, or None for every kind of missing value."""
    return None if pd.isna(value) else value


def _rank(value: Any) -> tuple[int, Any]:
    """Return a key that sorts the values of a mixed column: missing values, then numbers, then text."""
    return (0, 0) if pd.isna(value) else (2, value) if isinstance(value, str) else (1, value)


def cell_text(value: Any, spec: str = ".10g") -> str:
    """Return a value of a table as text: a dash if it is missing, numbers by their format, digests cut short."""
    if pd.isna(value):
        return _NOTHING
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return value[:12]
    return format(value, spec) if isinstance(value, Real) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(program(main))
