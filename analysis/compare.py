"""Two sweeps side by side, experiment by experiment: ``python -m analysis.compare A B``; ``--help`` has the options."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from analysis import latex_tables
from analysis.built import Table
from analysis.contrasts import Values, difference_numbers, difference_text, resolved
from analysis.joined import Joined, Pair, join
from analysis.rows import left_out, rows
from analysis.runs import load
from analysis.selection import column_of
from analysis.statistics import Difference, correct, difference
from analysis.tables import WHERE, guarded
from analysis.text import cell_text, listed, show, write_csv
from dst.run import given
from dst.run.terminal import program

_ABOUT: Final = (
    "Joins the experiments of two sweeps by their identity, says in which keys they differ, and compares them by seed: "
    "B - A."
)


def compared(a: pd.DataFrame, b: pd.DataFrame, value: str = "accuracy") -> Table:
    """Return two catalogs side by side: a row for each experiment that is in both, and the difference B - A.

    Columns of the numbers: labels, ``a``, ``a_std``, ``a_n``, the same of ``b``, the ``difference`` with its interval,
    its p-value (by Holm over all rows), n and a note, and ``keys``: those in which the two experiments differ.
    """
    columns = [column_of(frame, value) for frame in (a, b)]
    found = join(rows(a), rows(b))
    scale = 100.0 if value.endswith("accuracy") else 1.0
    values = [(pair.a.by_seed(columns[0], scale), pair.b.by_seed(columns[1], scale)) for pair in found.pairs]
    differences = _differences(values, is_share=scale > 1)
    each = [*zip(found.pairs, values, differences, strict=True)]
    numbers = pd.DataFrame([_numbers(*one) for one in each])
    spec = ".2f" if scale > 1 else ".4g"
    text = pd.DataFrame([_texts(found, *one, spec=spec) for one in each])
    notes = [*_notes(found), *left_out(a), *left_out(b)]
    return Table(numbers, text, latex_tables.compared(text, differences, notes, f"+{spec}"), notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print two sweeps side by side, write that to files if asked to, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m analysis.compare", description=_ABOUT)
    parser.add_argument("a", type=given.path, metavar="A", help="folder of runs, e.g. outputs/first")
    parser.add_argument("b", type=given.path, metavar="B", help="folder of runs to compare to it")
    parser.add_argument("--where", action="append", type=given.word, default=[], metavar="KEY=VALUE", help=WHERE)
    parser.add_argument(
        "--value", type=given.word, default="accuracy", metavar="KEY", help="what is compared (default: accuracy)"
    )
    parser.add_argument("--csv", type=given.path, metavar="FILE", help="also write the numbers as CSV")
    parser.add_argument("--latex", type=given.path, metavar="FILE", help="also write the table as LaTeX, for \\input")
    options = parser.parse_args(arguments)
    return guarded(lambda: _make(options))


def _make(options: argparse.Namespace) -> int:
    a, b = (load([folder], options.where) for folder in (options.a, options.b))
    table = compared(a, b, options.value)
    if table.text.empty:
        show(["no experiment of A has a match in B", *table.footnotes], sys.stderr)
        return 2
    show([f"A: {options.a}", f"B: {options.b}", "", *table.lines()])
    if options.csv:
        write_csv(table.numbers, options.csv)
    if options.latex:
        options.latex.write_text(table.latex, encoding="utf-8")
    return 0


def _differences(values: Sequence[tuple[Values, Values]], *, is_share: bool) -> list[Difference]:
    """Return B - A of each pair; ``is_share``: of correct answers, in percent: the test set has a resolution."""
    step = resolved(side for pair in values for side in pair) if is_share else None
    return correct([difference(b, a, step) for a, b in values])


def _numbers(pair: Pair, values: tuple[Values, Values], found: Difference) -> dict[str, Any]:
    sides: dict[str, float] = {}
    for name, side in zip("ab", values, strict=True):
        figures = pd.Series(side, dtype=float)
        sides |= {name: figures.mean(), f"{name}_std": figures.std(ddof=1), f"{name}_n": len(side)}
    return {**pair.a.labels, **sides, **difference_numbers(found, "difference"), "keys": _keys(pair.differs)}


def _texts(
    joined: Joined, pair: Pair, values: tuple[Values, Values], found: Difference, *, spec: str
) -> dict[str, str]:
    """Return a row as text: labels, with both values where they differ, and what else tells the two apart."""
    labels = {name: _both(pair, name) for name in pair.a.shown}
    more = {key: told for key, told in pair.differs.items() if key not in joined.common}
    others = {"keys": _keys(more)} if more else {}
    sides = {name: _side(side, spec) for name, side in zip("AB", values, strict=True)}
    return {**labels, **others, **sides, "B - A (95 % interval)": difference_text(found, f"+{spec}")}


def _keys(differs: Mapping[str, tuple[str, str]]) -> str:
    return "; ".join(f"{key} {one} -> {other}" for key, (one, other) in differs.items())


def _both(pair: Pair, name: str) -> str:
    one, other = (cell_text(row.shown.get(name)) for row in (pair.a, pair.b))
    return one if one == other else f"{one} -> {other}"


def _side(values: Values, spec: str) -> str:
    figures = pd.Series(values, dtype=float)
    return f"{cell_text(figures.mean(), spec)} ± {cell_text(figures.std(ddof=1), spec)}"


def _notes(found: Joined) -> list[str]:
    """Return what tells the sweeps apart, and the experiments that are in one of them only."""
    common = [f"{key} ({one} -> {other})" for key, (one, other) in found.common.items()]
    is_same = bool(found.pairs) and not any(pair.differs for pair in found.pairs)
    told = ["A and B have the same experiments"] if is_same else []
    told += [f"A and B differ in {listed(common, 12)}"] if common else []
    for name, other, alone in (("A", "B", found.only_a), ("B", "A", found.only_b)):
        told += [f"in {name}, without one match in {other}: {row.name}" for row in alone]
    return told


if __name__ == "__main__":
    sys.exit(program(main))
