"""What a step reads and writes stays where it is over updates, as a step that was captured goes on reading it there."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from dst.run.build import build
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.reparametrize import edge_popup
from dst.sparsity.weights import adam_age
from dst.sparsity.weights.adam_correction import AllWeights, GrownWeights
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag
from tests.sparsity.test_catalogue import ADAMW, METHODS, composed

OPTIMIZERS = {"sgd": (), "adamw": ADAMW}


class Addresses(NoObserver):
    """Notes after each step where its tensors are, and how many updates there were."""

    def __init__(self, run):
        self.run, self.updates, self.seen = run, 0, []

    def on_layers(self, step, layers):
        self.updates += 1

    def on_step(self, step):
        found = [*self.run.sparsifier.weights.step_tensors, *self.run.sparsifier.topology.step_tensors]
        self.seen.append((self.updates, [(t.data_ptr(), t.shape, t.stride()) for t in found]))


def trained(config):
    run = build(config).training
    run.run(seen := Addresses(run), StopFlag())
    return run, seen


def numbers(run):
    """Return all that training has changed; zeros of both signs are equal."""
    states = [v for state in run.optimizer.state.values() for v in state.values()]
    births = [*run.sparsifier.weights.births.values()]
    return [*run.model.parameters(), *run.sparsifier.topology.masks, *states, *births]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_from_the_first_update_on_every_tensor_stays(method, optimizer, monkeypatch):
    """Of a GPU's way too, which a host takes here, to the same numbers."""
    config = composed(method, "lenet_300_100", (*OPTIMIZERS[optimizer], "schedule.epochs=2"))
    monkeypatch.setattr(adam_age, "part_for", lambda device, size: AllWeights)
    run, watched = trained(config)
    dynamic = config.sparsity.update.every is not None or run.sparsifier.learned is not None
    assert watched.updates >= (4 if dynamic else 0)
    later = [found for updates, found in watched.seen if updates > 0 or not dynamic]
    assert len(later) >= 10
    assert all(found == later[0] for found in later)
    assert (later[0] == []) is (method == "dense")
    if optimizer == "adamw" and run.sparsifier.weights.births:
        assert len(later[0]) > len(run.sparsifier.layers)
        monkeypatch.setattr(adam_age, "part_for", lambda device, size: GrownWeights)
        other, _ = trained(config)
        assert all(map(torch.equal, numbers(run), numbers(other)))


def sparse(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6))
    return model, Sparsifier(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_factors_are_those_of_the_masks_however_they_are_set():
    """A layer that is full has none; one in another memory order, or precision, gets another."""
    _, sparsifier = sparse(density=0.5)
    weights = sparsifier.weights
    first, second = (layer.weight for layer in sparsifier.topology.layers)
    masks = [torch.rand(weight.shape) < 0.4 for weight in (first, second)]
    before = [factor for _, factor in weights._sparse]
    sparsifier.set_masks(masks)
    assert [factor for _, factor in weights._sparse] == [pytest.approx(mask.float()) for mask in masks]
    assert all(factor is old for (_, factor), old in zip(weights._sparse, before, strict=True))
    sparsifier.set_masks([torch.ones_like(masks[0]), masks[1]])
    assert [i for i, _ in weights._sparse] == [1]
    assert weights._sparse[0][1] is before[1]
    second.data = second.data.double()
    sparsifier.set_masks(masks)
    assert [factor.dtype for _, factor in weights._sparse] == [torch.float32, torch.float64]
    second.grad = torch.ones_like(second)
    sparsifier.mask_gradients()
    assert torch.equal(second.grad, masks[1].double())


def test_what_is_cleared_within_an_update_is_new_afterwards_and_factors_wait_for_the_masks():
    _, sparsifier = sparse(density=0.5, plan=UpdatePlan(every=2, total_steps=100))
    weights, mask = sparsifier.weights, sparsifier.topology.masks[0]
    half = mask & (torch.rand(mask.shape) < 0.5)
    factors = [factor.clone() for _, factor in weights._sparse]
    weights.clear({0: half})
    assert torch.equal(weights._held[0], half)
    assert weights._held[0].dtype == torch.bool
    assert torch.count_nonzero(weights.weight(0)[~half]) == 0
    assert all(torch.equal(factor, old) for (_, factor), old in zip(weights._sparse, factors, strict=True))
    entered = weights._entered(sparsifier.topology.masks)
    assert torch.equal(entered[0], mask & ~half)
    assert entered[1] is None


def test_how_many_weights_are_chosen_is_no_tensor_and_is_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6))
    sparsifier = Sparsifier(
        model, None, density=None, distribution="dense", reparametrize=partial(edge_popup, density=0.5)
    )
    before = sparsifier.weights.state_of_step
    assert sum(before) == round(0.5 * sparsifier.topology.size)
    sparsifier.set_density(0.2)
    assert sum(sparsifier.weights.state_of_step) == round(0.2 * sparsifier.topology.size)
    assert [*map(id, sparsifier.weights.step_tensors)] == [*map(id, sparsifier.weights.masks)]


def test_packed_layers_stand_in_the_way_of_a_capture(packing):
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert Sparsifier(model, optimizer, density=0.1).weights.obstacle == ""
    model, optimizer = copy.deepcopy((model, optimizer))
    packed = Sparsifier(model, optimizer, density=0.1, compute=packing)
    assert packed.weights.obstacle == "packed layers get new tensors at every update"


def test_packed_layers_that_a_gpu_would_correct_as_a_whole_have_the_ages_of_their_own_weights(packing, monkeypatch):
    found = []
    for part in (GrownWeights, AllWeights):
        monkeypatch.setattr(adam_age, "part_for", lambda device, size, part=part: part)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 32))
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=True)
        plan = UpdatePlan(every=3, total_steps=100)
        sparsifier = Sparsifier(model, optimizer, density=0.1, plan=plan, compute=packing)
        for _ in range(11):
            optimizer.zero_grad()
            model(torch.randn(32, 32)).square().mean().backward()
            sparsifier.step()
        assert len(sparsifier.weights.packed) == 2
        assert any((born > 0).any() for born in sparsifier.weights.births.values())
        found.append([*model.state_dict().values(), *sparsifier.topology.masks, *sparsifier.weights.births.values()])
    assert all(map(torch.equal, *found))
