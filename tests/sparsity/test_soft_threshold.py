"""A soft threshold (STR): its formula and gradients, what it leaves untouched, and where it may start."""

import copy
import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dst.sparsity import Scope, Sparsifier
from dst.sparsity.reparametrize import soft_threshold
from dst.sparsity.weights.reparametrised import Edges
from dst.sparsity.weights.soft_threshold import _Shrink
from dst.training.decay import parameter_groups
from tests.states import same

# -- the formula -------------------------------------------------------------------------------------------------------


def by_formula(weight, s, upstream):
    """Return the effective weight and the gradients of weight and ``s``, number by number in Python's floats."""
    threshold = 1 / (1 + math.exp(-s))
    shrunk, to_weight, to_s = [], [], 0.0
    for w, g in zip(weight, upstream, strict=True):
        is_active = abs(w) > threshold
        shrunk.append(math.copysign(abs(w) - threshold, w) if is_active else 0.0)
        to_weight.append(g if is_active else 0.0)
        to_s -= threshold * (1 - threshold) * math.copysign(g, g * w) if is_active else 0.0
    return shrunk, to_weight, to_s


NUMBERS = st.floats(-2, 2, allow_subnormal=False)


@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30), s=st.floats(-20, 5))
def test_weights_and_gradients_are_those_of_the_formula(pairs, s):
    weight, upstream = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    threshold = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    trained = weight.clone().requires_grad_()
    found = _Shrink.apply(trained, threshold)
    found.backward(upstream)
    shrunk, to_weight, to_s = by_formula(weight.tolist(), s, upstream.tolist())
    at = 1 / (1 + math.exp(-s))
    if any(abs(abs(w) - at) < 1e-12 for w in weight.tolist()):  # two roundings of the threshold may lie on each side
        return
    torch.testing.assert_close(found.detach(), torch.tensor(shrunk, dtype=torch.float64), rtol=0, atol=1e-15)
    assert trained.grad.tolist() == to_weight
    assert float(threshold.grad) == pytest.approx(to_s, abs=1e-13)


def test_constructed_tensors():
    """A threshold of exactly 1/2: what equals it is pruned, and has no gradient."""
    weight = torch.tensor([[1.0, -1.0, 0.5, -0.5], [0.25, 0.0, -0.75, 2.0]], requires_grad=True)
    s = torch.zeros((), requires_grad=True)
    found = _Shrink.apply(weight, s)
    assert found.tolist() == [[0.5, -0.5, 0, 0], [0, 0, -0.25, 1.5]]
    found.backward(torch.tensor([[1.0, 2.0, 4.0, 8.0], [16.0, 32.0, 64.0, 128.0]]))
    assert weight.grad.tolist() == [[1, 2, 0, 0], [0, 0, 64, 128]]
    assert float(s.grad) == -0.25 * (1 - 2 - 64 + 128)


def test_single_precision_is_that_of_autograd():
    """Through what torch differentiates by itself; 1e-7 of the largest term that is summed."""
    generator = torch.Generator().manual_seed(0)
    weight, upstream = (torch.randn(64, 3, 5, 5, generator=generator) for _ in range(2))
    results = []
    for shrink in (_Shrink.apply, lambda w, s: w.sign() * torch.relu(w.abs() - s.sigmoid())):
        w, s = weight.clone().requires_grad_(), torch.tensor(-1.0, requires_grad=True)
        shrink(w, s).backward(upstream)
        results.append((shrink(w, s).detach(), w.grad, s.grad))
    (ours, to_weight, to_s), (theirs, autograd_weight, autograd_s) = results
    assert torch.equal(ours, theirs)
    assert torch.equal(to_weight, autograd_weight)
    active = int((ours != 0).sum())
    assert abs(float(to_s - autograd_s)) < 1e-7 * active


def test_it_can_be_differentiated_twice():
    weight = torch.tensor([[0.5, -0.9], [0.2, -0.1]], dtype=torch.float64, requires_grad=True)
    s = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Shrink.apply, (weight, s))
    assert torch.autograd.gradgradcheck(_Shrink.apply, (weight, s))


# -- in a network ------------------------------------------------------------------------------------------------------


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10))


