"""Tables of results, as pure functions of a catalog: ``python -m analysis.tables DIR [--csv FILE] [--latex FILE]``.

``--networks``: of the networks that runs make on the way, whose figures are in each run's own folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from analysis.results import (
    NETWORK_VALUES,
    VALUES,
    accuracy_figures,
    missing_cells,
    missing_networks,
    network_figures,
)
from analysis.runs import NoRunsError, load
from analysis.text import NOTHING, cell_text
from dst.run.terminal import program

_HEADINGS: Final = {
    "realised_density": "realised density",
    "rs": "Rs",
    "flops_test_ratio": "test FLOPs / dense",
    "flops_train_ratio": "train FLOPs / dense",
}
_LATEX: Final = str.maketrans({"\\": r"\textbackslash "} | {character: f"\\{character}" for character in "_%&#${}"})


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
    return "".join([body, *notes]).replace("±", r"$\pm$").replace(NOTHING, "--")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the runs below a folder, write it to files if asked to, and return the exit code."""
    about = "Table of the runs below a folder, and of those elsewhere that belong to a group in it."
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description=about)
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of runs, e.g. outputs or outputs/<group>")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the numbers as CSV")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="also write the table as LaTeX")
    parser.add_argument("--networks", action="store_true", help="of the networks that the runs have made on the way")
    options = parser.parse_args(arguments)
    try:
        frame = load([options.dir])
    except NoRunsError as error:
        print(error, file=sys.stderr)
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


def _accuracies(figures: pd.DataFrame) -> list[str]:
    """Return mean and deviation of each row as text; a dash where there is none."""
    pairs = zip(figures["accuracy"], figures["accuracy_std"], strict=True)
    return [NOTHING if pd.isna(mean) else f"{mean:.2f} ± {cell_text(std, '.2f')}" for mean, std in pairs]


def _counts(figures: pd.DataFrame) -> list[str]:
    """Return of each row how many seeds it has, as "2/3" where some are missing."""
    counts = zip(figures["n"], figures["expected"], strict=True)
    return [str(n) if n == expected else f"{n}/{expected}" for n, expected in counts]


if __name__ == "__main__":
    sys.exit(program(main))
