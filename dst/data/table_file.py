"""Reads a table from a CSV or parquet file, strictly: whatever could be meant in two ways is an error.

The first line of a CSV names the columns. Missing are empty cells and those in ``MISSING``; spaces around a value
do not count. The columns other than those of categories and the target hold numbers, or true and false: 1 and 0.
"""

import csv
import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from dst.data.bounds import memory
from dst.data.bundled import BUNDLED
from dst.data.dataset import DataError, NotHereError
from dst.data.table import Table
from dst.files import sha256, size
from dst.options import suggest

if TYPE_CHECKING:
    import pandas as pd

MISSING: Final = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>")
"""What stands for a missing value in a file."""

_SHARE: Final = 4
"""Text and columns of a table take some times as much memory as its file has bytes."""

_SHOWN: Final = 5  # as many columns, classes and lines a message names


def read_bytes(path: Path) -> bytes:
    """Return the content of the file of a table; ``NotHereError`` if there is none, ``DataError`` if it is unreadable.

    That of a file which cannot be read has the system's error as its cause. ``path``: may begin with ``~``.
    """
    try:
        file = path.expanduser()
        if file.exists() and not file.is_file():
            raise DataError(f"path={path}: this is a folder or a device; give a CSV or parquet file")
        return _read(file, path)
    except RuntimeError as error:
        told = f"path={path}: there is no such user's folder"
        raise DataError(f"{told}; write ./{path} for a file of this name") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        told = f"path={path}: there is no such file ({file.absolute()}), nor a table of that name"
        raise NotHereError(f"{told}: {suggest(str(path), BUNDLED)}") from error
    except OSError as error:
        raise DataError(f"path={path}: cannot read it: {error.strerror}") from error


def _read(file: Path, path: Path) -> bytes:
    most = memory() // _SHARE
    with file.open("rb") as opened:
        if (found := os.fstat(opened.fileno()).st_size) > most:
            raise DataError(
                f"path={path}: it has {size(found)}, and a table that is read whole may have {size(most)} here, a "
                f"{_SHARE}th of the memory: give fewer rows or columns, or a machine with more memory"
            )
        return opened.read()


def read_table(path: Path, target: str | None, categorical: Sequence[str]) -> tuple[Table, int]:
    """Return the table in a file, and its number of classes; classes are sorted, numbers by value.

    ``target``: the column of classes; ``categorical``: those of categories, also if they look like numbers.
    ``DataError`` that names all columns with values that fit neither, and where the first of them are.
    """
    content = read_bytes(path)
    try:
        frame = _parquet(content) if content[:4] == b"PAR1" else _csv(content, {*categorical, *filter(None, [target])})
        names = frame.names
        _check_columns(names, target, categorical)
        labels, classes = _classes(frame, names.index(str(target)), str(target))
        features = [number for number, name in enumerate(names) if name != target]
        problems: list[str] = []
        strange: list[str] = []
        numbers = [_numbers(frame, at, problems, strange) for at in features if names[at] not in categorical]
        categories = [_categories(frame, at, problems) for at in features if names[at] in categorical]
        if strange:
            told = ",".join([*categorical, *strange])
            problems.append(
                f"if these are categories, say categorical=[{told}]; cells of missing numbers are left empty"
            )
        if problems:
            raise DataError("; ".join(problems))
    except DataError as error:
        raise DataError(f"path={path}: {error}") from error.__cause__
    table = Table(
        numbers=np.column_stack(numbers) if numbers else np.empty((len(labels), 0)),
        categories=np.column_stack(categories) if categories else np.empty((len(labels), 0), np.int64),
        labels=torch.from_numpy(labels),
        number_names=[names[at] for at in features if names[at] not in categorical],
        category_names=[names[at] for at in features if names[at] in categorical],
        source=f"path={path}",
        digest=sha256(content),
    )
    return table, classes


# ---------------------------------------------------------------------------------------------------------------------
# Files


@dataclass(frozen=True, eq=False)
class _Frame:
    """Columns by position, their names, and what the row of an index is called in messages."""

    columns: "pd.DataFrame"
    names: list[str]
    row: Callable[[int], str]

    def rows(self, chosen: np.ndarray) -> str:
        """Return the first of the rows that are chosen (bool [N]), for a message."""
        found = np.flatnonzero(chosen)
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{', '.join(self.row(int(row)) for row in found[:_SHOWN])}{more}"


