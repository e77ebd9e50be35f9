import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dst.sparsity import bracket, select
from dst.sparsity.select import bottom_k, pooled_top_k, row_top_k, top_k


def reference(scores, k, among):
    """The definition: sort by (score descending, index ascending)."""
    positions = sorted((i for i, a in enumerate(among) if a), key=lambda i: (-scores[i], i))
    return sorted(positions[:k])


def chosen(mask):
    return mask.flatten().nonzero().squeeze(1).tolist()


# Few distinct values, so that ties at the threshold are the rule.
vectors = st.lists(st.tuples(st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.5]), st.booleans()), min_size=1, max_size=60)


@given(vectors, st.data())
def test_selection_is_that_of_the_definition(pairs, data):
    scores, among = zip(*pairs, strict=True)
    k = data.draw(st.integers(0, sum(among)))
    for largest, by_cpu in ((True, top_k), (False, bottom_k)):
        expected = reference(scores if largest else [-score for score in scores], k, among)
        assert chosen(by_cpu(torch.tensor(scores), k, torch.tensor(among))) == expected
        if k:  # the path that GPUs take
            mask = select._on_device(torch.tensor(scores), k, torch.tensor(among), largest)
            assert chosen(mask) == expected


@given(st.integers(0, 5), st.floats(0.001, 1.0), st.floats(0.01, 0.9), st.sampled_from(["normal", "ties", "zero"]))
@example(5, 0.984375, 0.125, "normal")  # the sample has fewer eligible places than its share
@example(0, 1.0, 0.9, "normal")
def test_large_selections_are_exact_too(seed, fraction, density, kind):
    """Large enough for the threshold that is estimated from a sample."""
    generator = torch.Generator().manual_seed(seed)
    n = bracket._WORTH_SAMPLING + seed
    scores = torch.randn(n, generator=generator)
    if kind == "ties":
        scores = (scores * 4).round()
    elif kind == "zero":
        scores.zero_()
    among = torch.rand(n, generator=generator) < density
    k = int(fraction * among.sum())
    for selection, sign in ((top_k, 1), (bottom_k, -1)):
        expected = torch.where(among, sign * scores.double(), -torch.inf).sort(descending=True, stable=True).indices[:k]
        assert chosen(selection(scores, k, among)) == expected.sort().values.tolist()


def test_a_sample_that_misleads_costs_time_only():
    """Whole blocks between the sampled positions are larger, or smaller, than what is sampled."""
    n = 20 * bracket._SAMPLE
    among = torch.ones(n, dtype=torch.bool)
    for value in (10.0, -10.0):
        scores = torch.randn(n, generator=torch.Generator().manual_seed(0))
        sampled = torch.zeros(n, dtype=torch.bool)
        sampled[::23] = True  # 20 places apart would share a period with kernels
        scores[~sampled] += value
        for k in (1, 1000, n // 2, n - 1, n):
            expected = scores.sort(descending=True, stable=True).indices[:k]
            assert chosen(top_k(scores, k, among)) == expected.sort().values.tolist()


def test_half_precision_scores():
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = scores.sort(descending=True, stable=True).indices[:300]
    assert chosen(top_k(scores, 300, torch.ones(1000, dtype=torch.bool))) == expected.sort().values.tolist()


def test_shape_is_kept_and_the_sample_leaves_global_randomness_alone():
    scores = torch.randn(512, 512)
    before = torch.get_rng_state()
    mask = top_k(scores, 1000, torch.ones_like(scores, dtype=torch.bool))
    assert mask.shape == (512, 512)
    assert int(mask.sum()) == 1000
    assert torch.equal(before, torch.get_rng_state())


def test_too_many_asked_for():
    with pytest.raises(ValueError, match="cannot select 3 of 2"):
        top_k(torch.zeros(4), 3, torch.tensor([True, True, False, False]))


@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0]), min_size=1, max_size=9), min_size=1, max_size=5),
    st.data(),
)
def test_pooled_selection_is_global_and_leaves_no_layer_empty(layers, data):
    scores = [torch.tensor(layer) for layer in layers]
    among = [torch.ones_like(layer, dtype=torch.bool) for layer in scores]
    k = data.draw(st.integers(len(scores), sum(map(len, layers))))
    masks = pooled_top_k(scores, k, among)
    assert sum(int(mask.sum()) for mask in masks) == k
    assert all(mask.any() for mask in masks)
    # Nothing left out beats anything kept, but for the one weight that keeps its layer alive.
    out = max((float(s[~m].max()) for s, m in zip(scores, masks, strict=True) if (~m).any()), default=float("-inf"))
    for layer, mask in zip(scores, masks, strict=True):
        kept = sorted(layer[mask].tolist())
        assert all(value >= out for value in (kept if len(kept) > 1 else []))


def test_selection_in_another_memory_layout():
    """As weights have it with ``hardware.channels_last``; the second layer would get nothing but its best."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand((4, 3, 5, 2), generator=generator) + shift for shift in (1.0, 0.0)]
    among = [torch.rand(s.shape, generator=generator) < 0.7 for s in scores]
    moved = [[t.contiguous(memory_format=torch.channels_last) for t in tensors] for tensors in (scores, among)]
    expected, found = pooled_top_k(scores, 40, among), pooled_top_k(moved[0], 40, moved[1])
    assert [int(mask.sum()) for mask in expected] == [39, 1]
    assert all(map(torch.equal, expected, found))
    assert torch.equal(top_k(scores[0], 20, among[0]), top_k(moved[0][0], 20, moved[1][0]))


def test_pooled_selection_needs_a_weight_a_layer():
    with pytest.raises(ValueError, match="cannot keep 1 weights in 2 layers"):
        pooled_top_k([torch.zeros(3), torch.zeros(3)], 1, [torch.ones(3).bool()] * 2)


@given(st.integers(1, 5), st.integers(1, 7), st.data())
def test_selection_in_rows_is_the_selection_of_each_row(rows, columns, data):
    values = st.lists(st.sampled_from([0.0, 0.0, 1.0, -1.0, 2.5]), min_size=columns, max_size=columns)
    flags = st.lists(st.booleans(), min_size=columns, max_size=columns)
    scores = [data.draw(values) for _ in range(rows)]
    among = [data.draw(flags) for _ in range(rows)]
    k = [data.draw(st.integers(0, columns)) for _ in range(rows)]
    mask = row_top_k(torch.tensor(scores), torch.tensor(k), torch.tensor(among))
    for row, (values_, flags_, count) in enumerate(zip(scores, among, k, strict=True)):
        assert chosen(mask[row]) == reference(values_, count, flags_)
