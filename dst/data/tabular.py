"""Tables of numbers and categories: three that come with scikit-learn, and any CSV or parquet file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from dst.data.bundled import BUNDLED, read_bundled
from dst.data.dataset import DataError
from dst.data.table import Table, parted
from dst.data.table_file import read_table
from dst.options import ASIDE, PATH, Each, Text, checked

TablePath = Annotated[
    str,
    ASIDE,
    PATH,
    Text(r"(?s).*\S.*", "a name or a file"),
    "a table of scikit-learn (breast_cancer, wine, digits), or a CSV whose first line names columns, or parquet",
]
Target = Annotated[str, Text(r"(?s).*\S.*", "the name of a column"), "the column of classes; of a file only"]
Categorical = Annotated[
    list[str],
    Each(least=1),
    "columns of categories, also of those written as numbers; all others are numbers, or true and false",
]


@checked
def tabular(
    root: Path,
    download: bool,
    *,
    path: TablePath = "breast_cancer",
    target: Target | None = None,
    categorical: Categorical | None = None,
) -> tuple[Table, Table, int]:
    """Read a table, with a fixed stratified fifth of its rows as test split; ``root`` and ``download`` are not needed.

    What is learned from the training rows is not here, but in ``dst.data.table``. ``DataError`` if the file is not what
    it should be.
    """
    if path in BUNDLED:
        _refuse_ignored(path, target, categorical)
        table = read_bundled(path)
        classes = int(table.labels.max()) + 1
    else:
        table, classes = read_table(Path(path), target, categorical or ())
    return *parted(table), classes


def _refuse_ignored(path: str, target: str | None, categorical: Sequence[str] | None) -> None:
    for option, value in (("target", target), ("categorical", categorical)):
        if value is not None:
            raise DataError(
                f"{option}={value} would be ignored: path={path} is a table of scikit-learn, whose classes and numbers "
                f"are known. Leave it out, or write ./{path} for a file of this name"
            )
