"""The runs that tables and figures show: read from folders, and told apart as experiments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from analysis.selection import FIGURES as FIGURES
from analysis.selection import LABELS as LABELS
from analysis.selection import SCHEMA as SCHEMA
from analysis.selection import TARGET as TARGET
from analysis.selection import select
from analysis.sweeps import sweeps
from dst.records.catalog import catalog, newest, recorded
from dst.records.label import WRAPPERS
from dst.records.states import State

SEED: Final = "config.seed"
ACCURACY: Final = "test/accuracy"
METHOD: Final = "method"


class NoRunsError(ValueError):
    """There is no run where runs were looked for."""


def load(folders: Sequence[Path], where: Sequence[str] = ()) -> pd.DataFrame:
    """Return the catalog of all runs in some folders, each run once, in its newest attempt.

    ``where``: conditions ``key=value`` that the runs meet (see ``selection.select``, which raises ``SelectionError``).
    ``NoRunsError`` names the first of the folders that is none or holds no run.
    """
    frames = [_catalog(folder) for folder in folders]
    return select(newest(pd.concat(frames, ignore_index=True)), where)


def _catalog(folder: Path) -> pd.DataFrame:
    is_folder = folder.is_dir()
    frame = catalog(folder) if is_folder else pd.DataFrame()
    if frame.empty:
        what = "holds no run (no run.json in it or below)" if is_folder else "is no folder"
        raise NoRunsError(f"{folder} {what}: give the folder that runs were written to, e.g. outputs")
    return frame


def comparable(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the newest runs that can be read, in order of seed, and the columns that tell their experiments apart.

    These are ``LABELS``, ``TARGET`` and ``WRAPPERS`` that any of them has, and whatever else experiments of equal
    labels differ in: name in a table -> column. The runs have two more columns: ``experiment``, their schema and
    identity without the seed, as text; and ``sweep``, a number (see ``sweeps``). If runs of one experiment give its
    method several names, all of them have all these as their method.
    """
    runs = recorded(newest(frame))
    wanted = [SCHEMA, SEED, ACCURACY, *LABELS.values(), TARGET, *WRAPPERS, *FIGURES.values()]
    runs = runs.reindex(columns=[*dict.fromkeys([*runs.columns, *wanted])]).sort_values([SEED, "id"])
    runs["experiment"] = [*map(_experiment, runs[SCHEMA], runs["identity"])]
    runs["sweep"] = sweeps(runs)
    runs[METHOD] = runs.groupby("experiment")[METHOD].transform(_names)
    wrapping = {kind: kind for kind, usual in WRAPPERS.items() if (runs[kind] != usual).any()}
    target = {"target": TARGET} if runs[TARGET].notna().any() else {}
    others = {key.removeprefix("config."): key for key in _distinguishing(runs.drop_duplicates("experiment"))}
    return runs, {**LABELS, **target, **wrapping, **others}


def _experiment(schema: Any, identity: str) -> str:
    """Return what a run shares with those that differ from it in nothing but the seed."""
    shared = {key: value for key, value in json.loads(identity).items() if key != "seed" and value is not None}
    return f"{_text(schema)}\n{json.dumps(shared, sort_keys=True)}"


def _distinguishing(runs: pd.DataFrame) -> list[str]:
    """Return the keys by which experiments of equal labels differ: the schema, then others within one schema.

    ``runs``: one of each experiment. A key that is not in its identity has its default there.
    """
    identities = [json.loads(text) for text in runs["identity"]]
    keys = sorted({key for identity in identities for key in identity} - {"seed"})
    texts = pd.DataFrame({SCHEMA: runs[SCHEMA].map(_text)}, index=runs.index)
    for key in keys:
        texts[f"config.{key}"] = [json.dumps(identity.get(key), sort_keys=True) for identity in identities]
    alike = [*(runs[column].map(_text) for column in (*LABELS.values(), TARGET, *WRAPPERS)), texts[SCHEMA]]
    others = [key for key in texts.columns.drop(SCHEMA) if texts.groupby(alike)[key].nunique().max() > 1]
    return [*([SCHEMA] if texts[SCHEMA].nunique() > 1 else []), *others]


def _names(methods: pd.Series) -> str | None:
    """Return all names that runs of one experiment give their method; None if they give none."""
    return ", ".join(sorted(set(methods.dropna()))) or None


def is_done(runs: pd.DataFrame) -> pd.Series:
    """Return of each run whether it is done and has a test accuracy."""
    return (runs["state"] == State.DONE) & runs[ACCURACY].notna()


def _text(value: Any) -> str:
    return json.dumps(plain(value))


def plain(value: Any) -> Any:
    """Return a cell of a catalog, or None for every kind of missing value."""
    return None if pd.isna(value) else value
