"""Tables of results, as pure functions of a catalog: ``python -m analysis.tables DIR...``; ``--help`` has the options.

As a library: ``accuracy_table`` and ``network_table`` are what the command prints; ``results``, ``networks`` and
``pivoted`` return a ``Table`` with its numbers, LaTeX, footnotes and what is told apart.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Final

import pandas as pd

from analysis.built import Table as Table
from analysis.built import accuracy_table as accuracy_table
from analysis.built import network_table as network_table
from analysis.built import networks, pivoted, results
from analysis.results import SUMMARIES
from analysis.rows import TableError
from analysis.runs import NoRunsError, load
from analysis.seeds import per_seed
from analysis.selection import SelectionError
from analysis.text import show, write_csv
from dst.run import given
from dst.run.terminal import program

_ABOUT: Final = "Table of the runs below folders, and of those elsewhere that belong to a group in them."
WHERE: Final = "only runs that have this value, e.g. density=0.1 (repeatable; of one key given twice, either)"


def latex(frame: pd.DataFrame) -> str:
    """Return the table of results and its footnotes as LaTeX (see ``analysis.latex``)."""
    return results(frame).latex


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of the runs below folders, write it to files if asked to, and return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    is_pivot = bool(options.rows or options.columns or options.value)
    if options.networks and (is_pivot or options.summary != "mean"):
        parser.error("--networks makes a table of its own: leave out --rows, --columns, --value and --summary")
    return guarded(lambda: _make(options, is_pivot))


def guarded(make: Callable[[], int]) -> int:
    """Carry out a command on runs; what a user can mend becomes a message and an exit code."""
    try:
        return make()
    except (NoRunsError, SelectionError, TableError) as error:
        show([str(error)], sys.stderr)
        return 2
    except OSError as error:
        show([f"cannot write the table: {error}"], sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description=_ABOUT)
    parser.add_argument(
        "dirs", type=given.path, metavar="DIR", nargs="+", help="folder of runs, e.g. outputs or outputs/<group>"
    )
    parser.add_argument("--where", action="append", type=given.word, default=[], metavar="KEY=VALUE", help=WHERE)
    keys = "keys by commas: data, model, method, density, any key of a config"
    parser.add_argument(
        "--rows", type=given.word, metavar="KEY", help=f"pivot: a row for each value of {keys} (default: method)"
    )
    parser.add_argument(
        "--columns", type=given.word, metavar="KEY", help="pivot: a column for each value of KEY (default: density)"
    )
    parser.add_argument(
        "--value", type=given.word, metavar="KEY", help="pivot: what the cells show (default: accuracy)"
    )
    parser.add_argument(
        "--summary", choices=[*SUMMARIES], default="mean",
        help="over the seeds: their mean, median, or the figure of the seed with the best validation accuracy",
    )  # fmt: skip
    parser.add_argument("--networks", action="store_true", help="of the networks that the runs have made on the way")
    parser.add_argument("--csv", type=given.path, metavar="FILE", help="also write the numbers as CSV")
    parser.add_argument("--latex", type=given.path, metavar="FILE", help="also write the table as LaTeX, for \\input")
    parser.add_argument("--per-seed", type=given.path, metavar="FILE", help="also write a CSV with a line a run")
    return parser


def _make(options: argparse.Namespace, is_pivot: bool) -> int:
    frame = load(options.dirs, options.where)
    table = _table(options, frame, is_pivot)
    if options.networks and table.numbers.empty:
        where = ", ".join(map(str, options.dirs))
        none = f"no run in {where} has made networks on the way (none has a networks.jsonl)"
        show([none, *table.footnotes], sys.stderr)
        return 2
    show(table.lines())
    if options.csv:
        write_csv(table.numbers, options.csv)
    if options.latex:
        options.latex.write_text(table.latex, encoding="utf-8")
    if options.per_seed:
        write_csv(per_seed(frame), options.per_seed)
    return 0


def _table(options: argparse.Namespace, frame: pd.DataFrame, is_pivot: bool) -> Table:
    if options.networks:
        return networks(frame)
    if not is_pivot:
        return results(frame, options.summary)
    keys = ((options.rows or "method").split(","), (options.columns or "density").split(","))
    return pivoted(frame, *keys, options.value or "accuracy", options.summary)


if __name__ == "__main__":
    sys.exit(program(main))
