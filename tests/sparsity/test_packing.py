"""Which layers are packed: by a fixed rule, and by times of real layers, which here are made up."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from dst.kernels.build import UnavailableError
from dst.kernels.choice import Timing
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.weights.packing import FixedRule, Timed, packed, timed, told, unpackable


class Clock:
    """Times a layer with so many inputs; says what it was asked for."""

    def __init__(self, faster):
        self.faster, self.asked = faster, []

    def __call__(self, met, mask):
        shape, samples = met.product
        self.asked.append((shape.channels, shape.outs, samples, met.is_first, int(mask.sum())))
        return Timing(0.0, 2.0, 1.0 if shape.channels in self.faster else 3.0)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 20))


def sparsified(packing, density=0.2, **options):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = {"distribution": "uniform", **options}
    return model, Sparsifier(model, optimizer, density=density, compute=packing, **options)


def step(model, sparsifier, samples=32, inputs=40):
    sparsifier.optimizer.zero_grad()
    model(torch.randn(samples, inputs)).square().mean().backward()
    sparsifier.step()


@pytest.fixture
def by_times(kernels):
    """Make a packing of which the layers with so many inputs are faster packed."""

    def make(*faster, agree=lambda _: None):
        clock = Clock(faster)
        return Timed(kernels, clock, agree), clock

    return make


def test_layers_are_timed_as_they_are_met_in_training(by_times):
    packing, clock = by_times(32, 48)
    model, sparsifier = sparsified(packing)
    model.eval()
    model(torch.randn(64, 40))
    model.train()
    with torch.no_grad():
        model(torch.randn(64, 40))
    assert (clock.asked, sparsifier.weights.packed) == ([], [])
    step(model, sparsifier, samples=33)
    assert clock.asked == [(40, 32, 33, True, 256), (32, 48, 33, False, 307), (48, 20, 33, False, 192)]
    assert sparsifier.weights.packed == ["2", "4"]
    assert [(d.layer, d.masked_ms, d.packed_ms, d.choice) for d in sparsifier.weights.decisions] == [
        ("0", 2.0, 3.0, "masked"),
        ("2", 2.0, 1.0, "packed"),
        ("4", 2.0, 1.0, "packed"),
    ]
    assert sparsifier.weights.decisions == []  # given once
    for _ in range(3):
        step(model, sparsifier)
    assert len(clock.asked) == 3


def test_a_layer_is_timed_again_when_its_density_has_halved_and_not_before(by_times):
    packing, clock = by_times(32)
    densities = {2: 0.45, 4: 0.3, 6: 0.23, 8: 0.22, 10: 0.11}
    model, sparsifier = sparsified(
        packing,
        density=0.9,
        drop=None,
        grow=None,
        plan=UpdatePlan(every=2, total_steps=12),
        density_curve=lambda t: densities.get(t, 0.9),
        prune_pool="layer",
    )
    seen = {}
    for number in range(1, 12):
        before = len(clock.asked)
        step(model, sparsifier)
        if found := clock.asked[before:]:
            seen[number] = [active for *_, active in found]
    sizes = [40 * 32, 32 * 48, 48 * 20]
    assert list(seen) == [2, 8, 10]  # above a half nothing is timed
    for number, counts in seen.items():
        assert counts == pytest.approx([densities[number] * size for size in sizes], abs=1)


def test_what_was_decided_is_state_and_is_obeyed(by_times):
    packing, _ = by_times(32)
    model, sparsifier = sparsified(packing)
    step(model, sparsifier)
    state = model.state_dict(), sparsifier.optimizer.state_dict(), sparsifier.state_dict()
    other, clock = by_times(40, 48)  # by now others would be faster
    twin, again = sparsified(other)
    twin.load_state_dict(state[0])
    again.optimizer.load_state_dict(state[1])
    again.load_state_dict(state[2])
    assert again.weights.packed == ["2"]
    step(twin, again)
    assert (again.weights.packed, clock.asked, again.weights.decisions) == (["2"], [], [])


def test_a_layer_that_is_met_late_is_timed_though_others_that_come_after_it_were(by_times):
    packing, _ = by_times()
    model, sparsifier = sparsified(packing)
    step(model[2:], sparsifier, inputs=32)
    assert [d.layer for d in sparsifier.weights.decisions] == ["2", "4"]
    states = model.state_dict(), sparsifier.state_dict()
    other, clock = by_times(40)
    twin, again = sparsified(other)
    twin.load_state_dict(states[0])
    again.load_state_dict(states[1])
    step(twin, again)
    assert [inputs for inputs, *_ in clock.asked] == [40]
    assert again.weights.packed == ["0"]


def test_a_copy_is_not_watched_and_can_be_written(by_times):
    packing, clock = by_times()
    model, sparsifier = sparsified(packing)
    twin = copy.deepcopy(model)
    twin(torch.randn(64, 40)).sum().backward()
    assert torch.equal(pickle.loads(pickle.dumps(twin))[0].weight, model[0].weight)
    step(model, sparsifier, samples=33)
    assert [samples for _, _, samples, *_ in clock.asked] == [33] * 3


def test_without_a_home_it_says_so(monkeypatch):
    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(UnavailableError, match="there is no folder for kernels"):
        packed()


def test_the_times_of_the_main_process_hold(by_times):
    def agree(tensors):
        tensors[0].copy_(torch.tensor([5.0, 4.0], dtype=torch.float64))

    packing, _ = by_times(agree=agree)
    model, sparsifier = sparsified(packing)
    step(model, sparsifier)
    assert sparsifier.weights.packed == ["0", "2", "4"]
    assert {(d.masked_ms, d.packed_ms) for d in sparsifier.weights.decisions} == {(5.0, 4.0)}


def test_real_times(folder):
    model, sparsifier = sparsified(timed(folder))
    step(model, sparsifier)
    decisions = sparsifier.weights.decisions
    assert [d.layer for d in decisions] == ["0", "2", "4"]
    assert all(d.masked_ms > 0 < d.packed_ms and d.density == pytest.approx(0.2, abs=1e-3) for d in decisions)
    assert sparsifier.weights.packed == [d.layer for d in decisions if d.choice == "packed"]


def test_the_fixed_rule_follows_densities(folder):
    packing = packed(folder)
    assert isinstance(packing, FixedRule)
    _, sparsifier = sparsified(packing, density=0.3)
    assert sparsifier.weights.packed == ["0", "2", "4"]
    sparsifier.release()
    _, sparsifier = sparsified(packing, density=0.31)
    assert sparsifier.weights.packed == []
    assert (
        sparsifier.weights.told
        == "0 of 3 layers are packed; masked: 0, 2, 4 (denser than 0.3, or 0.5 in blocks of rows)"
    )


def test_reasons_are_told_together():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(32, 8, 1))
    layers = Sparsifier(model, None, density=0.5).topology.layers
    stay = unpackable(model, layers)
    assert told(stay) == "0, 2 (fewer than 16 inputs or outputs); 1 (groups or dilation)"
