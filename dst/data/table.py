"""Rows of a table, and the vectors that a network sees of them.

What encodes a row (medians, means, deviations, the known categories) is learned from the training rows alone, without
those to validate or test on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from dst.data.dataset import DataError, Dataset, Shape, Vectors
from dst.data.splits import stratified, train_val_split
from dst.seeding import derive_seed

_TEST_FRACTION: Final = 0.2
_LARGEST: Final = 4 << 30  # bytes of all vectors together


@dataclass(frozen=True, eq=False)
class Table:
    """Labelled rows. ``digest``: the SHA-256 of what was read; ``source``: where, for messages.

    ``numbers``: float64 [N, P], a missing one is NaN; ``categories``: int64 [N, Q], numbered in sorted order, a missing
    one is -1; ``labels``: int64 [N]. ``number_names`` and ``category_names``: those of the columns.
    """

    numbers: np.ndarray
    categories: np.ndarray
    labels: Tensor
    number_names: Sequence[str]
    category_names: Sequence[str]
    source: str
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        """The number of columns."""
        return (len(self.number_names) + len(self.category_names),)

    def select(self, index: Tensor) -> "Table":
        """Return the rows at ``index`` (int64 [M]), in that order."""
        rows, about = index.numpy(), (self.number_names, self.category_names, self.source, self.digest)
        return Table(self.numbers[rows], self.categories[rows], self.labels[index], *about)


def parted(table: Table) -> tuple[Table, Table]:
    """Return the rows to train and validate on, and a stratified fifth to test on, which depends on no seed.

    ``DataError`` if there are too few rows for each class to be in both.
    """
    try:
        rest, test = stratified(table.labels, _TEST_FRACTION, derive_seed(0, "tabular", "test"))
    except DataError:
        rows, counts = len(table), torch.bincount(table.labels)
        raise DataError(
            f"{table.source}: a fifth of its {rows} rows, {round(_TEST_FRACTION * rows)}, is the test set, which "
            f"cannot have a row of each of the {len(counts)} classes and leave one of each (the smallest has "
            f"{int(counts.min())}): it needs more rows, or fewer classes"
        ) from None
    return table.select(rest), table.select(test)


def as_vectors(dataset: Dataset, val_fraction: float, split_seed: int) -> Dataset:
    """Return a data set of vectors for one of tables, encoded by its rows that are not split off to validate on.

    Numbers come first, in the order of the table: a missing one is the median, and each column has mean 0 and standard
    deviation 1 over the training rows; a column that is constant there is 0 everywhere. Then each column of categories
    has a feature of 0 or 1 for each category that the training rows have, sorted, and one more for missing and unknown
    ones. ``DataError`` if a class has too few rows for ``train_val_split``, or a column cannot be encoded.
    """
    train, test = dataset.train, dataset.test
    assert isinstance(train, Table)
    assert isinstance(test, Table)
    try:
        fitted_on, _ = train_val_split(train.labels, val_fraction, split_seed)
    except DataError as error:
        raise DataError(f"{train.source}: without its test set, {error}") from None
    encoding = _Encoding(train.select(fitted_on), rows=len(train) + len(test))
    return Dataset(dataset.name, encoding(train), encoding(test), dataset.classes, dataset.digest)


class _Encoding:
    """What turns rows into vectors, learned from ``train``; for ``rows`` rows in all."""

    def __init__(self, train: Table, *, rows: int) -> None:
        self._known = [np.unique(column[column >= 0]) for column in train.categories.T]
        self._check_size(train, rows)
        empty = np.isnan(train.numbers).all(axis=0)
        if empty.any():
            raise DataError(
                f"{train.source}: column {_names(train.number_names, empty)} has no number in any of the {len(train)} "
                "training rows, so that nothing can stand for the missing ones: leave the column out of the file"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            self._median = np.nanmedian(train.numbers, axis=0) if len(train.number_names) else np.empty(0)
            filled = self._filled(train.numbers)
            # By its ends, since the deviation of a constant that is no binary fraction need not be zero.
            constant = filled.min(axis=0) == filled.max(axis=0)
            self._mean = np.where(constant, filled[0], filled.mean(axis=0))
            deviation = np.where(constant, 0, filled.std(axis=0))
        self._check_finite(train, deviation[None])
        self._scale = np.where(deviation == 0, np.inf, deviation)

    def __call__(self, table: Table) -> Vectors:
        """Return the vectors of a table's rows."""
        widths = [len(known) + 1 for known in self._known]
        values = np.zeros((len(table), len(table.number_names) + sum(widths)), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = values[:, : len(table.number_names)]
            numbers[:] = (self._filled(table.numbers) - self._mean) / self._scale
        self._check_finite(table, numbers)
        first, row = len(table.number_names), np.arange(len(table))
        for column, known, width in zip(table.categories.T, self._known, widths, strict=True):
            place = np.searchsorted(known, column)
            is_known = np.append(known, -1)[place] == column  # beyond the last one nothing is
            values[row, first + np.where(is_known & (column >= 0), place, width - 1)] = 1
            first += width
        return Vectors(torch.from_numpy(values), table.labels)

    def _filled(self, numbers: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(numbers), self._median, numbers)

    def _check_size(self, table: Table, rows: int) -> None:
        widths = [len(known) + 1 for known in self._known]
        features = len(table.number_names) + sum(widths)
        if 4 * rows * features > _LARGEST:
            widest = table.category_names[int(np.argmax(widths))] if widths else ""
            most = f"; column '{widest}' alone has {max(widths)}, is it a number or a name of rows?" if widths else ""
            raise DataError(
                f"{table.source}: {rows} rows of {features} features take more than {_LARGEST >> 30} GiB{most}"
            )

    def _check_finite(self, table: Table, values: np.ndarray) -> None:
        beyond = ~np.isfinite(values).all(axis=0)
        if beyond.any():
            raise DataError(
                f"{table.source}: the numbers of column {_names(table.number_names, beyond)} are too large, or too far "
                "from those of the training rows, to be standardised in 32 bits: give them in another unit"
            )


def _names(names: Sequence[str], chosen: np.ndarray) -> str:
    return ", ".join(repr(name) for name, is_chosen in zip(names, chosen, strict=True) if is_chosen)
