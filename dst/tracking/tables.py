"""The tables that wandb shows of a run, made from its record alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dst.records.read import read_compute, read_layers, read_networks

Table = tuple[list[str | int], list[Iterable[Any]]]
"""Names of columns, and rows; None where a row has no value."""

MOST_ROWS: Final = 10_000
"""Rows that wandb's tables show."""


def last_layers(folder: Path) -> Table:
    """Return the last counts of each layer."""
    latest = {row["layer"]: row for row in read_layers(folder)}
    movements = ("step", "dropped", "grown", "churn")
    return _table([{k: v for k, v in _with_density(row).items() if k not in movements} for row in latest.values()])


def layers_by_step(folder: Path) -> Table:
    """Return the counts of each layer after every update, or every n-th one if that is too much; always the last."""
    rows = read_layers(folder)
    steps = sorted({row["step"] for row in rows}, reverse=True)
    shown = set(steps[:: -(-len(rows) // MOST_ROWS) or 1])
    return _table([_with_density(row) for row in rows if row["step"] in shown])


def networks(folder: Path) -> Table:
    """Return the networks that the run has made on the way."""
    return _table(read_networks(folder))


def compute(folder: Path) -> Table:
    """Return the layers that were timed."""
    return _table(read_compute(folder))


TABLES: Final[Mapping[str, Callable[[Path], Table]]] = {
    "sparsity/layers": last_layers,
    "sparsity/layers_by_step": layers_by_step,
    "networks": networks,
    "compute": compute,
}
"""Names in wandb -> what makes the table."""


def _with_density(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a layer with its density beside its active weights."""
    first = {name: row[name] for name in ("step", "layer", "size", "active")}
    return {**first, "density": row["active"] / row["size"], **row}


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return rows as a table; the attempt that wrote a row is nothing to show."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name != "attempt"))
    return [*columns], [[row.get(name) for name in columns] for row in rows]
