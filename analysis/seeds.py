"""One line a run: the values behind the means of a table."""

import pandas as pd

from analysis.rows import rows
from analysis.runs import FIGURES, SEED

_RUN: "tuple[str, ...]" = ("id", "group", "state")


def per_seed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each run that can be read, whatever its state: labels, seed, accuracies in percent, figures."""
    found = []
    for row in rows(frame):
        for _, run in row.runs.iterrows():
            figures = {name: run.get(column) for name, column in FIGURES.items()}
            accuracies = {name: _percent(run.get(f"{name}/accuracy")) for name in ("test", "val")}
            own = {name: run[name] for name in _RUN}
            found.append({**row.labels, "seed": run[SEED], **own, **_named(accuracies), **figures})
    return pd.DataFrame(found)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _named(accuracies: dict[str, float | None]) -> dict[str, float | None]:
    return {f"{name}_accuracy": value for name, value in accuracies.items()}