def _parquet(content: bytes) -> _Frame:
    import pandas as pd

    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError as error:
        raise DataError(
            "pandas reads parquet by pyarrow, which is not here: pip install pyarrow, or give a CSV"
        ) from error
    except Exception as error:  # whatever the engine raises
        raise DataError(f"this is no sound parquet file: {error}") from error
    if any(name is not None for name in frame.index.names):  # a column that was written as names of rows
        frame = frame.reset_index()
    names = [str(name).strip() for name in frame.columns]
    frame.columns = pd.RangeIndex(len(names))
    return _Frame(frame, names, lambda row: f"row {row + 1}")


def _csv(content: bytes, texts: set[str]) -> _Frame:
    import pandas as pd

    names, lines = _layout(content)
    try:
        with warnings.catch_warnings():  # pandas 3.1 rounds correctly by itself, and says so
            warnings.filterwarnings("ignore", "The 'float_precision' argument")
            frame = pd.read_csv(
                io.BytesIO(content),
                encoding="utf-8-sig",
                header=0,
                names=range(len(names)),
                dtype={at: str for at, name in enumerate(names) if name in texts},
                index_col=False,
                skipinitialspace=True,
                keep_default_na=False,
                na_values=list(MISSING),
                low_memory=False,  # else a column may have several types
                float_precision="round_trip",
            )
    except (ValueError, OverflowError) as error:
        raise DataError(f"this is no sound CSV file: {error}") from error
    if len(frame) != len(lines):
        raise DataError(
            f"this is no sound CSV file: it reads as {len(frame)} rows, or as {len(lines)}; look for quotes"
        )
    return _Frame(frame, names, lambda row: f"line {lines[row]}")


def _layout(content: bytes) -> tuple[list[str], list[int]]:
    """Return the names of the columns, and the line in which each row ends; DataError if it is no table."""
    if not content.strip():
        raise DataError("the file is empty")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"this is no CSV file in UTF-8: byte {error.start} cannot be read; write the table as CSV, in UTF-8"
        ) from error
    if b"\0" in content:
        raise DataError("this is no CSV file: it has bytes of zero; write the table as CSV, in UTF-8")
    names = [name.strip() for name in next(filter(None, _Rows(content)), [])]
    if not names:  # but a mark of byte order and empty lines
        raise DataError("the file is empty")
    if len(names) == 1 and (marks := [mark for mark in (";", "\t", "|") if mark in names[0]]):
        raise DataError(f"its values are separated by {marks[0]!r}: separate them by commas")
    widths = ((line, width) for line, width in _widths(content) if width)
    next(widths)
    lines = []
    for line, width in widths:
        if width != len(names):
            raise DataError(f"line {line} has {width} values, but the first line names {len(names)}")
        lines.append(line)
    if not lines:
        raise DataError("there is no row below the names of the columns")
    return names, lines


