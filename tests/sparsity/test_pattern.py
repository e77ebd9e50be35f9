"""N:M and constant fan-in: exact quotas in every group, drop and grow scores met there, whatever the scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst.sparsity.pattern import Budget
from dst.sparsity.pattern.constant_fan_in import constant_fan_in
from dst.sparsity.pattern.n_m import n_m
from dst.sparsity.pattern.unstructured import unstructured

SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.sampled_from([4, 8, 12])),
    st.tuples(st.integers(1, 6), st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 3)),
)


def scores(shape, seed, kind):
    """Distinct numbers, many ties, or all zero."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(shape, generator=generator).abs()
    return {"distinct": found, "ties": (3 * found).round(), "zero": torch.zeros(shape)}[kind]


KINDS = st.sampled_from(["distinct", "ties", "zero"])


@given(SHAPES, st.sampled_from([(1, 2), (1, 4), (2, 4), (3, 4)]), st.integers(0, 99), KINDS, KINDS, st.floats(0.01, 1))
def test_n_m_keeps_n_of_every_m_consecutive_input_channels(shape, n_of_m, seed, drops, grows, fraction):
    n, m = n_of_m
    pattern = n_m(n=n, m=m)
    count = pattern.admissible(torch.Size(shape), 0)
    assert count * m == n * math.prod(shape)
    mask = pattern.initial(scores(shape, seed, drops), count)
    for round_ in range(3):
        assert mask.sum() == count
        assert pattern.allows(mask)
        for start in range(0, shape[1], m):  # the definition, channel by channel
            assert (mask[:, start : start + m].sum(1) == n).all()
        budget = Budget(drop=math.ceil(fraction * count), grow=math.ceil(fraction * count), count=count)
        kept, after = pattern.update(
            scores(shape, seed + round_, drops), scores(shape, 7 + round_, grows), mask, budget
        )
        assert not (kept & ~mask).any()
        assert not (kept & ~after).any()
        assert (mask & ~kept).sum() == budget.drop
        mask = after


