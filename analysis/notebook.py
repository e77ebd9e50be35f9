"""What the notebooks of this folder share: the runs they show, and showing figures, tables, or why there is none."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analysis.figures import FIGURES
from analysis.runs import load

_WHERE: Final = "DST_OUTPUTS"


@dataclass(frozen=True)
class Said:
    """Lines to read in place of a figure or table, or below one; shown as they are, whatever signs are in them."""

    lines: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return "<br>".join(escape(line) for line in self.lines)


def outputs(variable: str = _WHERE, otherwise: str = "outputs") -> Path:
    """Return the folder of runs that an environment variable names, as seen from here or from a folder above."""
    wanted = Path(os.environ.get(variable) or otherwise).expanduser()
    above = (folder / wanted for folder in (Path.cwd(), *Path.cwd().parents))
    return next((folder for folder in above if folder.is_dir()), wanted)


def runs(having: Mapping[str, Any] | None = None, *, variable: str = _WHERE) -> pd.DataFrame:
    """Return the catalog of the runs in ``outputs()``; ``NoRunsError`` if there are none.

    ``having``: config key -> the value, or values, that runs have: ``{"data.name": "tabular"}``.
    """
    return only(load([outputs(variable)]), having or {})


def only(frame: pd.DataFrame, having: Mapping[str, Any]) -> pd.DataFrame:
    """Return the runs whose config has these values; a list means any of its values."""
    for key, value in having.items():
        wanted = value if isinstance(value, list | tuple | set) else [value]
        values = (
            frame[f"config.{key}"] if f"config.{key}" in frame else pd.Series(None, index=frame.index, dtype=object)
        )
        frame = frame[values.isin(wanted)]
    return frame


def states(frame: pd.DataFrame) -> Any:
    """Return how many runs each group has in each state."""
    return table(frame.groupby(["group", "state"]).size().rename("runs").to_frame(), "runs of this kind")


def show(name: str, frame: pd.DataFrame, theme: str = "light") -> Any:
    """Return a figure by its name in ``FIGURES``, or what runs would need to be in it."""
    figure = FIGURES[name](frame, theme=theme) if len(frame) else None
    return figure or Said((f"Nothing to show: this figure needs {FIGURES[name].needs}.",))


def table(frame: pd.DataFrame, what: str = "runs") -> Any:
    """Return a table to show, or that there is nothing to show in it."""
    return frame if len(frame) else Said((f"Nothing to show: there are no {what}.",))


def notes(lines: Iterable[str]) -> Said:
    """Return footnotes to show."""
    return Said(tuple(lines) or ("Nothing is missing.",))
