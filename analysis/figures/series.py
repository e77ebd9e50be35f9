"""What is drawn as one line: runs of one method in one setting, on one data set and model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd

from analysis.names import look, parted
from analysis.rows import TableError
from analysis.runs import METHOD, SEED, comparable, plain
from analysis.selection import LABELS
from analysis.text import cell_text
from dst.records.label import WRAPPERS

DENSITIES: Final = ("density", "target", "sparsity.reparametrize.threshold_decay")
"""Names of settings that make a network more or less dense: a line over densities goes along them."""

_MOST_LINES: Final = 6

Setting = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Series:
    """Runs that make one line. ``setting``: name and value of whatever lines of one method differ in."""

    panel: str
    method: str
    setting: Setting
    runs: pd.DataFrame

    @property
    def identity(self) -> tuple[str, str, Setting]:
        """What tells this line from all others of a figure."""
        return self.panel, self.method, self.setting

    @property
    def words(self) -> str:
        """The setting as text, e.g. ``density=0.05, multiplier=5``; empty if there is none."""
        return words(self.setting)


def words(setting: Setting) -> str:
    """Return a setting as text."""
    return ", ".join(f"{name}={cell_text(value)}" if name else str(value) for name, value in setting)


def shared(lines: Sequence[Series]) -> Setting:
    """Return what is the same in the settings of all lines that have one."""
    settings = [line.setting for line in lines if line.setting]
    return tuple(part for part in settings[0] if all(part in other for other in settings)) if settings else ()


def series_of(frame: pd.DataFrame, *, along: Sequence[str] = ()) -> list[Series]:
    """Return the lines of a figure: experiments that differ in nothing but the seed or in what is named by ``along``.

    They come in the order in which every legend has them. ``TableError`` if a seed of an experiment occurs twice.
    """
    runs, columns = comparable(frame)
    _check_seeds(runs)
    own = {name: key for name, key in columns.items() if name not in ("data", "model", "method", *along)}
    found: dict[tuple[str, str, Setting], list[Any]] = {}
    for index, row in runs.iterrows():
        method = plain(row[METHOD]) or "unknown"
        setting = _setting({name: plain(row[key]) for name, key in own.items()}, method, along)
        panel = f"{row[LABELS['data']]}, {row[LABELS['model']]}"
        found.setdefault((panel, _label(method), setting), []).append(index)
    lines = [Series(*key, runs.loc[indices]) for key, indices in found.items()]
    ranks = in_order(line.setting for line in lines)
    return sorted(lines, key=lambda line: (line.panel, look(line.method).place, ranks.index(line.setting)))


def experiments(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the runs of each experiment: they differ in nothing but the seed."""
    return [members for _, members in runs.groupby("experiment", sort=False)]


def _label(method: str) -> str:
    """Return the label of a method without what was changed in it; several names stay as they are."""
    return method if ", " in method else parted(method)[0]


def _setting(values: Mapping[str, Any], method: str, along: Sequence[str]) -> Setting:
    changes = "" if ", " in method else parted(method)[1]
    usual = {**WRAPPERS, "target": None, "density": None}
    parts = [("", changes)] if changes else []
    for name, value in values.items():
        is_wrapper = name in WRAPPERS
        told = _without_density(value) if is_wrapper and "density" in along and isinstance(value, str) else value
        if told is not None and told != usual.get(name):
            parts.append(("" if is_wrapper else short(name), told))
    return tuple(parts)


def _without_density(wrapper: str) -> str:
    """Return a procedure without the density it ends at: ``imp(density=0.1, rewind=init)`` -> ``imp(rewind=init)``."""
    return re.sub(r"\bdensity=[^,)]*(, )?", "", wrapper).replace("()", "").replace(", )", ")")


def short(name: str) -> str:
    """Return the name of a setting for a legend: ``schedule.multiplier`` -> ``multiplier``."""
    *above, last = name.removesuffix(".name").split(".")
    return last if last not in ("alpha", "beta") else ".".join([*above[-1:], last])


def _check_seeds(runs: pd.DataFrame) -> None:
    twice = runs[runs.duplicated(["experiment", SEED], keep=False)]
    if len(twice):
        folders = ", ".join(twice["folder"])
        raise TableError(f"one seed of one experiment twice, under different ids: {folders}. Leave one out")


def in_order(settings: Iterable[Setting]) -> list[Setting]:
    """Return settings without repetition: none first, then by their text, larger densities before smaller ones."""
    return sorted(set(settings), key=lambda setting: (len(setting), [_rank(*part) for part in setting]))


def _rank(name: str, value: Any) -> tuple[str, int, Any]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (name, 0, -value if name in DENSITIES else value) if is_number else (name, 1, str(value))


def split(lines: Sequence[Series]) -> list[Series]:
    """Return the lines with a panel for each density where one panel would have too many to be told apart.

    A line without a density, of a dense network, is in each of them.
    """
    found: dict[str, list[Series]] = {}
    for line in lines:
        found.setdefault(line.panel, []).append(line)
    return [one for mine in found.values() for one in (_by_density(mine) if len(mine) > _MOST_LINES else mine)]


def _by_density(lines: Sequence[Series]) -> list[Series]:
    densities = sorted({value for line in lines for name, value in line.setting if name == "density"}, reverse=True)
    if len(densities) < 2:
        return [*lines]
    return [
        replace(line, panel=f"{line.panel}, density={cell_text(density)}", setting=_without(line.setting, "density"))
        for density in densities
        for line in lines
        if dict(line.setting).get("density", density) == density
    ]


def _without(setting: Setting, name: str) -> Setting:
    return tuple(part for part in setting if part[0] != name)
