import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.sparsity.allocation import level_counts, share


def test_in_proportion_with_largest_remainders():
    assert share(10, [1, 2, 2], [10, 10, 10]) == [2, 4, 4]
    assert share(7, [1, 1, 1], [9, 9, 9]) == [3, 2, 2]
    assert share(10, [50, 26, 24], [10, 10, 10]) == [5, 3, 2]  # 5, 2.6, 2.4: not to the largest


def test_overflow_goes_to_the_others():
    assert share(10, [8, 1, 1], [2, 10, 10]) == [2, 4, 4]
    assert share(5, [0, 0], [4, 4]) == [3, 2]
    assert share(4, [1, 0], [2, 9]) == [2, 2]


def test_numbers_that_say_nothing_count_as_equal():
    for nothing in (0.0, float("inf"), float("nan")):
        assert share(6, [nothing, 0.0, 0.0], [9, 9, 9]) == [2, 2, 2]


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


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 50)), min_size=1, max_size=8), st.data())
def test_nobody_is_a_whole_weight_from_his_part(layers, data):
    """All that are below their cap have the same share of their weight, up to one."""
    weights, caps = [weight for weight, _ in layers], [cap for _, cap in layers]
    total = data.draw(st.integers(0, sum(caps)))
    shares = share(total, weights, caps)
    for weight, part, cap in zip(weights, shares, caps, strict=True):
        for other_weight, other_part in zip(weights, shares, strict=True):
            assert part == cap or (part + 1) / weight > (other_part - 1) / other_weight


def test_the_same_density_for_all_layers_that_have_as_many_weights():
    assert level_counts(30, [100, 200], [100, 200]) == [10, 20]
    assert level_counts(30, [100, 200], [40, 10]) == [20, 10]
    assert level_counts(25, [1000, 2], [500, 1]) == [24, 1]


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 1)), min_size=1, max_size=6), st.data())
def test_level_counts(layers, data):
    sizes = [size for size, _ in layers]
    caps = [max(1, round(size * density)) for size, density in layers]
    total = data.draw(st.integers(len(sizes), sum(caps)))
    counts = level_counts(total, sizes, caps)
    assert sum(counts) == total
    assert all(1 <= count <= cap for count, cap in zip(counts, caps, strict=True))
    highest = max(((count - 1) / size for count, size in zip(counts, sizes, strict=True) if count > 1), default=0)
    for count, size, cap in zip(counts, sizes, caps, strict=True):
        # every layer that lifted to its one weight may cost the others one more
        assert count == cap or (count + len(sizes)) / size >= highest
