"""What GPUs do, done on a CPU: selection in all layers at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.sparsity import segments, select
from dst.sparsity.bracket import selected

INF = float("inf")
VALUES = [0.0, -0.0, 1.0, 1.0, -1.0, 2.5, -2.5, 1e-45, -1e-45, 3e38, INF, -INF]


@pytest.fixture
def on_device(monkeypatch):
    """Take the way of GPUs, in rows so short that layers have several."""
    monkeypatch.setattr(select, "_one_by_one", lambda tensors: False)
    monkeypatch.setattr(select, "on_host", lambda tensors: False)
    monkeypatch.setattr(segments, "COLUMNS", 7)
    segments.segments_of.cache_clear()
    yield
    segments.segments_of.cache_clear()


layers = st.lists(
    st.lists(st.tuples(st.sampled_from(VALUES), st.booleans(), st.sampled_from(VALUES)), min_size=1, max_size=40),
    min_size=1,
    max_size=6,
)


def tensors(drawn, dtype=torch.float32):
    """Return scores, eligible places, and other scores, of each layer."""
    columns = [[list(column) for column in zip(*layer, strict=True)] for layer in drawn]
    scores, among, others = (
        [torch.tensor(column[i], dtype=kind) for column in columns] for i, kind in enumerate((dtype, torch.bool, dtype))
    )
    return scores, among, others


def of_cpu(scores, k, among, largest):
    return selected([scores], k, [among], largest)[0] if k else torch.zeros_like(among)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("largest", [True, False])
def test_all_layers_at_once_are_the_layers_one_by_one(on_device, largest, dtype):
    @given(layers, st.data())
    @settings(max_examples=40)
    def check(drawn, data):
        scores, among, _ = tensors(drawn, dtype)
        ks = [data.draw(st.sampled_from([0, int(a.sum()), int(a.sum()) // 2, int(a.sum()) // 3])) for a in among]
        each = select.each_top_k if largest else select.each_bottom_k
        found = each(scores, ks, among)
        expected = [of_cpu(*layer, largest) for layer in zip(scores, ks, among, strict=True)]
        assert all(map(torch.equal, found, expected))

    check()


def test_of_numbers_that_are_none_the_device_makes_what_the_cpu_does(on_device):
    """As many are missing in the end, which a check of the counts then tells."""
    for values in ([1.0, float("nan"), 1.0, 0.0], [float("nan"), 2.0, 1.0, 3.0], [-float("nan"), 2.0, 1.0, 3.0]):
        scores, among = torch.tensor(values), torch.ones(4, dtype=torch.bool)
        for k in (1, 2, 3):
            (found,) = select.each_top_k([scores], [k], [among])
            assert torch.equal(found, of_cpu(scores, k, among, True))
        (found,) = select.each_bottom_k([scores], [2], [among])
        assert torch.equal(found, of_cpu(scores, 2, among, False))


@given(layers, st.booleans(), st.data())
def test_an_exchange_of_all_layers_is_that_of_each(drawn, regrow, data):
    scores, masks, others = tensors(drawn)
    drops = [data.draw(st.integers(0, int(mask.sum()))) for mask in masks]
    free = [int((~mask).sum()) for mask in masks]
    grows = [data.draw(st.integers(0, n + (drop if regrow else 0))) for n, drop in zip(free, drops, strict=True)]
    expected = select.exchanged((scores, drops), (others, grows), masks, regrow=regrow)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "_one_by_one", lambda tensors: False)
        patch.setattr(segments, "COLUMNS", 7)
        segments.segments_of.cache_clear()
        found = select.exchanged((scores, drops), (others, grows), masks, regrow=regrow)
    segments.segments_of.cache_clear()
    assert all(torch.equal(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True))
    kept, after = found[0]
    assert after.untyped_storage().nbytes() == after.numel()  # a checkpoint holds no more than that
    assert kept.data_ptr() != after.data_ptr()


@given(layers, st.data())
def test_pooled_selection_on_a_device_is_that_on_a_cpu(drawn, data):
    scores, among, _ = tensors(drawn)
    for mask in among:
        mask[0] = True
    k = data.draw(st.integers(len(scores), sum(int(mask.sum()) for mask in among)))
    expected = select.pooled_top_k(scores, k, among)
    found = select._pooled_on_device(scores, k, among)
    assert all(map(torch.equal, found, expected))


def test_large_layers_of_uneven_sizes(on_device, monkeypatch):
    """With rows as long as they are, in two batches; with ties, and in another memory layout."""
    monkeypatch.setattr(segments, "COLUMNS", 4_096)
    monkeypatch.setattr(segments, "_MOST", 200_000)
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 3, 3), (300, 500), (4096,), (1,), (64, 64, 3, 3), (4097,), (700, 300)]
    scores = [torch.randn(shape, generator=generator) for shape in shapes]
    scores[1] = (scores[1] * 4).round()
    scores[4] = scores[4].contiguous(memory_format=torch.channels_last)
    among = [torch.rand(score.shape, generator=generator) < 0.5 for score in scores]
    ks = [int(mask.sum()) // 3 for mask in among]
    assert len([*segments.batches([score.numel() for score in scores])]) > 1
    for each, largest in ((select.each_top_k, True), (select.each_bottom_k, False)):
        for mask, score, k, where in zip(each(scores, ks, among), scores, ks, among, strict=True):
            assert torch.equal(mask, of_cpu(score.flatten(), k, where.flatten(), largest).view(where.shape))
    assert select.count_true(among) == [int(mask.sum()) for mask in among]
