"""Tables from files: what is read, and that whatever could be meant in two ways is refused, naming place and remedy."""

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.data.dataset import DataError, NotHereError
from dst.data.table_file import read_table


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return a function that reads a table from this content."""
    path = tmp_path_factory.mktemp("tables") / "table.csv"

    def read(content, target="y", categorical=()):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path, target, categorical)

    return read


def rows(*cells, header="a,y"):
    return "\n".join([header, *cells]) + "\n"


FOUR = rows("1,p", "2,q", "3,p", "4,q")


@pytest.mark.parametrize(
    "content",
    [
        FOUR,
        FOUR.rstrip(),
        "\ufeff" + FOUR,
        FOUR.replace("\n", "\r\n"),
        FOUR.replace("\n", "\r"),
        "\n\n" + FOUR.replace("\n", "\n\n"),
        FOUR.replace(",", " , ").replace("\n", " \n "),
        FOUR.replace("1,p", '"1","p"'),
        FOUR.replace("\n", " \r\n"),
    ],
    ids=["plain", "no end", "bom", "crlf", "cr", "empty lines", "spaces", "quotes", "crlf and spaces"],
)
def test_the_same_table_written_in_other_ways_is_the_same(read, content):
    if content.endswith("\n "):
        content = content[:-1]
    table, classes = read(content)
    assert (table.number_names, table.category_names, classes) == (["a"], [], 2)
    assert table.numbers.tolist() == [[1], [2], [3], [4]]
    assert table.labels.tolist() == [0, 1, 0, 1]
    assert table.shape == (1,)


def test_columns_are_numbers_truths_and_categories(read):
    cells = ["1e3,True,x,07,u", ",false,,7,u", "-2.5,,z,, v", "NA,TRUE, x,7,v"]
    table, _ = read(rows(*cells, header="n,t,c,zip,y"), categorical=["zip", "c"])
    assert (table.number_names, table.category_names) == (["n", "t"], ["c", "zip"])
    assert np.array_equal(table.numbers.T, [[1000, math.nan, -2.5, math.nan], [1, 0, math.nan, 1]], equal_nan=True)
    assert table.categories.T.tolist() == [[0, -1, 1, 0], [0, 1, -1, 1]]  # 07 is not 7


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (["10", "9", "-1", "9.0", "10", "-1"], [2, 1, 0, 1, 2, 0]),
        (["True", "False", "True", "False"], [1, 0, 1, 0]),
        (["10", "9", "x", "9", "10", "x"], [0, 1, 2, 1, 0, 2]),
        (["b", " a", "a ", "b"], [1, 0, 0, 1]),
        (["1_1", "11", "1_2", "1_1", "11", "1_2"], [1, 0, 2, 1, 0, 2]),
    ],
    ids=["numbers by value", "truths", "numbers among texts are texts", "texts", "what only Python reads as numbers"],
)
def test_classes_are_sorted(read, targets, labels):
    table, classes = read(rows(*(f"{n},{target}" for n, target in enumerate(targets))))
    assert table.labels.tolist() == labels
    assert classes == max(labels) + 1


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(
        st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60)),
        min_size=4,
        max_size=12,
    ).filter(lambda found: any(value is not None for value in found)),
    texts=st.lists(st.text("ab,\"' \n", max_size=5), min_size=12, max_size=12),
)
def test_what_was_written_is_read_to_the_last_bit(read, numbers, texts):
    texts = [f"t{text}t" for text in texts[: len(numbers)]]
    frame = pd.DataFrame({"a": pd.Series(numbers, dtype=object), "c": texts, "y": [n % 2 for n in range(len(numbers))]})
    table, _ = read(frame.to_csv(index=False), categorical=["c"])
    expected = [math.nan if value is None else float(value) for value in numbers]
    assert np.array_equal(table.numbers[:, 0], expected, equal_nan=True)
    order = sorted(set(texts))
    assert table.categories[:, 0].tolist() == [order.index(text) for text in texts]


FAULTS = {
    "empty": ("", "the file is empty"),
    "only empty lines": ("\n\n", "the file is empty"),
    "only a mark of byte order": ("\ufeff", "the file is empty"),
    "a mark of byte order and empty lines": ("\ufeff\n\r\n", "the file is empty"),
    "no rows": ("a,y\n", "there is no row below the names of the columns"),
    "semicolons": ("a;y\n1,5;p\n", "its values are separated by ';': separate them by commas"),
    "tabs": ("a\ty\n1\tp\n", r"its values are separated by '.t'"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0", "this is no CSV file in UTF-8: byte 0 cannot be read"),
    "latin": ("a,y\né,p\n".encode("latin-1"), "this is no CSV file in UTF-8: byte 4 cannot be read"),
    "zeros": (b"a,y\n1\0,p\n", "this is no CSV file: it has bytes of zero"),
    "damaged parquet": (b"PAR1 and so on", "parquet"),
    "a short row": (rows("1,p", "2", "3,p"), "line 3 has 1 values, but the first line names 2"),
    "a long row": (rows("1,p", "2,q,", "3,p"), "line 3 has 3 values, but the first line names 2"),
    "an index": (rows("0,1,p", "1,2,q", header="a,y"), "line 2 has 3 values, but the first line names 2"),
    "an open quote": (rows('1,"p', "2,q", "3,p", "4,q"), "has 1|EOF|sound|values"),
    "a row of spaces": (rows("1,p", "  ", "2,q"), "line 3 has 1 values"),
    "two of a name": (rows("1,2,p", header="a,a,y"), "two columns have the name 'a'"),
    "two with spaces": (rows("1,2,p", header="a, a,y"), "two columns have the name 'a'"),
    "no name": (rows("0,1,p", header=",a,y"), "column 1 has no name: name it in the first line, or leave it out"),
    "no target": (rows("1,p", header="a,z"), "target=y: there is no such column: allowed: a, z"),
    "no names": (rows("1,2", header="3,4"), "the first line has numbers only, but it must name the columns"),
    "target only": ("y\np\nq\n", "there is no column but the target 'y'"),
    "one class": (rows("1,p", "2,p"), "target 'y' has one class only, p"),
    "a class of one row": (
        rows("1,p", "2,p", "3,q", "4,r"),
        r"target 'y': class 'q', 'r' has one row only \(line 4, line 5\)",
    ),
    "no class": (rows("1,p", "2,", "3,q", "4,NA"), r"target 'y' is missing in line 3, line 5: leave these rows out"),
    "partly numbers": (
        rows("1,p", "x,q", "3,p", "?,q"),
        r"column 'a' is partly numbers, partly text: 'x', '\?' \(line 3, line 5\); .*say categorical=\[a\]; cells of",
    ),
    "text": (rows("u,p", "v,q", "u,p", "v,q"), r"column 'a' is text: 'u', 'v', 'u', 'v' \(line 2, line 3, "),
    "truths and numbers": (rows("True,p", "1,q", "0,p", "0,q"), r"column 'a' is partly numbers, partly text: 'True'"),
    "dates": (rows("2020-01-01,p", "2020-01-02,q", "2020-01-01,p", "2020-01-02,q"), "column 'a' is text: '2020-01-01'"),
    "decimal commas": (rows('"1,5",p', '"2,5",q', '"1,5",p', '"2,5",q'), "column 'a' is text: '1,5'"),
    "infinite": (rows("1,p", "inf,q", "-Infinity,p", "2,q"), r"column 'a' has infinite numbers \(line 3, line 4\)"),
    "beyond float64": (rows("1,p", "1e400,q", "1,p", "2,q"), r"column 'a' has infinite numbers \(line 3\)"),
    "all missing": (rows(",p", "NA,q", " ,p", "NaN,q"), "column 'a' has no value in any row: leave it out of the file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place(read, fault):
    content, told = FAULTS[fault]
    with pytest.raises(DataError, match=f"path=.*table.csv: .*({told})"):
        read(content)


def test_lines_are_those_of_an_editor(read):
    content = 'a,y\n\n"1\n",p\n\nx,q\n1,p\n1,q\n'  # a value over two lines, and empty ones
    with pytest.raises(DataError, match=r"'x' \(line 6\)"):
        read(content)


def test_all_columns_that_need_it_are_told_at_once(read):
    content = rows("u,1,v,p", "v,2,w,q", "u,3,5,p", ",4,w,q", header="a,b,c,y")
    with pytest.raises(DataError, match=r"column 'a' is text.*column 'c' is partly.*say categorical=\[b,a,c\]"):
        read(content, categorical=["b"])


@pytest.mark.parametrize(
    ("categorical", "told"),
    [
        (["aa"], r"categorical=aa: there is no such column: did you mean 'a'\? allowed: a, y"),
        (["y"], "categorical has the target 'y'"),
        (["a", "a"], "categorical names a column twice: 'a'"),
    ],
)
def test_categories_are_columns(read, categorical, told):
    with pytest.raises(DataError, match=told):
        read(FOUR, categorical=categorical)
    with pytest.raises(DataError, match="column 'a' has no value in any row"):
        read(rows(",p", ",q", ",p", ",q"), categorical=["a"])


def test_without_a_target_the_columns_are_told(read):
    with pytest.raises(DataError, match="target=None: which column holds the classes\\? One of 'a', 'y'"):
        read(FOUR, target=None)


def test_what_is_no_file_is_told(tmp_path):
    with pytest.raises(
        NotHereError, match=r"path=.*brest_cancer: there is no such file .* did you mean 'breast_cancer'"
    ):
        read_table(tmp_path.relative_to(tmp_path) / "brest_cancer", "y", ())
    with pytest.raises(DataError, match="this is a folder or a device"):
        read_table(tmp_path, "y", ())
    (tmp_path / "file").touch()
    with pytest.raises(NotHereError, match="there is no such file"):
        read_table(tmp_path / "file" / "below", "y", ())
    with pytest.raises(DataError, match=r"path=~no_such_user/a\.csv: there is no such user's folder"):
        read_table(Path("~no_such_user/a.csv"), "y", ())


# -- parquet: the package by which pandas reads it need not be here, so a frame plays its part -------------------------


@pytest.fixture
def frame(monkeypatch):
    """Return a function that reads a frame as if it came from a parquet file."""

    def read(frame, path, **options):
        monkeypatch.setattr(pd, "read_parquet", lambda file: frame.copy() if isinstance(file, io.BytesIO) else None)
        path.write_bytes(b"PAR1")
        return read_table(path, "y", options.get("categorical", ()))

    return read


def test_a_frame_keeps_its_types(frame, tmp_path):
    content = pd.DataFrame(
        {
            "i": pd.array([1, None, 3, 4], dtype="Int64"),
            "b": pd.array([True, None, False, True], dtype="boolean"),
            "f": np.array([0.5, np.nan, 1, 2], dtype=np.float32),
            "c": pd.Categorical(["u", None, "v", "u"]),
            "y": [True, False, True, False],
        }
    )
    table, classes = frame(content, tmp_path / "table", categorical=["c"])
    nan = math.nan
    assert np.array_equal(table.numbers.T, [[1, nan, 3, 4], [1, nan, 0, 1], [0.5, nan, 1, 2]], equal_nan=True)
    assert table.categories.T.tolist() == [[0, -1, 1, 0]]
    assert (table.labels.tolist(), classes) == ([1, 0, 1, 0], 2)


def test_the_rows_of_a_frame_are_counted_and_a_named_index_is_a_column(frame, tmp_path):
    content = pd.DataFrame({"y": list("pqpq")}, index=pd.Index(["u", 1, 2, 3], name="a", dtype=object))
    with pytest.raises(DataError, match=r"column 'a' is partly numbers, partly text: 'u' \(row 1\)"):
        frame(content, tmp_path / "table")


def test_without_the_package_it_is_named(monkeypatch, tmp_path):
    def absent(file):
        raise ImportError("no engine")

    monkeypatch.setattr(pd, "read_parquet", absent)
    (tmp_path / "t").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="pandas reads parquet by pyarrow, which is not here: pip install pyarrow"):
        read_table(tmp_path / "t", "y", ())