@given(SHAPES, st.floats(0.01, 1), st.integers(0, 99), KINDS, KINDS, st.floats(0.01, 1), st.booleans(), st.booleans())
def test_constant_fan_in(shape, density, seed, drops, grows, fraction, ablates, is_output):
    pattern = constant_fan_in(ablation=0.5 if ablates else 0.0)
    units, fan_in = shape[0], math.prod(shape[1:])
    count = pattern.admissible(torch.Size(shape), round(density * units * fan_in))
    assert count % units == 0
    assert count == units or abs(count - density * units * fan_in) <= units / 2 + 0.5
    mask = pattern.initial(scores(shape, seed, drops), count)
    assert (mask.flatten(1).sum(1) == count // units).all()
    for round_ in range(3):
        active = int(mask.sum())
        drop = math.ceil(fraction * active)
        budget = Budget(drop=drop, grow=drop, count=count, is_output=is_output)
        kept, mask_after = pattern.update(
            scores(shape, seed + round_, drops), scores(shape, 7 + round_, grows), mask, budget
        )
        assert pattern.allows(mask_after)
        per_unit = mask_after.flatten(1).sum(1)
        living = int((per_unit > 0).sum())
        assert living >= math.ceil(count / fan_in)
        assert per_unit.max() == min(max(round(count / living), 1), fan_in)
        if is_output or not ablates:
            assert living == units
        assert not (kept & ~mask).any()
        assert not (kept & ~mask_after).any()
        mask = mask_after


def test_constant_fan_in_by_hand():
    """Two units of two weights: the two weakest of the layer leave, each unit grows back to its own two."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    magnitudes = torch.tensor([[1.0, 2.0, 0.0, 0.0], [5.0, 6.0, 0.0, 0.0]])
    gradients = torch.tensor([[0.0, 0.0, 3.0, 4.0], [9.0, 9.0, 9.0, 9.0]])
    budget = Budget(drop=2, grow=2, count=4)
    kept, after = constant_fan_in().update(magnitudes, gradients, mask, budget)
    assert kept.tolist() == [[False] * 4, [True, True, False, False]]
    assert after.tolist() == [[False, False, True, True], [True, True, False, False]]


def test_a_unit_without_salient_weights_is_ablated_and_the_others_share_its_weights():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    magnitudes = torch.tensor([[1.0, 2.0, 0.0, 0.0], [5.0, 6.0, 0.0, 0.0]])
    gradients = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]])
    budget = Budget(drop=2, grow=2, count=4)
    _, after = constant_fan_in(ablation=0.3).update(magnitudes, gradients, mask, budget)
    assert after.tolist() == [[False] * 4, [True] * 4]
    # the same layer as the network's last one: its units are the outputs and all stay
    last = Budget(drop=2, grow=2, count=4, is_output=True)
    _, after = constant_fan_in(ablation=0.3).update(magnitudes, gradients, mask, last)
    assert after.sum(1).tolist() == [2, 2]


def test_an_ablated_unit_comes_back_when_its_gradients_ask_for_it():
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)
    magnitudes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 6.0, 1.0, 2.0]])
    gradients = torch.tensor([[7.0, 8.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]])
    _, after = constant_fan_in(ablation=0.3).update(magnitudes, gradients, mask, Budget(drop=2, grow=2, count=4))
    assert after.tolist() == [[True, True, False, False], [True, True, False, False]]


def test_just_dropped_weights_return_only_where_there_is_no_other_place():
    mask = torch.tensor([[1, 1, 0, 0]], dtype=torch.bool)
    magnitudes, gradients = torch.tensor([[1.0, 2.0, 0.0, 0.0]]), torch.tensor([[9.0, 9.0, 1.0, 2.0]])
    free = n_m(n=2, m=4).update(magnitudes, gradients, mask, Budget(drop=1, grow=1, count=2))
    barred = n_m(n=2, m=4).update(magnitudes, gradients, mask, Budget(drop=1, grow=1, count=2, regrow=False))
    assert free.mask.tolist() == [[True, True, False, False]]
    assert barred.mask.tolist() == [[False, True, False, True]]
    tight = n_m(n=3, m=4).update(
        torch.tensor([[1.0, 2.0, 3.0, 0.0]]),
        torch.tensor([[1.0, 2.0, 0.0, 0.0]]),
        torch.tensor([[1, 1, 1, 0]], dtype=torch.bool),
        Budget(drop=2, grow=2, count=3, regrow=False),
    )
    assert tight.mask.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize(
    ("channels", "indivisible", "expected"), [(8, "error", 24), (6, "dense", 36), (3, "dense", 18)]
)
def test_layers_that_do_not_divide(channels, indivisible, expected):
    assert n_m(n=2, m=4, indivisible=indivisible).admissible(torch.Size((6, channels)), 99) == expected


def test_indivisible_layers_are_an_error_unless_said_otherwise():
    with pytest.raises(ValueError, match=r"6 input channels cannot be divided into groups of 4.*indivisible=dense"):
        n_m(n=2, m=4).admissible(torch.Size((5, 6)), 10)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: n_m(n=4, m=4), r"n=4: must be in \[1, m=4\)"),
        (lambda: n_m(n=1, m=4, indivisible="pad"), "indivisible=pad: allowed: dense, error"),
        (lambda: constant_fan_in(ablation=1.0), r"ablation=1.0: must be in \[0, 1\)"),
    ],
)
def test_impossible_options(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_an_update_that_drops_nothing_changes_nothing():
    mask = torch.tensor([[1, 0, 1, 0]], dtype=torch.bool)
    for pattern in (unstructured(), n_m(n=2, m=4), constant_fan_in(ablation=0.5)):
        assert torch.equal(pattern.update(torch.rand(1, 4), torch.rand(1, 4), mask, Budget(0, 0, 2)).mask, mask)