def _widths(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield the number of the line in which each row ends, and how many values the row has; 0 if it is empty."""
    if b'"' in content or b"\r" in content.replace(b"\r\n", b"\n"):
        rows = _Rows(content)
        yield from ((rows.line_num, len(row)) for row in rows)
    else:  # several times as fast
        for number, line in enumerate(content.split(b"\n"), start=1):
            yield number, line.count(b",") + 1 if line.rstrip(b"\r") else 0


class _Rows:
    """The rows of a CSV, as the csv module reads them; its errors name the line."""

    def __init__(self, content: bytes) -> None:
        text = io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")
        self._reader = csv.reader(text, skipinitialspace=True)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        try:
            return next(self._reader)
        except csv.Error as error:
            raise DataError(f"line {self.line_num}: {error}") from error

    @property
    def line_num(self) -> int:
        """The number of lines that were read so far."""
        return self._reader.line_num


# ---------------------------------------------------------------------------------------------------------------------
# Columns


def _check_columns(names: list[str], target: str | None, categorical: Sequence[str]) -> None:
    unnamed = [str(at) for at, name in enumerate(names, start=1) if not name]
    if unnamed:
        raise DataError(
            f"column {', '.join(unnamed)} has no name: name it in the first line, or leave it out if it only numbers "
            "the rows (pandas writes none with index=False)"
        )
    _refuse_twice(names, "two columns have the name")
    _refuse_twice(categorical, "categorical names a column twice:")
    if target is None:
        raise DataError(f"target=None: which column holds the classes? One of {_listed(names)}")
    for option, name in [("target", target), *(("categorical", name) for name in categorical)]:
        if name not in names:
            bare = all(_decimal(name) is not None for name in names)
            hint = "; the first line has numbers only, but it must name the columns" if bare else ""
            raise DataError(f"{option}={name}: there is no such column: {suggest(name, names)}{hint}")
    if target in categorical:
        raise DataError(f"categorical has the target '{target}': leave it out there")
    if len(names) == 1:
        raise DataError(f"there is no column but the target '{target}', so nothing to learn from")


def _refuse_twice(names: Sequence[str], told: str) -> None:
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise DataError(f"{told} {_listed(twice)}")


def _text(column: "pd.Series[str]") -> tuple["pd.Series[str]", np.ndarray]:
    """Return the values that are there as texts without spaces around, and which are there (bool [N])."""
    there = column.notna().to_numpy(dtype=bool).copy()
    values = column[there].astype(str).str.strip()
    is_value = ~values.isin(MISSING).to_numpy(dtype=bool)
    there[there] = is_value
    return values[is_value], there


def _numbers(frame: _Frame, at: int, problems: list[str], strange: list[str]) -> np.ndarray:
    """Return a column as float64 [N], missing ones as NaN.

    What is wrong with it goes to the problems, and its name to ``strange`` if it holds anything but numbers.
    """
    import pandas as pd

    column, name = frame.columns[at], frame.names[at]
    values = np.full(len(column), np.nan)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        values = column.to_numpy(dtype=np.float64, na_value=np.nan)
        there = ~np.isnan(values)
    else:
        texts, there = _text(column)
        truth = texts.str.lower().map({"true": 1.0, "false": 0.0})
        found = (truth if truth.notna().all() else pd.to_numeric(texts, errors="coerce")).to_numpy(dtype=np.float64)
        values[there] = found
        is_text = np.zeros(len(column), dtype=bool)
        is_text[there] = np.isnan(found)
        if is_text.any():
            kind = "text" if is_text.sum() == there.sum() else "partly numbers, partly text"
            first = ", ".join(repr(text) for text in texts[is_text[there]].head(_SHOWN))
            problems.append(f"column '{name}' is {kind}: {first} ({frame.rows(is_text)})")
            strange.append(name)
            return values
    if not there.any():
        problems.append(f"column '{name}' has no value in any row: leave it out of the file")
    infinite = np.isinf(values)
    if infinite.any():
        problems.append(f"column '{name}' has infinite numbers ({frame.rows(infinite)})")
    return values


def _categories(frame: _Frame, at: int, problems: list[str]) -> np.ndarray:
    """Return a column as int64 [N]: the number of each category in their sorted order, -1 for missing ones."""
    texts, there = _text(frame.columns[at])
    codes = np.full(len(there), -1, dtype=np.int64)
    if not there.any():
        problems.append(f"column '{frame.names[at]}' has no value in any row: leave it out of the file")
        return codes
    _, codes[there] = np.unique(texts.to_numpy(dtype=object).astype(str), return_inverse=True)
    return codes


def _classes(frame: _Frame, at: int, target: str) -> tuple[np.ndarray, int]:
    """Return the labels (int64 [N]) and the number of classes; equal numbers are one class however they are written."""
    texts, there = _text(frame.columns[at])
    if not there.all():
        raise DataError(
            f"target '{target}' is missing in {frame.rows(~there)}: leave these rows out, or give their class"
        )
    found, where = np.unique(texts.to_numpy(dtype=object).astype(str), return_inverse=True)
    numbers = [_decimal(text) for text in found]
    keys: Sequence[object] = [str(text) for text in found] if None in numbers else numbers
    names = sorted(set(keys))  # type: ignore[type-var]
    place = {key: number for number, key in enumerate(names)}
    labels = np.array([place[key] for key in keys], dtype=np.int64)[where]
    counts = np.bincount(labels)
    if len(names) < 2:
        raise DataError(f"target '{target}' has one class only, {names[0]}: there is nothing to tell apart")
    if (single := np.flatnonzero(counts == 1)).size:
        told = _listed([str(names[number]) for number in single])
        rows = frame.rows(np.isin(labels, single))
        raise DataError(
            f"target '{target}': class {told} has one row only ({rows}), but each of the {len(names)} classes must be "
            "in the training and in the test set: give it more rows or leave it out; is this column really a class?"
        )
    return labels, len(names)


def _decimal(text: str) -> Decimal | None:
    """Return the finite number that a text is, exactly; None if it is none."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and "_" not in text else None  # Python's 1_1 is 11, but a file's is a name


def _listed(names: Iterable[str]) -> str:
    def some() -> Iterator[str]:
        for number, name in enumerate(names):
            if number == 4 * _SHOWN:
                yield "..."
                return
            yield f"'{name}'"

    return ", ".join(some())
