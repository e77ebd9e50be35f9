"""Figures that papers and their READMEs have published, from ``experiments/published.csv``.

They are shown beside figures of one's own only where both are of the same experiment: see ``difference``.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pandas as pd

PUBLISHED: Final = Path(__file__).resolve().parents[1] / "experiments" / "published.csv"
"""Where published figures are: in a checkout of the repository, in no package."""

KINDS: Final = ("readme", "paper", "third_party")
"""Who says so: the repository of the code, the paper, or somebody else who quotes it."""

METRICS: Final = {
    "accuracy": (0.0, 100.0),
    "rs": (0.0, 1.0),
    "flops_train_ratio": (0.0, math.inf),
    "flops_test_ratio": (0.0, math.inf),
    "flops_train": (0.0, math.inf),
    "flops_test": (0.0, math.inf),
}
"""What is published -> what it lies between: accuracy in percent, FLOPs also as shares of those of dense training."""

COLUMNS: Final = ("method", "dataset", "model", "density", "budget", "metric", "value", "std", "source", "kind")
_SAME: Final = ("method", "dataset", "model", "density", "budget", "metric")
_NUMBERS: Final = ("density", "budget", "value", "std")
_METHOD: Final = re.compile(r"[a-z0-9_]+( [a-z0-9_.]+=[a-z0-9_.]+)*")
_NAME: Final = re.compile(r"[a-z0-9_]+")


class PublishedError(ValueError):
    """The file of published figures is not there, or a line of it is wrong."""


def published() -> pd.DataFrame:
    """Return all published figures, a row each, in the order of the file.

    Columns: ``method`` as tables here name it, or as its source does where it is none of those; ``dataset`` and
    ``model`` as here; ``density``, 1 if dense; ``budget`` in epochs, missing if its source does not tell; ``metric``,
    of ``METRICS``; ``value`` and ``std``, missing if not published; ``source``; ``kind``, of ``KINDS``.
    """
    return _read(PUBLISHED).copy()


def read_published(file: Path) -> pd.DataFrame:
    """Return the figures in a file like ``PUBLISHED``; ``PublishedError`` names each wrong line and what is allowed."""
    try:
        lines = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8")
    except FileNotFoundError:
        raise PublishedError(f"{file} does not exist: published figures are in a checkout of the repository") from None
    except (OSError, ValueError) as error:
        raise PublishedError(f"{file} cannot be read: {error}") from error
    if tuple(lines.columns) != COLUMNS:
        raise PublishedError(f"{file}: columns are {', '.join(lines.columns)}; they must be {', '.join(COLUMNS)}")
    problems = [
        f"{file}, line {number}: {problem}"
        for number, line in enumerate(lines.to_dict("records"), start=2)
        for problem in _problems({str(name): text for name, text in line.items()})
    ]
    twice = lines[lines.duplicated([*_SAME, "source"])]
    problems += [f"{file}, line {number + 2}: says again what a line above says" for number in twice.index]
    if problems:
        raise PublishedError("\n".join(problems))
    return lines.assign(**{name: pd.to_numeric(lines[name]) for name in _NUMBERS})


def difference(own: Mapping[str, Any], metric: str = "accuracy") -> pd.DataFrame:
    """Return the published figures of one's own experiment, with ``difference``: one's own value less the published.

    ``own``: ``method``, ``data``, ``model``, ``density`` (None if dense) and ``budget`` in epochs, and the value by the
    metric's name. Empty unless all of them agree; a source that tells no budget agrees with nothing.
    """
    if metric not in METRICS:
        raise PublishedError(f"metric {metric!r} is not published; allowed: {', '.join(METRICS)}")
    figures = published()
    density = 1.0 if own["density"] is None or math.isnan(own["density"]) else own["density"]
    same: pd.DataFrame = figures[
        (figures["metric"] == metric)
        & (figures["method"] == own["method"])
        & (figures["dataset"] == own["data"])
        & (figures["model"] == own["model"])
        & figures["density"].map(lambda other: math.isclose(other, density, rel_tol=1e-9))
        & (figures["budget"] == own["budget"])
    ]
    return same.assign(difference=own[metric] - same["value"])


@cache
def _read(file: Path) -> pd.DataFrame:
    return read_published(file)


def _problems(line: Mapping[str, str]) -> list[str]:
    low, high = METRICS.get(line["metric"], (-math.inf, math.inf))
    checks: tuple[tuple[str, bool, str], ...] = (
        ("method", bool(_METHOD.fullmatch(line["method"])), "a label, or a label with what was changed in it"),
        *((name, bool(_NAME.fullmatch(line[name])), "a name as this program has it") for name in ("dataset", "model")),
        ("density", _is(line["density"], lambda value: 0 < value <= 1), "a number in (0, 1]"),
        ("budget", not line["budget"] or _is(line["budget"], lambda value: value > 0), "epochs above 0, or nothing"),
        ("metric", line["metric"] in METRICS, f"one of {', '.join(METRICS)}"),
        ("value", _is(line["value"], lambda value: low <= value <= high), f"a number in [{low:g}, {high:g}]"),
        ("std", not line["std"] or _is(line["std"], lambda value: value >= 0), "a number of at least 0, or nothing"),
        ("source", bool(line["source"].strip()), "where it is published"),
        ("kind", line["kind"] in KINDS, f"one of {', '.join(KINDS)}"),
    )
    return [f"{name}={line[name]!r} must be {allowed}" for name, holds, allowed in checks if not holds]


def _is(text: str, holds: Callable[[float], bool]) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and holds(value)