def learning(model, *, start=-3.0, decay=1e-2, density=0.5, **options):
    """Return a Sparsifier whose thresholds start so that some weights lie below them."""
    how = partial(soft_threshold, threshold_init=start, threshold_decay=decay)
    given = {"distribution": "uniform", "drop": None, "grow": None, "reparametrize": how, **options}
    return Sparsifier(model, None, density=density, **given)


OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True),
    "nesterov": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2, fused=True),
}


def attached(sparsifier, model, optimizer="sgd", decay="all"):
    weights = sparsifier.weights
    made = OPTIMIZERS[optimizer](parameter_groups(model, decay, weights.parameters, weights.groups))
    sparsifier.attach(made)
    return made


def train(model, sparsifier, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(16, 1, 8, 8, generator=generator)
        labels = torch.randint(10, (16,), generator=generator)
        sparsifier.optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        sparsifier.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_leaves_the_edges_and_active_is_what_computes(optimizer):
    model = network()
    sparsifier = learning(model, count_every=1)
    layers = sparsifier.topology.layers
    edges = [mask.clone() for mask in sparsifier.weights.masks]
    assert sum(int(mask.sum()) for mask in edges) == round(0.5 * sparsifier.topology.size)
    assert 0 < sparsifier.density < sparsifier.edge_density == 0.5
    attached(sparsifier, model, optimizer)
    first = list(sparsifier.thresholds)
    for step in range(12):
        train(model, sparsifier, 1, seed=step)
        for i, (layer, edge) in enumerate(zip(layers, edges, strict=True)):
            assert not torch.any(layer.weight[~edge]), layer.name
            assert not torch.any(layer.weight.grad[~edge]), layer.name
            for value in sparsifier.optimizer.state[layer.weight].values():
                assert value.shape != layer.weight.shape or not torch.any(value[~edge])
            computed = model.get_submodule(layer.name).weight
            assert torch.equal(computed != 0, sparsifier.topology.masks[i])
            assert torch.equal(computed != 0, layer.weight.abs() > sparsifier.thresholds[i])
        assert sparsifier.topology.active == sum(int(mask.sum()) for mask in sparsifier.topology.masks)
        sparsifier.verify()
    assert all(now != then for now, then in zip(sparsifier.thresholds, first, strict=True))
    assert [report.threshold for report in sparsifier.layers] == sparsifier.thresholds
    assert all(report.row["threshold"] == report.threshold for report in sparsifier.layers)


def test_a_step_is_that_of_the_plain_formula():
    """Against a network whose weights are computed in its forward pass by plain operations, with the same optimizer."""
    model = network()
    reference = copy.deepcopy(model)
    sparsifier = learning(model)
    attached(sparsifier, model)
    masks = {layer.name: mask for layer, mask in zip(sparsifier.topology.layers, sparsifier.weights.masks, strict=True)}
    own = {name: torch.full((), -3.0, requires_grad=True) for name in masks}
    with torch.no_grad():
        for name, mask in masks.items():
            reference.get_submodule(name).weight.mul_(mask)
    optimizer = OPTIMIZERS["sgd"](
        [{"params": [*reference.parameters()]}, {"params": [*own.values()], "weight_decay": 1e-2}]
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        inputs = torch.randn(16, 1, 8, 8, generator=generator)
        labels = torch.randint(10, (16,), generator=generator)
        computed = {
            f"{name}.weight": (w := reference.get_submodule(name).weight).sign()
            * torch.relu(w.abs() - s.sigmoid())
            * masks[name]
            for name, s in own.items()
        }
        optimizer.zero_grad()
        F.cross_entropy(torch.func.functional_call(reference, computed, (inputs,)), labels).backward()
        optimizer.step()
    train(model, sparsifier, 10)
    for (name, s), threshold in zip(own.items(), sparsifier.thresholds, strict=True):
        assert float(s.detach().sigmoid()) == pytest.approx(threshold, rel=1e-5)
        trained = next(layer.weight for layer in sparsifier.topology.layers if layer.name == name)
        torch.testing.assert_close(trained, reference.get_submodule(name).weight, rtol=1e-5, atol=1e-6)


class Reads(TorchDispatchMode):
    """Counts how often a number is taken from a tensor, for which the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(monkeypatch):
    """Who asks for thresholds does."""
    model = network()
    sparsifier = learning(model, count_every=100)
    attached(sparsifier, model)
    train(model, sparsifier, 1)  # the first step looks at weights, as it does of every method
    lists = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self, real=torch.Tensor.tolist: lists.append(1) or real(self))
    with Reads() as reads:
        train(model, sparsifier, 3)
        assert reads.count == len(lists) == 0
        assert all(report.threshold for report in sparsifier.layers)
        assert reads.count + len(lists) > 0


@pytest.mark.parametrize("decay", ["all", "not_norms", "weights"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_thresholds_have_a_decay_of_their_own(optimizer, decay):
    """Without gradients, that alone moves them; whatever the optimizer's own decay acts on."""
    model = network()
    sparsifier = learning(model, start=-5.0, decay=0.25)
    made = attached(sparsifier, model, optimizer, decay)
    thresholds = sparsifier.weights.groups[0]["params"]
    where = {id(parameter): group["weight_decay"] for group in made.param_groups for parameter in group["params"]}
    assert len(where) == sum(1 for _ in model.parameters())
    assert {where[id(s)] for s in thresholds} == {0.25}
    own = made.defaults["weight_decay"]
    assert {where[id(layer.weight)] for layer in sparsifier.topology.layers} == {own}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    rate = made.defaults["lr"]
    carried = 1.9 if optimizer == "nesterov" else 1.0  # the first step of Nesterov's momentum counts a gradient twice
    assert [float(s.detach()) for s in thresholds] == pytest.approx([-5 * (1 - rate * 0.25 * carried)] * 2, rel=1e-6)


def test_an_optimizer_that_would_ignore_their_decay_is_refused():
    model = network()
    sparsifier = learning(model, decay=0.25)
    together = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5e-4)
    with pytest.raises(ValueError, match=r"thresholds would be trained with weight_decay=0\.0005, not with 0\.25 of "):
        sparsifier.attach(together)
    sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.25))


