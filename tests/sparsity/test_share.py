import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.sparsity.allocation import share


def test_in_proportion_with_largest_remainders():
    assert share(10, [1, 2, 2], [10, 10, 10]) == [2, 4, 4]
    assert share(7, [1, 1, 1], [9, 9, 9]) == [3, 2, 2]


def test_overflow_goes_to_the_others():
    assert share(10, [8, 1, 1], [2, 10, 10]) == [2, 4, 4]
    assert share(5, [0, 0], [4, 4]) == [3, 2]
    assert share(4, [1, 0], [2, 9]) == [2, 2]


def test_no_room():
    with pytest.raises(ValueError, match="5 weights do not fit into 4"):
        share(5, [1, 1], [2, 2])


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=8), st.data())
def test_total_is_conserved_and_caps_hold(layers, data):
    weights, caps = [weight for weight, _ in layers], [cap for _, cap in layers]
    total = data.draw(st.integers(0, sum(caps)))
    shares = share(total, weights, caps)
    assert sum(shares) == total
    assert all(0 <= part <= cap for part, cap in zip(shares, caps, strict=True))
