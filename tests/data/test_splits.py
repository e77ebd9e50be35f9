"""The validation split: exact, stratified, and the same for ever."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dst.data.dataset import DataError
from dst.data.splits import train_val_split


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=12),
    fraction=st.floats(0.01, 0.99),
    split_seed=st.integers(0, 2**40),
)
def test_stratified_to_the_last_sample(counts, fraction, split_seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)) * 3, torch.tensor(counts))  # labels may have gaps
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    total = round(fraction * len(labels))
    assume(len(counts) <= total <= len(labels) - len(counts))
    train, val = train_val_split(labels, fraction, split_seed)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert val.tolist() == sorted(val.tolist())
    assert len(val) == total
    shares = [int((labels[val] == 3 * k).sum()) for k in range(len(counts))]
    assert all(1 <= share < count for share, count in zip(shares, counts, strict=True))
    exact = [count * total / len(labels) for count in counts]
    if all(1 <= value <= count - 1 for value, count in zip(exact, counts, strict=True)):
        assert all(abs(share - value) < 1 for share, value in zip(shares, exact, strict=True))


def test_largest_remainder_by_hand():
    labels = torch.tensor([0] * 7 + [1] * 6 + [2] * 5)  # of 18, 5: exactly 1.94, 1.67 and 1.39
    _, val = train_val_split(labels, 5 / 18, 0)
    assert torch.bincount(labels[val]).tolist() == [2, 2, 1]
    labels = torch.tensor([0] * 5 + [1] * 5)  # a tie goes to the lowest class
    _, val = train_val_split(labels, 0.3, 0)
    assert torch.bincount(labels[val]).tolist() == [2, 1]
    labels = torch.tensor([0] * 96 + [1] * 2 + [2] * 2)  # 4: the small classes get the one each that they must have
    _, val = train_val_split(labels, 0.04, 0)
    assert torch.bincount(labels[val]).tolist() == [2, 1, 1]


def test_a_function_of_its_arguments_alone():
    labels = torch.arange(200) % 10
    torch.manual_seed(1)
    np.random.seed(1)
    first = train_val_split(labels, 0.1, 3)[1]
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(train_val_split(labels, 0.1, 3)[1], first)
    assert not torch.equal(train_val_split(labels, 0.1, 4)[1], first)


def test_the_split_is_a_constant_of_the_project():
    """If this fails, every result with a validation split changes: do not mend the expectation."""
    _, val = train_val_split(torch.arange(60) % 3, 0.1, 0)
    assert val.tolist() == VAL_OF_60


def test_without_a_validation_part_all_is_for_training():
    train, val = train_val_split(torch.tensor([0, 0, 1]), 0.0, 0)  # also where no split would be possible
    assert train.tolist() == [0, 1, 2]
    assert (val.tolist(), val.dtype) == ([], torch.int64)


VAL_OF_60 = [10, 11, 30, 48, 52, 59]


@pytest.mark.parametrize("fraction", [1.0, -0.1, float("nan")])
def test_fractions_outside_the_unit_interval_are_refused(fraction):
    with pytest.raises(ValueError, match=r"fraction=.* in \[0, 1\)"):
        train_val_split(torch.arange(10) % 2, fraction, 0)


@pytest.mark.parametrize(
    ("labels", "fraction"),
    [([0, 0, 0, 1], 0.5), ([0, 0, 1, 1, 2, 2], 0.3), ([0, 0, 1, 1, 2, 2], 0.7), ([0] * 100, 0.001)],
)
def test_classes_that_cannot_be_in_both_parts_are_refused(labels, fraction):
    with pytest.raises(DataError, match=f"fraction={fraction}: .*each of the"):
        train_val_split(torch.tensor(labels), fraction, 0)
