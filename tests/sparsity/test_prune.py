"""Pruning to counts by given scores, freely and within a pattern."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.pattern.constant_fan_in import constant_fan_in
from dst.sparsity.pattern.n_m import n_m
from dst.sparsity.pattern.unstructured import unstructured
from dst.sparsity.prune import prune_like, prune_to
from dst.sparsity.update import topology_update


def masks(*rows):
    return [torch.tensor(row, dtype=torch.bool) for row in rows]


def test_of_all_layers_together_or_of_each():
    scores = [torch.tensor([5.0, 1.0, 4.0, 9.0]), torch.tensor([3.0, 2.0, 8.0, 7.0])]
    among = masks([1, 1, 1, 0], [1, 1, 0, 1])
    assert [m.tolist() for m in prune_to(3, scores, among)] == [[1, 0, 1, 0], [0, 0, 0, 1]]
    assert [m.tolist() for m in prune_to([1, 2], scores, among)] == [[1, 0, 0, 0], [1, 0, 0, 1]]


def test_a_pattern_keeps_the_rows_that_are_worth_most():
    like = masks([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]])
    scores = [torch.tensor([[1.0, 1.0, 1.5, 9.0], [3.0, 3.0, 0.0, 0.0], [0.0, 4.0, 1.0, 5.0]])]
    among = masks([[1, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 1]])
    (kept,) = prune_like(like, scores, among, [constant_fan_in()])
    assert kept.int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]  # 2.5 < 6 < 9


@given(
    pattern=st.sampled_from([unstructured(), n_m(n=2, m=4), constant_fan_in(), constant_fan_in(ablation=0.5)]),
    seed=st.integers(0, 10**6),
    ties=st.booleans(),
)
def test_a_pattern_prunes_within_what_is_given_to_as_many_as_it_has(pattern, seed, ties):
    generator = torch.Generator().manual_seed(seed)
    shape = torch.Size((6, 8, 1, 1))
    count = pattern.admissible(shape, 20)
    tickets = [pattern.initial(torch.rand(shape, generator=generator), count) for _ in range(3)]
    like, among = tickets[0], tickets[0] | tickets[1] | tickets[2]
    scores = torch.randint(3, shape, generator=generator).float() if ties else torch.rand(shape, generator=generator)
    (kept,) = prune_like([like], [scores], [among], [pattern])
    assert not (kept & ~among).any()
    assert kept.sum() == like.sum()
    assert pattern.allows(kept)


def test_a_full_layer_stays_full():
    like = masks([[1, 1], [1, 1]])
    (kept,) = prune_like(like, [torch.rand(2, 2)], like, [n_m(n=1, m=2)])
    assert kept.all()


@pytest.mark.parametrize("pattern", ["unstructured", "n_m"])
def test_a_sparsifier_takes_the_masks_that_it_prunes_to(pattern):
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    own = pattern == "n_m"
    options = {"pattern": partial(n_m, n=1, m=2), "distribution": None} if own else {"distribution": "uniform"}
    sparsifier = Sparsifier(model, optimizer, density=None if own else 0.5, **options)
    model(torch.rand(4, 8)).sum().backward()
    sparsifier.step()
    topology = sparsifier.topology
    union = [mask | torch.rand(mask.shape).gt(0.5) for mask in topology.masks]
    explored = [mask.clone() for mask in topology.explored]
    kept = sparsifier.pruned([torch.rand(mask.shape) for mask in union], union, 40)
    sparsifier.set_masks(kept)
    assert topology.active == (48 if own else 40) == sum(topology.counts)
    for i, (layer, mask) in enumerate(zip(topology.layers, kept, strict=True)):
        assert torch.equal(topology.masks[i], mask)
        assert torch.equal(topology.explored[i], explored[i] | mask)
        assert not layer.weight[~mask].any()
        assert not optimizer.state[layer.weight]["momentum_buffer"][~mask].any()
    sparsifier.verify()
    if own:
        with pytest.raises(RuntimeError, match="its mask breaks the pattern"):
            sparsifier.set_masks([torch.zeros_like(mask) for mask in kept])
        assert topology.active == 48


@pytest.mark.parametrize(
    "given", [{"drop": "random"}, {"prune_pool": "layer"}, {"plan": UpdatePlan(every=2, total_steps=9)}]
)
def test_an_update_is_given_in_one_or_in_parts(given):
    model = nn.Linear(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    update = topology_update(UpdatePlan(every=2, total_steps=9))
    with pytest.raises(ValueError, match=rf"^{next(iter(given))} would be ignored: update says all about updates"):
        Sparsifier(model, optimizer, density=0.5, update=update, **given)
    assert Sparsifier(model, optimizer, density=0.5, update=update).topology_update is update