def test_no_decay_is_an_option():
    model = network()
    sparsifier = learning(model, decay=0.0)
    made = attached(sparsifier, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = sparsifier.thresholds
    made.step()
    assert sparsifier.thresholds == before
    with pytest.raises(ValueError, match="threshold_decay=-1"):
        learning(network(), decay=-1.0)


def test_a_state_goes_on_to_the_last_bit():
    whole, half, resumed = (network() for _ in range(3))
    sparsifiers = [learning(model, count_every=5) for model in (whole, half, resumed)]
    for model, sparsifier in zip((whole, half, resumed), sparsifiers, strict=True):
        attached(sparsifier, model)
    train(whole, sparsifiers[0], 7, seed=1)
    train(whole, sparsifiers[0], 6, seed=2)
    train(half, sparsifiers[1], 7, seed=1)
    train(resumed, sparsifiers[2], 2, seed=3)  # what is loaded has to replace everything
    resumed.load_state_dict(half.state_dict())
    sparsifiers[2].optimizer.load_state_dict(sparsifiers[1].optimizer.state_dict())
    sparsifiers[2].load_state_dict(sparsifiers[1].state_dict())
    train(resumed, sparsifiers[2], 6, seed=2)
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(sparsifiers[2].state_dict(), sparsifiers[0].state_dict())
    assert same(sparsifiers[2].optimizer.state_dict(), sparsifiers[0].optimizer.state_dict())


def test_all_edges_may_be_there():
    """STR as it was published: no masks besides."""
    model = network()
    sparsifier = learning(model, density=None, distribution="dense")
    attached(sparsifier, model)
    assert sparsifier.edge_density == 1
    train(model, sparsifier, 10)
    sparsifier.count()
    assert 0 < sparsifier.density < 1


# -- where it may start, and what it comes to --------------------------------------------------------------------------


def edges_of(*rows, mask=None):
    model = nn.ModuleDict({f"fc{i}": nn.Linear(len(row), 1, bias=False) for i, row in enumerate(rows)})
    for module, row in zip(model.values(), rows, strict=True):
        module.weight.data = torch.tensor([row], dtype=torch.float32)
    layers = Scope().layers(model)
    masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    if mask is not None:
        masks[0] = torch.tensor([mask])
        layers[0].weight.data *= masks[0]
    return Edges(layers, masks, 0)


def sigmoid(s):
    return float(torch.tensor(s, dtype=torch.float64).sigmoid())


def logit(p):
    return math.log(p / (1 - p))


def test_a_start_above_the_weights_is_an_error():
    """It names the layer and the largest start: what is one step below trains, and is above no other layer."""
    edges = edges_of([0.5, -0.1, 0.2], [0.3, -0.4, 0.0], mask=[False, True, True])
    with pytest.raises(
        ValueError, match=r"threshold_init=-1: .* layer fc0 .*\(the largest is 0\.2\).* at most"
    ) as told:
        soft_threshold(edges, threshold_init=-1.0, threshold_decay=0.0)
    most = float(re.search(r"choose (\S+) at most", str(told.value))[1])
    assert most <= logit(0.2) < most + 0.011
    found = soft_threshold(edges, threshold_init=most, threshold_decay=0.0)
    assert [int(mask.sum()) for mask in found.active()] == [1, 2]
    with pytest.raises(ValueError, match="fc0"):
        soft_threshold(edges, threshold_init=most + 0.02, threshold_decay=0.0)


def test_the_largest_weight_may_not_equal_the_threshold():
    with pytest.raises(ValueError, match=r"choose -0\.01 at most"):
        soft_threshold(edges_of([0.5, 0.5]), threshold_init=0.0, threshold_decay=0.0)


def test_weights_of_zero_would_never_be_trained():
    with pytest.raises(ValueError, match="layer fc1: its weights are all zero"):
        soft_threshold(edges_of([0.5], [0.0, 0.0]), threshold_init=-200.0, threshold_decay=0.0)


def test_a_layer_without_edges_is_no_reason():
    edges = edges_of([0.5, 0.25], [0.75], mask=[False, False])
    assert soft_threshold(edges, threshold_init=0.0, threshold_decay=0.0).active()[1].all()


def test_the_sparsifier_says_so_too():
    with pytest.raises(ValueError, match=r"threshold_init=100: .* layer 4 "):
        learning(network(), start=100.0)


@pytest.mark.parametrize("start", [-3200.0, 1e4])
def test_any_number_may_be_a_start(start):
    """As far as there are weights beyond: sigmoids of such numbers are 0 and 1."""
    assert soft_threshold(edges_of([3.0, -2.0]), threshold_init=start, threshold_decay=0.0).active()[0].all()


def suggested(warning):
    return {name: float(value) for name, value in re.findall(r"(threshold_\w+)=(\S+?)(?= or|$)", warning)}


@given(
    start=st.floats(-1000, -12),
    decay=st.floats(0, 1e-3),
    reach=st.floats(1, 1e5),
    scale=st.sampled_from([1e-3, 0.05, 0.4]),
)
def test_a_warning_comes_with_values_that_do(start, decay, reach, scale):
    """A tenth of the weights lies below by either; and by these values there is no warning."""

    def left(decay):
        return math.exp(-decay * reach)

    row = (torch.randn(2000, generator=torch.Generator().manual_seed(0)) * scale).tolist()
    edges = edges_of(row)
    how = partial(soft_threshold, edges)
    warning = how(threshold_init=start, threshold_decay=decay).warning(left)
    end = start * left(decay)
    below = sum(abs(w) <= sigmoid(end) for w in edges.layers[0].weight[0].tolist())
    assert (warning is None) == (below >= 2), (warning, below)
    if warning is None:
        return
    better = suggested(warning)
    assert better.keys() == {"threshold_decay", "threshold_init"}
    for name, value in better.items():
        given_options = {"threshold_init": start, "threshold_decay": decay, name: value}
        assert how(**given_options).warning(left) is None
        reached = sigmoid(given_options["threshold_init"] * left(given_options["threshold_decay"]))
        assert sum(abs(w) <= reached * (1 + 1e-6) for w in row) >= 200


def test_large_weights_are_out_of_reach_of_decay():
    """It draws thresholds to one half at most."""
    warning = soft_threshold(edges_of([4.0, -5.0, 6.0]), threshold_init=-5.0, threshold_decay=1.0).warning(
        lambda _: 0.0
    )
    assert suggested(warning).keys() == {"threshold_init"}
