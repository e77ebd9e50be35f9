"""The tables that come with scikit-learn: all numbers, with a class in the last column."""

import importlib.util
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from dst.data.dataset import DataError
from dst.data.table import Table
from dst.files import sha256


@dataclass(frozen=True)
class _File:
    name: str
    skipped: int
    """Lines above the first row; what they say is in the rows as well."""


BUNDLED: Final = {
    "breast_cancer": _File("breast_cancer.csv", 1),
    "wine": _File("wine_data.csv", 1),
    "digits": _File("digits.csv.gz", 0),
}


def read_bundled(name: str) -> Table:
    """Return a table by its name; its digest is that of its numbers. ``DataError`` if it cannot be read."""
    found = importlib.util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise DataError(f"path={name}: this table comes with scikit-learn, which is not here; pip install scikit-learn")
    # Read from the file, since importing scikit-learn takes longer than training on it.
    file = BUNDLED[name]
    path = Path(found.submodule_search_locations[0], "datasets", "data", file.name)
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=file.skipped, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"path={name}: scikit-learn's {path} cannot be read: {error}") from error
    return Table(
        numbers=rows[:, :-1],
        categories=np.empty((len(rows), 0), dtype=np.int64),
        labels=torch.from_numpy(rows[:, -1].astype(np.int64)),
        number_names=[f"feature {number}" for number in range(1, rows.shape[1])],
        category_names=[],
        source=f"path={name}",
        digest=sha256(f"{list(rows.shape)}".encode() + rows.astype("<f8").tobytes()),
    )
