"""Differences against values computed by hand, and by the closed form of the t-distribution with two degrees."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.statistics import Difference, correct, difference, holm, resolution


def p_of_two_degrees(t):
    """P(|T| > t) for two degrees of freedom: 1 - t / sqrt(2 + t^2)."""
    return 1 - t / math.sqrt(2 + t * t)


QUANTILE = 0.95 / math.sqrt((1 - 0.95**2) / 2)
"""Of the same distribution, by inverting that: 4.302653."""


def seeds(*values, start=0):
    return dict(enumerate(values, start))


def test_pairs_of_three_seeds_by_hand():
    """Gaps 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3), t = 2 sqrt(3)."""
    found = difference(seeds(91, 92, 93), seeds(90, 90, 90))
    assert (found.n, found.mean, found.paired, found.told) == (3, 2, True, False)
    assert found.p == pytest.approx(p_of_two_degrees(2 * math.sqrt(3)), abs=1e-12)
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert [found.low, found.high] == pytest.approx([2 - QUANTILE / math.sqrt(3), 2 + QUANTILE / math.sqrt(3)])
    assert found.note == "within noise"


def test_pairs_tell_apart_what_two_samples_do_not():
    """Gaps .9, 1, 1.1 with deviation .1, beside seeds that differ by 10 points."""
    a, b = seeds(80.9, 86, 91.1), seeds(80, 85, 90)
    assert difference(a, b).told is True
    assert difference(a, b).note == ""
    apart = difference(a, {seed + 10: value for seed, value in b.items()})
    assert (apart.paired, apart.told, apart.note) == (False, False, "within noise")
    assert apart.mean == pytest.approx(1)


def test_welch_of_unpaired_seeds_by_hand():
    """Both variances are 1, so the degrees are 4, the error is sqrt(2/3): P(|T| > t) = 1 - 1.5 u + u^3 / 2."""
    found = difference(seeds(1, 2, 3), seeds(4, 5, 6, start=7))
    t = 3 / math.sqrt(2 / 3)
    u = t / math.sqrt(4 + t * t)
    assert (found.n, found.sizes, found.paired, found.mean) == (3, (3, 3), False, -3)
    assert found.p == pytest.approx(1 - (3 * u - u**3) / 2, abs=1e-12)
    assert [found.low, found.high] == pytest.approx(
        [-3 - 2.7764451 * math.sqrt(2 / 3), -3 + 2.7764451 * math.sqrt(2 / 3)]
    )
    assert found.told is True


@pytest.mark.parametrize("n", [1, 2])
def test_nothing_is_tested_below_three_seeds(n):
    found = difference(seeds(*range(n)), seeds(*range(0, 2 * n, 2)))
    assert (found.n, found.low, found.high, found.p, found.told) == (n, None, None, None, None)
    assert found.note == f"n = {n}: not tested below 3 seeds"
    assert found.mean is not None


def test_without_a_finished_seed_there_is_no_difference():
    assert difference({}, seeds(1, 2, 3)) == Difference(0, None, sizes=(0, 3), note="n = 0: not tested below 3 seeds")


def test_a_missing_seed_leaves_its_partner_out():
    """Gaps 1, 2, 3 of the seeds that both have; the value 50 of the fourth does not count."""
    found = difference({**seeds(91, 92, 93), 3: 50.0}, seeds(90, 90, 90))
    assert (found.n, found.mean, found.sizes) == (3, 2, (4, 3))
    assert found.note == "without seed 3, which one side lacks; within noise"


def test_a_missing_seed_of_three_leaves_too_few_to_test():
    assert difference(seeds(1, 2, 3), seeds(1, 2)).told is None


@pytest.mark.parametrize("b", [seeds(97.49, 97.49, 97.49), seeds(96.49, 96.49, 96.49), seeds(5, 5, 5, start=9)])
def test_equal_values_in_all_seeds_give_no_p_value_but_the_resolution(b):
    found = difference(seeds(97.49, 97.49, 97.49), b, resolution=100 / 359)
    assert (found.n, found.low, found.high, found.p, found.told) == (3, None, None, None, None)
    assert found.note.endswith("no test; the test set resolves 0.28")


def test_values_that_are_equal_but_for_rounding_have_no_spread():
    found = difference(seeds(0.1 + 0.2, 0.3, 0.3), seeds(0.0, 0.0, 0.0))
    assert found.p is None


def test_holm_by_hand():
    """Sorted .01, .03, .04: times 3, 2, 1 and never falling: .03, .06, .06."""
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1)))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(ps):
    corrected = holm(ps)
    assert all(p <= one <= 1 for p, one in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    assert [corrected[place] for place in order] == sorted(corrected)


def test_what_is_told_apart_alone_may_not_be_among_many():
    found = Difference(3, 2.0, 0.1, 3.9, p=0.03, paired=True, told=True)
    assert [one.told for one in correct([found])] == [True]
    many = correct([found, found, Difference(2, 1.0)])
    assert [(one.p, one.told) for one in many] == [(0.06, False), (0.06, False), (None, None)]
    assert many[0].note == "not told apart after Holm's correction"


@given(
    st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=3),
    st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=3),
)
def test_a_difference_turns_its_sign_when_the_sides_are_exchanged(a, b):
    one, other = difference(a, b), difference(b, a)
    assert (one.n, one.paired, one.told, one.p is None) == (other.n, other.paired, other.told, other.p is None)
    assert one.mean == pytest.approx(-other.mean, abs=1e-9)
    if one.p is not None:
        assert one.low <= one.mean <= one.high
        assert one.p == pytest.approx(other.p)


@pytest.mark.parametrize(
    ("counts", "size"), [((350, 352), 359), ((9000, 9123), 10_000), ((25_001,), 50_000), ((359,), 359)]
)
def test_the_resolution_is_found_in_the_shares_themselves(counts, size):
    found = resolution([count / size for count in counts])
    if counts[0] == size:
        assert found is None  # all correct: any size would do
    else:
        assert found == pytest.approx(1 / size)


def test_numbers_that_are_no_shares_have_no_resolution():
    assert resolution([math.pi / 4]) is None
    assert resolution([]) is None
