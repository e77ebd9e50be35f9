"""How weights are held: one object touches them, their optimizer may come later, patterns have states of their own."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import dst.sparsity
from dst.network.places import places
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity.pattern.unstructured import Unstructured
from dst.training.decay import parameter_groups
from dst.training.loop import _tensors_in
from tests.states import same, states_of


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 3))


def sparsified(model, optimizer, **options):
    return Sparsifier(model, optimizer, density=0.2, plan=UpdatePlan(every=2, total_steps=100), **options)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def train(model, sparsifier, steps=7):
    for step in range(steps):
        sparsifier.optimizer.zero_grad()
        inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        sparsifier.step()


def test_the_optimizer_may_come_after_the_masks():
    one, other = net(), net()
    at_once = sparsified(one, sgd(one))
    later = sparsified(other, None)
    assert same(one.state_dict(), other.state_dict())  # the weights are sparse already
    later.attach(sgd(other))
    for model, sparsifier in ((one, at_once), (other, later)):
        train(model, sparsifier)
    assert same(one.state_dict(), other.state_dict())
    assert same(at_once.state_dict(), later.state_dict())
    assert same(at_once.optimizer.state_dict(), later.optimizer.state_dict())


def test_nothing_is_trained_before_there_is_an_optimizer():
    model = net()
    sparsifier = sparsified(model, None)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="attach"):
        sparsifier.step()
    with pytest.raises(ValueError, match="the optimizer does not train layers 0, 2, 4"):
        sparsifier.attach(sgd(net()))


def test_state_that_an_optimizer_brings_along_is_sparse_at_once():
    model = net()
    optimizer = sgd(model)
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    sparsifier = sparsified(model, None)
    sparsifier.attach(optimizer)
    for weight, mask in zip(sparsifier.weights.parameters, sparsifier.topology.masks, strict=True):
        (momentum,) = states_of(optimizer, weight)
        assert momentum.any()
        assert not momentum[~mask].any()


# -- new weights -------------------------------------------------------------------------------------------------------


def test_a_weight_is_new_unless_it_was_active_all_along():
    model = nn.Linear(4, 1, bias=False)
    sparsifier = Sparsifier(model, sgd(model), density=0.5, distribution="uniform")
    weights = sparsifier.weights
    masks = [torch.tensor([[True, True, False, False]])]
    weights.set_masks(masks, [2])
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0]]))
    weights.clear({0: torch.tensor([[True, False, True, True]])})  # the second one leaves, and comes back at once
    assert model.weight.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    first = [torch.tensor([[5.0, 6.0, 7.0, 8.0]])]
    weights.set_masks([torch.tensor([[True, True, True, False]])], [3], values=first)
    assert model.weight.tolist() == [[1.0, 6.0, 7.0, 0.0]]
    weights.set_masks([torch.tensor([[True, True, True, True]])], [4])
    assert model.weight.tolist() == [[1.0, 6.0, 7.0, 0.0]]


# -- decay, and where weights are --------------------------------------------------------------------------------------


def test_decay_acts_on_whatever_holds_the_weights_of_sparse_layers():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model.stand_in = nn.Parameter(torch.zeros(3, 4))
    decaying, rest = parameter_groups(model, "weights", [model.stand_in])
    assert [id(p) for p in decaying["params"]] == [id(model.stand_in), id(model[0].weight)]
    assert rest["weight_decay"] == 0
    assert len(rest["params"]) == 3


def test_attention_is_held_and_decays():
    fused, apart = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert [place.name for place in places(fused)] == ["in_proj", "out_proj"]
    assert [place.name for place in places(apart)] == ["q_proj", "k_proj", "v_proj", "out_proj"]
    model = nn.Sequential(fused, apart)
    layers = {layer.name: layer.weight for layer in Scope().layers(model)}
    assert [*layers] == ["0.in_proj", "0.out_proj", "1.q_proj", "1.k_proj", "1.v_proj", "1.out_proj"]
    assert layers["0.in_proj"] is fused.in_proj_weight
    assert layers["1.k_proj"] is apart.k_proj_weight
    decaying, rest = parameter_groups(model, "weights")
    assert {id(p) for p in decaying["params"]} == {id(weight) for weight in layers.values()}
    assert all(p.dim() == 1 for p in rest["params"])


# -- patterns ----------------------------------------------------------------------------------------------------------


class Counting(Unstructured):
    """A pattern that remembers how often it was asked for an update."""

    def __init__(self):
        self.updates = torch.zeros(())

    def update(self, *arguments):
        self.updates += 1
        return super().update(*arguments)

    def state_dict(self):
        return {"updates": self.updates.clone()}

    def load_state_dict(self, state):
        self.updates = state["updates"].clone()


def test_each_layer_has_a_pattern_with_a_state_of_its_own():
    model, twin = net(), net()
    sparsifier = sparsified(model, sgd(model), pattern=Counting, scope=Scope(dense_last=True))
    train(model, sparsifier, steps=5)
    first, second = sparsifier.topology.patterns
    assert first is not second
    state = sparsifier.state_dict()
    assert {name: int(found["updates"]) for name, found in state["patterns"].items()} == {"0": 2, "2": 2}
    other = sparsified(twin, sgd(twin), pattern=Counting, scope=Scope(dense_last=True))
    other.load_state_dict(state)
    assert [int(pattern.updates) for pattern in other.topology.patterns] == [2, 2]


def test_layers_do_not_share_a_pattern():
    one = Counting()
    with pytest.raises(ValueError, match="the pattern of one layer is that of another too"):
        sparsified(net(), None, pattern=lambda: one)


def test_a_start_shares_the_tensors_of_patterns_too():
    """Of several processes, which all take the main one's."""
    state = sparsified(net(), None, pattern=Counting).state_dict()
    assert len([*_tensors_in(state)]) == 3 * len(state["masks"])  # masks, explored, and a count a layer


def test_patterns_without_a_state_leave_none():
    assert "patterns" not in sparsified(net(), None).state_dict()


# -- nobody else -------------------------------------------------------------------------------------------------------

BEFORE_MASKS = {"scope.py", "init.py", "initial_masks.py", "saliency.py", "probe.py"}
"""Modules that look at the weights a network was given, before there are masks."""
VIEWS = {"view.py", "drop.py", "grow.py", "redistribute.py"}
"""Scores, which see one layer as it is shown to them."""


def touches(path):
    """Return the lines at which a module reads a weight of a layer, a gradient, or the state of an optimizer."""
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [node.lineno for node in found if node.attr in ("weight", "grad", "param_groups") and not by_weights(node)]


def by_weights(node):
    """``self.weights.weight(i)`` asks the object that holds them."""
    return isinstance(node.value, ast.Attribute) and node.value.attr == "weights"


def test_only_the_seam_touches_weights_once_there_are_masks():
    root = Path(dst.sparsity.__file__).parent
    others = [path for path in root.glob("*.py") if path.name not in BEFORE_MASKS | VIEWS]
    assert len(others) > 10
    # Only the first masks are drawn from the weights as they were given, in Sparsifier._first_topology.
    assert {path.name: len(touches(path)) for path in others if touches(path)} == {"sparsifier.py": 2}
    assert touches(root / "weights" / "masked_dense.py")
