import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst.sparsity import select
from dst.sparsity.select import top_k


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
    for implementation in (top_k, on_device):
        mask = implementation(torch.tensor(scores), k, torch.tensor(among))
        assert chosen(mask) == reference(scores, k, among)


def on_device(scores, k, among):
    """The path that GPUs take."""
    out = torch.zeros_like(among)
    if k:
        select._on_device(scores, k, among, out)
    return out


@given(st.integers(0, 5), st.floats(0.001, 0.999), st.floats(0.01, 0.9), st.sampled_from(["normal", "ties", "zero"]))
def test_large_selections_are_exact_too(seed, fraction, density, kind):
    """Large enough for the threshold that is estimated from a sample."""
    generator = torch.Generator().manual_seed(seed)
    n = select._WORTH_SAMPLING + seed
    scores = torch.randn(n, generator=generator)
    if kind == "ties":
        scores = (scores * 4).round()
    elif kind == "zero":
        scores.zero_()
    among = torch.rand(n, generator=generator) < density
    k = int(fraction * among.sum())
    expected = torch.where(among, scores.double(), -torch.inf).sort(descending=True, stable=True).indices[:k]
    assert chosen(top_k(scores, k, among)) == expected.sort().values.tolist()


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
