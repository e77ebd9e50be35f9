"""Which rows of a table are told apart from the best one by their seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.rows import Row
from analysis.runs import ACCURACY
from analysis.statistics import Difference, correct, difference, resolution
from analysis.text import cell_text

Values = Mapping[int, float]
"""An experiment as seed -> accuracy in percent."""


@dataclass(frozen=True)
class Contrast:
    """The difference of an experiment to the best of its block, both by their place in the table."""

    row: int
    best: int
    difference: Difference


def accuracies(row: Row) -> dict[int, float]:
    """Return the test accuracy of each finished seed of an experiment, in percent."""
    return row.by_seed(ACCURACY, 100)


def blocks(rows: Sequence[Row]) -> list[list[int]]:
    """Return the places of rows that compete: of equal data, model, density and training."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        settings = [name for name in row.labels if name.startswith(("data.", "model.", "schedule."))]
        found.setdefault(_texts(row.labels, ("data", "model", "density", "target", *settings)), []).append(place)
    return [*found.values()]


def to_best(values: Sequence[Values], blocks: Sequence[Sequence[int]]) -> list[Contrast]:
    """Compare the experiments of each block to the best of it by its mean; p-values are corrected over all of them."""
    step = resolved(values)
    pairs = []
    for block in blocks:
        there = [place for place in block if values[place]]
        best = max(there, key=lambda place: _mean(values[place]), default=None)
        pairs += [(place, best) for place in there if place != best and best is not None]
    found = [difference(values[place], values[best], step) for place, best in pairs]
    return [Contrast(*pair, one) for pair, one in zip(pairs, correct(found), strict=True)]


def resolved(values: Iterable[Values]) -> float | None:
    """Return what one sample of the test set changes an accuracy by, in points; None if accuracies do not tell."""
    step = resolution([value / 100 for one in values for value in one.values()])
    return None if step is None else 100 * float(step)


def lines(rows: Sequence[Row], contrasts: Sequence[Contrast]) -> list[str]:
    """Return what ``to_best`` found of rows as lines to read below their table."""
    return told([(row.name, cell_text(row.shown["method"]), len(accuracies(row))) for row in rows], contrasts)


def told(places: Sequence[tuple[str, str, int]], contrasts: Sequence[Contrast]) -> list[str]:
    """Return what ``to_best`` found as lines; ``places``: the whole name, the short one and n of each place."""
    if not contrasts:
        return []
    tested = sum(one.difference.p is not None for one in contrasts)
    found = [
        "difference to the best, in points" + f", with 95 % interval (p by Holm over {tested})" * bool(tested) + ":"
    ]
    best = None
    for one in contrasts:
        if one.best != best:
            best = one.best
            found.append(f"  best: {places[best][0]} (n = {places[best][2]})")
        found.append(f"    {places[one.row][1]}: {difference_text(one.difference)}")
    return found


def difference_text(found: Difference, spec: str = "+.2f") -> str:
    """Return a difference as one line: estimate, interval, p-value, n and what is to be said about it."""
    if found.mean is None:
        return found.note
    mean = format(found.mean, spec)
    if found.low is None or found.high is None or found.p is None:
        n = "" if found.note.startswith("n = ") else f"n = {_n(found)}; "
        return f"{mean}, {n}{found.note}"
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    note = f"; {found.note}" if found.note else ""
    return f"{mean} [{found.low:{spec}}, {found.high:{spec}}], {p}, n = {_n(found)}{note}"


def difference_numbers(found: Difference | None, name: str) -> dict[str, Any]:
    """Return a difference as columns of a CSV that begin with its name; all are empty if there is none."""
    one = found or Difference(0, None)
    values: dict[str, float | str | None] = {"": one.mean, "_low": one.low, "_high": one.high, "_p": one.p}
    values |= {"_n": _n(found) if found else None, "_note": one.note}
    return {f"{name}{end}": value for end, value in values.items()}


def _n(found: Difference) -> str:
    if found.paired:
        return f"{found.n} pairs"
    return f"{found.sizes[0]} and {found.sizes[1]}" + " (Welch)" * (found.p is not None)


def _mean(values: Values) -> float:
    return sum(values.values()) / len(values)


def _texts(labels: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell_text(labels[name]) for name in names if name in labels)
