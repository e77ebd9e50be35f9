"""Tables as vectors: exact numbers, learned from the training rows alone; scikit-learn's tables; their batches."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.data.augment import Augment
from dst.data.cache import load, table_digest
from dst.data.dataset import DataError, Dataset, Vectors
from dst.data.loader import loader
from dst.data.splits import train_val_split
from dst.data.table import Table, as_vectors, parted
from dst.data.tabular import tabular
from dst.options import OptionError


def table(numbers=(), categories=(), labels=None):
    """Return a table with these columns of numbers and categories; two classes by turns."""
    columns = [*numbers, *categories]
    labels = torch.tensor(labels if labels is not None else [n % 2 for n in range(len(columns[0]))])
    return Table(
        numbers=np.array(numbers, dtype=np.float64).T.reshape(len(labels), -1),
        categories=np.array(categories, dtype=np.int64).T.reshape(len(labels), -1),
        labels=labels,
        number_names=[f"n{at}" for at in range(len(numbers))],
        category_names=[f"c{at}" for at in range(len(categories))],
        source="path=t.csv",
        digest="0" * 64,
    )


def vectors(train, test=None, val_fraction=0.0):
    dataset = Dataset("tabular", train, train if test is None else test, 2, "0" * 64)
    return as_vectors(dataset, val_fraction, 0)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


def test_numbers_are_filled_by_the_median_and_standardised():
    train = table(numbers=[[1, 2, math.nan, 3, 6, 8]])  # the median of 1 2 3 6 8 is 3
    found = vectors(train, table(numbers=[[math.nan, 103, 3, 3]]))
    filled = [1, 2, 3, 3, 6, 8]
    mean, std = np.mean(filled), np.std(filled)
    assert found.train.values[:, 0].tolist() == [np.float32((x - mean) / std) for x in filled]
    assert found.test.values[:, 0].tolist() == [np.float32((x - mean) / std) for x in (3, 103, 3, 3)]
    assert found.train.values.dtype == torch.float32
    assert found.shape == (1,)


@pytest.mark.parametrize("constant", [0.1, -7.0, 1e300, 5e-324])
def test_a_column_that_is_constant_in_training_is_zero_everywhere(constant):
    found = vectors(table(numbers=[[constant] * 7]), table(numbers=[[constant, 2.0, math.nan, 3.0]]))
    assert found.train.values.tolist() == [[0]] * 7
    assert found.test.values.tolist() == [[0]] * 4


def test_categories_are_one_hot_with_a_place_for_missing_and_unknown_ones():
    train = table(numbers=[[0, 2] * 3], categories=[[4, 2, 4, -1, 2, 2], [0, 0, 0, 0, 0, 0]])
    found = vectors(train, table(numbers=[[1] * 5], categories=[[2, 4, 3, 9, -1], [0, 1, -1, 0, 0]]))
    assert found.shape == (1 + 3 + 2,)
    assert found.train.values.tolist() == [
        [-1, 0, 1, 0, 1, 0],
        [1, 1, 0, 0, 1, 0],
        [-1, 0, 1, 0, 1, 0],
        [1, 0, 0, 1, 1, 0],
        [-1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 0],
    ]
    assert found.test.values[:, 1:].tolist() == [
        [1, 0, 0, 1, 0],
        [0, 1, 0, 0, 1],
        [0, 0, 1, 0, 1],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 0],
    ]


cells = st.one_of(st.just(math.nan), st.floats(-1e6, 1e6, width=32))
TABLES = st.integers(12, 40).flatmap(
    lambda rows: st.tuples(
        st.lists(st.lists(cells, min_size=rows, max_size=rows), max_size=3),
        st.lists(st.lists(st.integers(-1, 4), min_size=rows, max_size=rows), min_size=1, max_size=3),
    )
)


def has_number(split, index):
    return not np.isnan(split.numbers[index.numpy()]).all(axis=0).any()


@settings(max_examples=60, deadline=None)
@given(columns=TABLES, seed=st.integers(0, 5), data=st.data())
def test_other_rows_to_validate_and_test_on_change_nothing_of_training(columns, seed, data):
    """And what is learned is learned: training rows are standardised, each has one category a column."""
    whole = table(*columns)
    train, test = parted(whole)
    kept, held_out = train_val_split(train.labels, 0.25, seed)
    if not has_number(train, kept):
        return
    before = as_vectors(Dataset("t", train, test, 2, ""), 0.25, seed)
    numbers, categories = train.numbers.copy(), train.categories.copy()
    changed = data.draw(st.sampled_from(held_out.tolist()))
    numbers[changed], categories[changed] = 12345.0, 7
    other = Table(numbers, categories, train.labels, train.number_names, train.category_names, "", "")
    others = test.numbers + 1, np.full_like(test.categories, 9)
    other_test = Table(*others, test.labels, test.number_names, test.category_names, "", "")
    after = as_vectors(Dataset("t", other, other_test, 2, ""), 0.25, seed)
    assert torch.equal(after.train.values[kept], before.train.values[kept])
    assert after.shape == before.shape

    count = len(columns[0])
    values = before.train.values[kept, :count].double().numpy()
    std = values.std(axis=0)
    assert np.allclose(values.mean(axis=0), 0, atol=1e-3)
    assert ((abs(std - 1) < 1e-3) | (std == 0)).all()
    for part in (before.train, before.test):
        assert torch.isfinite(part.values).all()
        assert torch.equal(part.values[:, count:].sum(1), torch.full((len(part),), float(len(columns[1]))))


def test_a_change_in_training_changes_the_other_rows():
    train = table(numbers=[[float(n) for n in range(20)]])
    test = table(numbers=[[1.0, 2.0]])
    moved = table(numbers=[[float(n * n) for n in range(20)]])
    assert not torch.equal(vectors(train, test).test.values, vectors(moved, test).test.values)


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        ([math.nan] * 4, [1, 2], "path=t.csv: column 'n0' has no number in any of the 4 training rows"),
        ([1e308, -1e308, 1e308, -1e308], [1, 2], "path=t.csv: the numbers of column 'n0' are too large"),
        ([1e308, 1e308, 1e308, -1e308], [1, 2], "path=t.csv: the numbers of column 'n0' are too large"),
        ([1e-300, 2e-300, 1e-300, 2e-300], [1, 2e300], None),
        ([1, 2, 1, 2], [1e300, 2], "path=t.csv: the numbers of column 'n0' are too large, or too far from those"),
    ],
)
def test_what_32_bits_cannot_hold_is_refused(train, test, told, recwarn):
    if told is None:  # so near to each other that their deviation is 0: taken for constant
        assert vectors(table(numbers=[train]), table(numbers=[test])).test.values.tolist() == [[0], [0]]
        return
    with pytest.raises(DataError, match=told):
        vectors(table(numbers=[train]), table(numbers=[test]))
    assert not recwarn.list  # which would stand above the message


def test_categories_that_name_the_rows_are_refused_before_memory_is_asked_for(monkeypatch):
    names = table(categories=[list(range(40_000))])
    with pytest.raises(
        DataError, match=r"80000 rows of 40001 features take more than 4 GiB; column 'c0' alone has 40001"
    ):
        vectors(names)


# ---------------------------------------------------------------------------------------------------------------------
# The split


def test_the_test_part_is_a_stratified_fifth_and_depends_on_no_seed():
    train, test = parted(table(numbers=[range(100)], labels=[0] * 70 + [1] * 30))
    assert torch.bincount(test.labels).tolist() == [14, 6]
    assert sorted([*train.numbers[:, 0], *test.numbers[:, 0]]) == list(range(100))
    assert (
        test.numbers[:4, 0].tolist()
        == parted(table(numbers=[range(100)], labels=[0] * 70 + [1] * 30))[1].numbers[:4, 0].tolist()
    )


def test_too_few_rows_for_the_classes_are_told():
    few = table(numbers=[range(6)], labels=[0, 0, 1, 1, 2, 2])
    with pytest.raises(DataError, match=r"path=t.csv: a fifth of its 6 rows, 1, is the test set, .* the 3 classes"):
        parted(few)
    train, test = parted(table(numbers=[range(10)], labels=[0] * 8 + [1] * 2))
    with pytest.raises(DataError, match=r"path=t.csv: without its test set, fraction=0.25: 2 of 8 .* smallest has 1"):
        as_vectors(Dataset("t", train, test, 2, ""), 0.25, 0)
    assert as_vectors(Dataset("t", train, test, 2, ""), 0, 0).shape == (1,)


# ---------------------------------------------------------------------------------------------------------------------
# scikit-learn's


BUNDLED = {
    "breast_cancer": (569, 30, [212, 357], "92efebbe5076094ee8ace980366850e0ac49bee8eb9a6d00a126dbec5289697b"),
    "wine": (178, 13, [59, 71, 48], "906d17bbd16e8cf79a555055293d7ba0e344ee3a08c1611b3a565d9c4b81d39d"),
    "digits": (
        1797,
        64,
        [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
        "d37582b1a7f43545bd8bd5e50ea4523e96ce48cae3cb327206b96461f27d652c",
    ),
}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_table_is_scikit_learns(name):
    from sklearn import datasets

    rows, features, counts, digest = BUNDLED[name]
    theirs = getattr(datasets, f"load_{name}")()
    train, test, classes = tabular("", False, path=name)
    numbers, labels = np.concatenate([train.numbers, test.numbers]), torch.cat([train.labels, test.labels])
    assert (numbers.shape, torch.bincount(labels).tolist(), classes) == ((rows, features), counts, len(counts))
    assert sorted(map(tuple, numbers)) == sorted(map(tuple, theirs.data))
    mine = sorted(zip(map(tuple, numbers), labels.tolist(), strict=True))
    assert mine == sorted(zip(map(tuple, theirs.data), theirs.target.tolist(), strict=True))
    assert train.digest == table_digest(name) == digest


def test_what_a_bundled_table_has_itself_is_refused():
    for option, value in (("target", "y"), ("categorical", ["a"])):
        with pytest.raises(DataError, match=f"{option}=.* would be ignored: path=wine is a table of scikit-learn"):
            tabular("", False, path="wine", **{option: value})


def test_options_are_checked():
    with pytest.raises(OptionError, match="path= : must be a name or a file"):
        tabular("", False, path=" ")
    with pytest.raises(OptionError, match="categorical"):
        tabular("", False, path="x.csv", target="y", categorical=[])


# ---------------------------------------------------------------------------------------------------------------------
# A set


def bundled(tmp_path, **options):
    read = partial(tabular, path="wine")
    return load("tabular", read, root="", cache=str(tmp_path), download=False, **options)


def test_a_table_is_loaded_by_its_digest_and_leaves_nothing_behind(tmp_path):
    dataset = bundled(tmp_path, digest=BUNDLED["wine"][-1], storage="resident")
    assert dataset.digest == BUNDLED["wine"][-1]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"path=wine: this is not the content .* digest=ffff"):
        bundled(tmp_path, digest="f" * 64)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"size": 8}, "size=8 would be ignored: tabular is a table"),
        ({"storage": "stream"}, "storage=stream: tabular is not a set of image files"),
    ],
)
def test_what_is_for_images_is_refused(tmp_path, option, told):
    with pytest.raises(DataError, match=told):
        bundled(tmp_path, **option)


def test_batches_of_vectors_are_the_rows(tmp_path):
    train = as_vectors(bundled(tmp_path), 0, 0).train
    assert isinstance(train, Vectors)
    batches = loader(train, batch_size=50, shuffle=True, seed=3)
    assert (len(batches), batches.samples) == (3, 142)
    found = list(batches.epoch(1))
    assert [len(labels) for _, labels in found] == [50, 50, 42]
    order = [row for values, _ in found for row in values.tolist()]
    assert order != train.values.tolist()
    assert sorted(order) == sorted(train.values.tolist())
    again = list(batches.epoch(1, start=1))
    assert all(torch.equal(one, other) for one, other in zip(found[1], again[0], strict=True))
    plain = next(loader(train, batch_size=142).epoch(0))
    assert torch.equal(plain[0], train.values)
    assert torch.equal(plain[1], train.labels)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mean": [0.5], "std": [1.0]}, r"mean=\[0.5\] and std=\[1.0\] are those of images"),
        ({"augment": Augment(flip=True)}, "flip=True is for images"),
        ({"augment": Augment(crop_padding=2)}, "crop_padding=2 is for images"),
    ],
)
def test_batches_of_vectors_refuse_what_is_done_to_images(options, told):
    with pytest.raises(DataError, match=told):
        loader(Vectors(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)), batch_size=2, **options)
