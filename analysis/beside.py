"""Published figures beside one's own, where data, model, method, density and budget agree; elsewhere nothing."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.contrasts import accuracies
from analysis.published import PUBLISHED, difference
from analysis.rows import Row
from dst.records.label import WRAPPERS


def published_beside(rows: Sequence[Row]) -> dict[int, pd.DataFrame]:
    """Return, by their place, the rows with published accuracies: these, each with one's own mean less it.

    Empty outside a checkout of the repository, which has the file of what is published.
    """
    if not PUBLISHED.is_file():
        return {}
    own = {place: own for place, row in enumerate(rows) if (own := _own(row)) is not None}
    found = {place: difference(one) for place, one in own.items()}
    return {place: figures for place, figures in found.items() if len(figures)}


def published_lines(rows: Sequence[Row], found: dict[int, pd.DataFrame]) -> list[str]:
    """Return what is published as lines to read below a table."""
    lines = [
        f"  {rows[place].name}: {line['difference']:+.2f} to {line['value']:.2f} ({line['source']})"
        for place, figures in found.items()
        for line in figures.to_dict("records")
    ]
    title = "difference to published accuracies of equal data, model, density and budget, in points:"
    return [title, *lines] if lines else []


def published_columns(size: int, found: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Return the columns of a CSV about what is published: of several figures the first; no column if there is none."""
    if not found:
        return pd.DataFrame(index=range(size))
    first = {place: figures.iloc[0] for place, figures in found.items()}
    lines = [
        {"published": one["value"], "to_published": one["difference"], "published_by": one["source"]}
        if (one := first.get(place)) is not None
        else {}
        for place in range(size)
    ]
    return pd.DataFrame(lines, columns=["published", "to_published", "published_by"])


def _own(row: Row) -> dict[str, Any] | None:
    """Return an experiment as it is looked up; None if it has no figure, or is no plain training of a whole budget."""
    values, run = accuracies(row), row.runs.iloc[0]
    epochs, times, steps = (run.get(f"config.schedule.{key}") for key in ("epochs", "multiplier", "max_steps"))
    is_plain = all(run[kind] == usual for kind, usual in WRAPPERS.items()) and pd.isna(steps)
    if not (values and is_plain and pd.notna(epochs) and pd.notna(times)):
        return None
    labels = {name: row.labels[name] for name in ("method", "data", "model", "density")}
    return {**labels, "budget": epochs * times, "accuracy": sum(values.values()) / len(values)}
