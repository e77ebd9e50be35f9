"""Rankings before training: against arithmetic by hand, finite differences, an explicit Hessian, conservation."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.flop_counter import FlopCounterMode

from dst import registry
from dst.data.batches import Batches
from dst.data.cache import load
from dst.sparsity import saliency
from dst.sparsity.saliency import Probe, gradient, grasp, magnitude, snip, synflow
from dst.sparsity.scope import Layer, Scope
from dst.sparsity.select import pooled_top_k, top_k

CRITERIA = {
    "snip": lambda probe, layers: snip(probe, layers, 9, batches=2),
    "gradient": lambda probe, layers: gradient(probe, layers, 9, batches=2),
    "grasp": lambda probe, layers: grasp(probe, layers, 9, batches=2),
    "grasp of one batch": lambda probe, layers: grasp(probe, layers, 9),
    "synflow": lambda probe, layers: synflow(probe, layers, 9, rounds=3),
}
any_criterion = pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)


def layers_of(model):
    return Scope().layers(model)


def probe_of(model, *batches, loss=cross_entropy, seed=0):
    return Probe(model, lambda n: iter(batches[:n]), loss, seed)


def sizes_of(model):
    return [layer.size for layer in layers_of(model)]


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def mlp(*widths, seed=0, bias=True, activation=nn.Tanh, dtype=torch.float64):
    torch.manual_seed(seed)
    modules = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs, bias=bias), activation()]
    return nn.Sequential(*modules[:-1]).to(dtype)


def data(n, inputs=4, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (n, inputs) if isinstance(inputs, int) else (n, *inputs)
    return torch.randn(shape, generator=generator, dtype=dtype), torch.randint(classes, (n,), generator=generator)


def union(*batches):
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def everywhere(scores):
    return [torch.ones_like(score, dtype=torch.bool) for score in scores]


# -- SNIP --------------------------------------------------------------------------------------------------------------


def test_snip_of_a_linear_regression_by_hand():
    # Predictions 4 and 5, residuals 1 and 1: the gradient of the mean square is (1 * [1, 2] + 1 * [3, -1]) * 2 / 2.
    model = nn.Sequential(linear([2.0, 1.0]))
    probe = probe_of(model, (torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[3.0], [4.0]])), loss=mse_loss)
    found = snip(probe, layers_of(model), 1)
    assert found.scores[0].tolist() == [[8.0, 1.0]]
    assert found.forward_passes == 6
    assert gradient(probe, layers_of(model), 1).scores[0].tolist() == [[4.0, 1.0]]


def test_snip_of_two_layers_by_hand():
    # Hidden [3, -1] -> [3, 0], output 6, target 4: dL/dout = 4; the second hidden unit is off.
    model = nn.Sequential(linear([1.0, 1.0], [1.0, -2.0]), nn.ReLU(), linear([2.0, -5.0]))
    probe = probe_of(model, (torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])), loss=mse_loss)
    assert [score.tolist() for score in snip(probe, layers_of(model), 1).scores] == [
        [[8.0, 16.0], [0.0, 0.0]],
        [[24.0, 0.0]],
    ]


def normed(dtype=torch.float64):
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 16, 3)
    ).to(dtype)


def loss_under(model, layers, masks, inputs, labels):
    """The loss in training mode with the weights multiplied by ``masks``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state = dict(model.named_parameters()) | {name: buffer.clone() for name, buffer in model.named_buffers()}
    state |= {names[id(layer.weight)]: layer.weight * mask for layer, mask in zip(layers, masks, strict=True)}
    return cross_entropy(functional_call(model.train(), state, inputs), labels)


def test_snip_is_the_derivative_of_the_loss_in_a_mask():
    model, (inputs, labels) = normed(), data(5, (2, 4, 4))
    layers, width = layers_of(model), 1e-6
    found = snip(probe_of(model, (inputs, labels)), layers, 1).scores
    for i, layer in enumerate(layers):
        for position in (0, 7, layer.size - 1):
            masks = [torch.ones_like(each.weight) for each in layers]
            ends = []
            for mask in (1 + width, 1 - width):
                masks[i].view(-1)[position] = mask
                ends.append(loss_under(model, layers, masks, inputs, labels).item())
            expected = abs(ends[0] - ends[1]) / (2 * width)
            assert float(found[i].flatten()[position]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("sizes", [(4, 4), (5, 2), (3, 3, 3)])
@pytest.mark.parametrize("criterion", [snip, gradient, grasp])
def test_batches_one_by_one_are_their_union(criterion, sizes):
    model = mlp(4, 5, 3)
    batches = [data(n, seed=n + 10 * i) for i, n in enumerate(sizes)]
    parts = criterion(probe_of(model, *batches), layers_of(model), 1, batches=len(sizes))
    whole = criterion(probe_of(model, union(*batches)), layers_of(model), 1)
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-10, atol=1e-16)
    first = criterion(probe_of(model, *batches), layers_of(model), 1)
    assert not torch.allclose(flat(first.scores), flat(whole.scores), rtol=1e-3)


def test_the_network_is_the_given_one_in_training_mode():
    """Not re-initialised, and with the statistics of the batch, whatever mode the model happens to be in."""
    model, (inputs, labels) = normed(), data(6, (2, 4, 4))
    cross_entropy(model.train()(inputs), labels).backward()
    expected = [(layer.weight * layer.weight.grad).detach().abs() for layer in layers_of(model)]
    assert all(map(torch.equal, snip(probe_of(model.eval(), (inputs, labels)), layers_of(model), 1).scores, expected))


@pytest.mark.parametrize("criterion", [snip, grasp])
def test_dropout_is_on_and_derived_from_the_seed_alone(criterion):
    model = nn.Sequential(mlp(4, 8, 8, dtype=torch.float32), nn.Dropout(0.5), nn.Linear(8, 3))
    batches = [data(9, dtype=torch.float32, seed=i) for i in (1, 2)]

    def scores(seed, count=1):
        torch.rand(1)
        return flat(criterion(probe_of(model, *batches, seed=seed), layers_of(model), 1, batches=count).scores)

    assert torch.equal(scores(0), scores(0))
    assert torch.equal(scores(0, 2), scores(0, 2))
    assert not torch.allclose(scores(0), scores(1))


def test_batches_have_dropout_of_their_own():
    """The same batch twice would give the scores of one if it had the same dropout twice."""
    model = nn.Sequential(nn.Dropout(0.5), linear([1.0] * 20))
    batch = torch.ones(1, 20), torch.zeros(1, 1)

    def dropped(count):
        probe = probe_of(model, batch, batch, loss=lambda logits, labels: logits.sum())
        return int((snip(probe, layers_of(model), 1, batches=count).scores[0] == 0).sum())

    assert 0 < dropped(2) < dropped(1)


# -- GraSP -------------------------------------------------------------------------------------------------------------


def gradient_flow(model, layers, weights, inputs, labels, temperature):
    """Gradient and Hessian of the mean loss in the weights of the layers, as a vector and a matrix, spelled out."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def loss(vector):
        parts = vector.split([layer.size for layer in layers])
        given = {names[id(layer.weight)]: part.view_as(layer.weight) for layer, part in zip(layers, parts, strict=True)}
        return cross_entropy(functional_call(model, given, inputs) / temperature, labels)

    return torch.func.grad(loss)(weights), torch.func.hessian(loss)(weights)


@pytest.mark.parametrize("temperature", [1.0, 200.0])
@pytest.mark.parametrize("count", [1, 2])
def test_grasp_against_an_explicit_hessian(temperature, count):
    model = mlp(4, 5, 4, 3)
    batches = [data(6, seed=i) for i in range(count)]
    layers = layers_of(model)[:-1]  # what is out of scope is neither ranked nor part of the gradient
    weights = flat([layer.weight.detach() for layer in layers])
    slope, hessian = gradient_flow(model, layers, weights, *union(*batches), temperature)
    found = grasp(probe_of(model, *batches), layers, 1, batches=count, temperature=temperature)
    torch.testing.assert_close(flat(found.scores), weights * (hessian @ slope), rtol=1e-9, atol=1e-18)
    assert (flat(found.scores) < 0).any()  # signed: weights whose removal would increase the flow come last


class Attending(nn.Module):
    """Attention over tokens of a width of 4, then a classifier of their mean."""

    def __init__(self):
        super().__init__()
        self.attention, self.classifier = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.classifier(x.mean(1) + self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_grasp_goes_through_attention():
    torch.manual_seed(0)
    model = Attending().double()
    batch, layers = data(6, inputs=(3, 4)), layers_of(model)
    assert [layer.name for layer in layers] == ["attention.in_proj", "attention.out_proj", "classifier"]
    weights = flat([layer.weight.detach() for layer in layers])
    with sdpa_kernel(SDPBackend.MATH):
        slope, hessian = gradient_flow(model, layers, weights, *batch, 1.0)
    found = grasp(probe_of(model, batch), layers, 1, temperature=1.0)
    torch.testing.assert_close(flat(found.scores), weights * (hessian @ slope), rtol=1e-9, atol=1e-18)
    assert all(scores.any() for scores in found.scores[0].chunk(3))


def test_the_weight_that_grasp_keeps_first_is_the_one_whose_removal_hurts_gradient_flow_most():
    model, (inputs, labels) = mlp(4, 5, 3), data(6)
    layers = layers_of(model)
    weights = flat([layer.weight.detach() for layer in layers])
    found = flat(grasp(probe_of(model, (inputs, labels)), layers, 1, temperature=1.0).scores)

    def flow_without(position, share):
        moved = weights.clone()
        moved[position] *= 1 - share
        return gradient_flow(model, layers, moved, inputs, labels, 1.0)[0].square().sum().item()

    losses = [(flow_without(i, -1e-5) - flow_without(i, 1e-5)) / 2e-5 for i in range(len(weights))]
    assert int(found.argmax()) == max(range(len(losses)), key=losses.__getitem__)
    torch.testing.assert_close(found, torch.tensor(losses, dtype=torch.float64) / 2, rtol=1e-5, atol=1e-9)


def test_grasp_goes_through_batch_norm_and_needs_curvature():
    model = normed()
    assert flat(grasp(probe_of(model, data(5, (2, 4, 4))), layers_of(model), 1).scores).any()
    model = nn.Sequential(linear([1.0, 2.0]))
    probe = probe_of(model, (torch.ones(1, 2), torch.ones(1)), loss=lambda logits, labels: logits.sum())
    with pytest.raises(ValueError, match="grasp: all scores are zero in layer 0"):
        grasp(probe, layers_of(model), 1)


# -- SynFlow -----------------------------------------------------------------------------------------------------------


def bias_free_conv_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Linear(8, 5, bias=False)),
    )


NETS = {
    "mlp": (lambda: mlp(6, 20, 20, 20, 4, bias=False, activation=nn.ReLU, dtype=torch.float32), data(2, 6)),
    "conv": (bias_free_conv_net, data(2, (2, 8, 8))),
}
any_net = pytest.mark.parametrize(("build", "batch"), NETS.values(), ids=NETS)


def spy_on_rounds(monkeypatch, select=None):
    """Return a list that will hold, a round, the scores of the weights that are active before it."""
    seen, original = [], saliency._select

    def spy(scores, counts, *, pooled):
        seen.append(scores)
        return (select or original)(scores, counts, pooled=pooled)

    monkeypatch.setattr(saliency, "_select", spy)
    return seen


def total_flow(model, shape):
    """R of the network, and of what masks leave of it."""
    state = {name: tensor.detach().abs().double() for name, tensor in model.state_dict().items()}
    return float(functional_call(model.double().eval(), state, torch.ones(1, *shape, dtype=torch.float64)).sum())


@any_net
def test_every_layer_carries_the_whole_flow_in_every_round(build, batch, monkeypatch):
    model = build()
    seen = spy_on_rounds(monkeypatch)
    keep = sum(sizes_of(model)) // 20
    synflow(probe_of(model, batch), layers_of(model), keep, rounds=12)
    assert len(seen) == 12
    flows = [[float(score.sum()) for score in scores] for scores in seen]
    for flow in flows:
        assert flow == pytest.approx([flow[0]] * len(flow), rel=1e-12)
    assert flows[0][0] == pytest.approx(total_flow(model, batch[0].shape[1:]), rel=1e-12)
    totals = [flow[0] for flow in flows]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.99 * totals[0]


def guardless(scores, counts, *, pooled):
    """The plain global selection, which empties a layer if all its scores are low."""
    assert pooled
    pool = torch.cat(scores)
    return list(top_k(pool, counts[0], torch.ones_like(pool, dtype=torch.bool)).split([len(s) for s in scores]))


def test_no_layer_collapses_where_one_shot_magnitude_empties_one(monkeypatch):
    model = mlp(64, 256, 256, 256, 10, bias=False, activation=nn.ReLU, dtype=torch.float32)
    layers = layers_of(model)
    keep = round(1e-3 * sum(sizes_of(model)))
    one_shot = guardless([layer.weight.detach().abs().flatten() for layer in layers], [keep], pooled=True)
    assert 0 in [int(mask.sum()) for mask in one_shot]

    spy_on_rounds(monkeypatch, guardless)  # so that it is not the guard that keeps layers alive
    scores = synflow(probe_of(model, data(1, 64)), layers, keep, rounds=100).scores
    masks = guardless([score.flatten() for score in scores], [keep], pooled=True)
    assert sum(int(mask.sum()) for mask in masks) == keep
    assert all(mask.any() for mask in masks)
    with torch.no_grad():
        for layer, mask in zip(layers, masks, strict=True):
            layer.weight.mul_(mask.view_as(layer.weight))
    assert total_flow(model, (64,)) > 0


def reference_rounds(model, shape, keep, rounds):
    """The definition: masks after every round, from dense tensors."""
    model = model.double().eval()
    weights = [layer.weight for layer in layers_of(model)]
    for tensor in model.state_dict().values():
        tensor.abs_()
    sizes = [weight.numel() for weight in weights]
    masks = everywhere(weights)
    for r in range(1, rounds + 1):
        model.zero_grad()
        model(torch.ones(1, *shape, dtype=torch.float64)).sum().backward()
        scores = [(weight * weight.grad).detach().abs() for weight in weights]
        if isinstance(keep, int):
            masks = pooled_top_k(scores, round(sum(sizes) * (keep / sum(sizes)) ** (r / rounds)), masks)
        else:
            counts = [round(size * (kept / size) ** (r / rounds)) for size, kept in zip(sizes, keep, strict=True)]
            masks = [top_k(*layer) for layer in zip(scores, counts, masks, strict=True)]
        for weight, mask in zip(weights, masks, strict=True):
            weight.data *= mask
        yield masks


widths = st.lists(st.integers(1, 9), min_size=2, max_size=5)


@settings(max_examples=60)
@given(widths, st.integers(0, 99), st.integers(1, 7), st.booleans(), st.booleans(), st.data())
def test_the_ranking_holds_the_masks_of_all_rounds(widths, seed, rounds, per_layer, bias, draw):
    """Taking as many weights as a round left gives exactly the weights that it left: the ranks are nested rounds."""
    model = mlp(*widths, seed=seed, bias=bias, activation=nn.ReLU, dtype=torch.float32)
    sizes = sizes_of(model)
    if per_layer:
        keep = [draw.draw(st.integers(1, size)) for size in sizes]
    else:
        keep = draw.draw(st.integers(len(sizes), sum(sizes)))
    found = synflow(probe_of(model, data(2, widths[0])), layers_of(model), keep, rounds=rounds)
    assert [score.shape for score in found.scores] == [layer.weight.shape for layer in layers_of(model)]
    for masks in reference_rounds(model, widths[:1], keep, rounds):
        counts = [int(mask.sum()) for mask in masks]
        everything = everywhere(found.scores)
        if per_layer:
            taken = [top_k(*layer) for layer in zip(found.scores, counts, everything, strict=True)]
        else:
            taken = pooled_top_k(found.scores, sum(counts), everything)
        assert all(map(torch.equal, taken, masks))
    assert sum(counts) == (sum(keep) if per_layer else keep)


def test_ranks_follow_the_scores_of_the_last_round_and_equal_scores_are_equal():
    model = nn.Sequential(linear([3.0, -1.0], [1.0, 1.0]))  # scores are |w|
    scores = synflow(probe_of(model, data(1, 2)), layers_of(model), 2, rounds=1).scores
    assert scores[0].tolist() == [[3.0, 2.0], [1.0, 1.0]]  # of the three ones the first is kept


def test_layers_may_be_thinned_on_paths_of_their_own(monkeypatch):
    model = mlp(10, 10, 10, activation=nn.ReLU)
    seen = spy_on_rounds(monkeypatch)
    synflow(probe_of(model, data(1, 10)), layers_of(model), [1, 64], rounds=2)
    assert [[len(score) for score in scores] for scores in seen] == [[100, 100], [10, 80]]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.skip = linear(*[[10.0, 10.0]] * 4)
        self.inner = linear([0.6, 0.5], [0.5, 0.4])
        self.outer = linear([0.3, 1.0], [0.3, 0.0], [0.3, 0.0], [0.3, 0.0])

    def forward(self, inputs):
        return self.skip(inputs) + self.outer(self.inner(inputs))


def test_a_branch_that_is_cut_on_the_way_keeps_a_weight_a_layer():
    """The first of two rounds leaves a branch the best weight of each layer, which do not meet: no flow is left."""
    model = Residual()
    scores = synflow(probe_of(model, data(1, 2)), layers_of(model), 5, rounds=2).scores
    masks = pooled_top_k(scores, 5, everywhere(scores))
    assert [int(mask.sum()) for mask in masks] == [3, 1, 1]
    assert masks[1].tolist() == [[True, False], [False, False]]
    assert masks[2].tolist() == [[False, True], *[[False, False]] * 3]


def test_deep_nets_overflow_single_but_not_double_precision():
    model = mlp(*[1000] * 4, 2, bias=False, activation=nn.ReLU, dtype=torch.float32)
    for layer in layers_of(model):
        layer.weight.data.fill_(1e10)
    assert model(torch.ones(1, 1000)).isinf().all()
    scores = synflow(probe_of(model, data(1, 1000)), layers_of(model), 100, rounds=2).scores
    assert flat(scores).isfinite().all()
    with torch.no_grad():
        layers_of(model)[0].weight.fill_(1e38)
        model[2].weight.fill_(1e38)
    model = nn.Sequential(*(module for _ in range(8) for module in (model[0], model[2])))
    with pytest.raises(ValueError, match="synflow: scores are not finite in layers 0, 1"):
        synflow(probe_of(model, data(1, 1000)), layers_of(model), 100, rounds=1)


# -- what is left behind -----------------------------------------------------------------------------------------------


class Awkward(nn.Module):
    """Batch norm, dropout, a shared weight, a frozen one, modules in different modes, hooks, kept features."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.first = nn.Linear(64, 64)
        self.again = nn.Linear(64, 64)
        self.again.weight = self.first.weight
        self.head = nn.Linear(64, 3)
        self.register_buffer("scale", torch.tensor([-1.5]), persistent=False)
        self.register_buffer("open", torch.tensor([True, False]))
        self.features = None
        self.calls = 0
        self.norm.bias.requires_grad_(False)
        self.head.weight.requires_grad_(False)

    def forward(self, images):
        maps = self.drop(torch.relu(self.norm(self.conv(images)))).flatten(1)
        self.features = torch.relu(self.again(torch.relu(self.first(maps)))) * self.scale
        return self.head(self.features)


def awkward():
    torch.manual_seed(0)
    model = Awkward()

    def count(*_):
        model.calls += 1

    for module in model.modules():
        module.register_forward_hook(count)
    model.head.register_full_backward_hook(count)
    images, labels = data(4, (2, 4, 4), dtype=torch.float32)
    cross_entropy(model(images), labels).backward()
    model.again.bias.grad = None
    model.drop.eval()
    return model


def snapshot(model):
    """Everything that could be changed, as values that compare equal only if they are so bit by bit."""

    def bits(tensor):
        return None if tensor is None else (tensor.stride(), tensor.dtype, tensor.detach().numpy().tobytes())

    return {
        "tensors": {name: (id(t), bits(t)) for name, t in model.state_dict(keep_vars=True).items()},
        "buffers": {name: (id(t), bits(t)) for name, t in model.named_buffers()},
        "gradients": {name: (id(p.grad), bits(p.grad)) for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": [
            (name, key, list(value.items()))
            for name, module in model.named_modules()
            for key, value in vars(module).items()
            if "_hooks" in key and isinstance(value, dict)
        ],
        "plain": (model.calls, id(model.features), bits(model.features)),
        "random": (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@any_criterion
@pytest.mark.parametrize("grad", [True, False])
def test_model_and_random_states_are_left_bit_by_bit(criterion, grad, monkeypatch):
    model = awkward()
    batches = [data(4, (2, 4, 4), seed=i, dtype=torch.float32) for i in (1, 2)]

    def draw(n):  # the batches, too, may take random numbers
        for images, labels in batches[:n]:
            torch.rand(1)
            yield images, labels

    for name in ("manual_seed", "manual_seed_all"):  # torch remembers these for GPUs that it has not started yet
        monkeypatch.setattr(torch.cuda, name, lambda seed: pytest.fail("seeded GPUs that the model does not use"))
    layers = layers_of(model)
    assert [layer.name for layer in layers] == ["conv", "first", "head"]
    with torch.set_grad_enabled(grad):
        before = snapshot(model)
        found = criterion(Probe(model, draw, cross_entropy, seed=1), layers)
        after = snapshot(model)
    for what in before:
        assert after[what] == before[what], what
    for score, layer in zip(found.scores, layers, strict=True):
        assert score.shape == layer.weight.shape
        assert score.isfinite().all()
        assert not score.requires_grad


@any_criterion
def test_an_error_leaves_no_trace_either(criterion):
    model = awkward()
    model.head.weight.data[0, 0] = torch.nan
    before = snapshot(model)
    with pytest.raises(ValueError, match="scores are not finite in layer"):
        criterion(probe_of(model, *[data(4, (2, 4, 4), seed=i, dtype=torch.float32) for i in (1, 2)]), layers_of(model))
    assert snapshot(model) == before


def test_a_shared_weight_has_the_gradient_of_all_its_uses():
    shared = linear([2.0])
    model = nn.Sequential(shared, shared)  # w^2 x = 4, dL/dw = 2 w x of the sum
    probe = probe_of(model, (torch.ones(1, 1), torch.ones(1)), loss=lambda logits, labels: logits.sum())
    assert [score.tolist() for score in snip(probe, layers_of(model), 1).scores] == [[[8.0]]]
    # H g = 2 * 4, times w.
    assert [score.tolist() for score in grasp(probe, layers_of(model), 1, temperature=1.0).scores] == [[[16.0]]]


@any_criterion
def test_memory_format_changes_nothing(criterion):
    batches = [data(5, (2, 4, 4), seed=i) for i in (1, 2)]
    plain, last = normed(), normed().to(memory_format=torch.channels_last)
    expected = criterion(probe_of(plain, *batches), layers_of(plain)).scores
    batches = [(inputs.contiguous(memory_format=torch.channels_last), labels) for inputs, labels in batches]
    torch.testing.assert_close(criterion(probe_of(last, *batches), layers_of(last)).scores, expected)


@any_criterion
@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_single_precision_on_any_device_is_double_on_the_cpu_rounded(criterion, device):
    batches, exact, model = [data(5, (2, 4, 4), seed=i) for i in (1, 2)], normed(), normed(torch.float32).to(device)
    expected = criterion(probe_of(exact, *batches), layers_of(exact)).scores
    moved = [(inputs.to(device, torch.float32), labels.to(device)) for inputs, labels in batches]
    before = torch.cuda.get_rng_state_all() if device == "cuda" else []
    scores = criterion(probe_of(model, *moved), layers_of(model)).scores
    assert {score.device.type for score in scores} == {device}
    after = torch.cuda.get_rng_state_all() if device == "cuda" else []
    assert all(map(torch.equal, before, after))
    found = [score.double().cpu() for score in scores]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3 * float(flat(expected).abs().max()))


def test_magnitude_needs_no_probe():
    model = mlp(3, 2)
    found = magnitude(None, layers_of(model), 1)
    assert torch.equal(found.scores[0], model[0].weight.detach().abs())
    assert found.forward_passes == 0


# -- costs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("criterion", "options", "passes"),
    [
        (snip, {}, 3 * 5),
        (snip, {"batches": 2}, 3 * (5 + 2)),
        (gradient, {"batches": 2}, 3 * (5 + 2)),
        (grasp, {}, 9 * 5),
        (grasp, {"batches": 2}, 12 * (5 + 2)),
        (synflow, {}, 3 * 100),
        (synflow, {"rounds": 7}, 3 * 7),
    ],
)
def test_costs_are_those_of_the_passes_made(criterion, options, passes):
    """Measured: a layer more makes as many FLOPs more as the passes through it (the first layer saves some)."""
    measured = []
    for depth in (3, 4):
        model = mlp(*[8] * depth, bias=False)
        with FlopCounterMode(display=False) as counter:
            found = criterion(probe_of(model, data(5, 8), data(2, 8)), layers_of(model), 30, **options)
        assert found.forward_passes == passes
        measured.append(counter.get_total_flops())
    assert measured[1] - measured[0] == passes * 2 * 8 * 8


class Held:
    """A tensor that autograd keeps for the backward pass; ``most`` elements were kept at a time."""

    now = most = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.now += tensor.numel()
        Held.most = max(Held.most, Held.now)

    def __del__(self):
        Held.now -= self.tensor.numel()


@pytest.mark.parametrize(("criterion", "few"), [(snip, 1), (grasp, 2)])
def test_the_graph_of_one_batch_is_in_memory_at_a_time(criterion, few):
    model, most = mlp(4, 50, 50, 3), []
    probe = probe_of(model, *[data(20, seed=i) for i in range(5)])
    for count in (few, 5):
        Held.now = Held.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            criterion(probe, layers_of(model), 1, batches=count)
        most.append(Held.most)
    assert most[0] == most[1] > 0


def test_a_compiled_model_is_probed_uncompiled():
    """Compiled graphs have no second derivative; nor should three passes wait for a compiler."""
    model, batch = mlp(4, 5, 3), data(2)
    expected = grasp(probe_of(model, batch), layers_of(model), 1).scores
    model.compile(backend=lambda *_: pytest.fail("compiled"))
    assert all(map(torch.equal, grasp(probe_of(model, batch), layers_of(model), 1).scores, expected))


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", [snip, gradient, grasp])
def test_too_few_batches(criterion):
    model = mlp(4, 5, 3)
    with pytest.raises(ValueError, match=r"batches=3, but the training data gives 2: .*ask for at most 2"):
        criterion(probe_of(model, data(2), data(2)), layers_of(model), 1, batches=3)
    with pytest.raises(ValueError, match=r"batches=1, but the training data gives 0: .*or take synflow"):
        criterion(probe_of(model), layers_of(model), 1)
    for wrong, told in ((0, ">= 1"), (-1, ">= 1"), (1.0, "a whole number")):
        with pytest.raises(ValueError, match=f"batches={wrong}: must be {told}"):
            criterion(probe_of(model, data(2)), layers_of(model), 1, batches=wrong)


def test_more_batches_than_asked_for_are_not_read():
    model = mlp(4, 5, 3)

    def generous(n):
        yield from [data(2)] * n
        pytest.fail("read on")

    assert snip(Probe(model, generous, cross_entropy), layers_of(model), 1, batches=3).forward_passes == 18


@any_criterion
def test_a_layer_that_is_not_used(criterion):
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "spare": nn.Linear(4, 3)})
    model.forward = model["used"].forward
    with pytest.raises(ValueError, match="no gradient for layer spare, which the model does not use: exclude"):
        criterion(probe_of(model, *[data(2, dtype=torch.float32)] * 2), layers_of(model))


@pytest.mark.parametrize(
    ("criterion", "where"),
    [("snip", "layers 0, 2"), ("gradient", "layer 0"), ("grasp", "layer 2"), ("synflow", "layers 0, 2")],
)
def test_a_layer_that_cannot_be_ranked(criterion, where):
    """A last layer of zeros has a gradient, but lets none through; what it hides has a second derivative."""
    model = mlp(4, 5, 3)
    nn.init.zeros_(model[2].weight)
    with pytest.raises(
        ValueError, match=rf"{criterion}: all scores are zero in {where}, so.*\(those of layer 2\) start"
    ):
        CRITERIA[criterion](probe_of(model, data(2), data(2)), layers_of(model))


@any_criterion
def test_layers_of_another_model(criterion):
    model = mlp(4, 5, 3)
    stranger = Layer("elsewhere", nn.Parameter(torch.ones(3, 5)))
    with pytest.raises(ValueError, match="no parameters of this model: layers elsewhere; take Scope"):
        criterion(probe_of(model, data(2), data(2)), [*layers_of(model), stranger])


def test_wrong_losses_and_options():
    model = mlp(4, 5, 3)
    layers, probe = layers_of(model), probe_of(model, data(2))
    by_sample = probe_of(model, data(2), loss=lambda *pair: cross_entropy(*pair, reduction="none"))
    with pytest.raises(ValueError, match=r"the loss has shape \(2,\): it must be one number"):
        snip(by_sample, layers, 1)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"temperature={wrong}: must be (a finite number )?> 0"):
            grasp(probe, layers, 1, temperature=wrong)
    with pytest.raises(ValueError, match="there are no layers to rank"):
        snip(probe, [], 1)
    sizes = iter([2, 2, 2, 3])
    with pytest.raises(ValueError, match="the first 2 batches had 4 samples, then 5: always give the same"):
        grasp(Probe(model, lambda n: (data(next(sizes)) for _ in range(n)), cross_entropy), layers, 1, batches=2)


@pytest.mark.parametrize(
    ("keep", "options", "message"),
    [
        (1, {}, "cannot keep 1 of 35 weights in 2 layers"),
        (36, {}, "cannot keep 36 of 35 weights in 2 layers"),
        ([5], {}, r"keep=\[5\]: give one count a layer, from 1 to its size \[20, 15\]"),
        ([0, 5], {}, r"keep=\[0, 5\]: give one count a layer"),
        ([5, 16], {}, r"keep=\[5, 16\]: give one count a layer"),
        (9, {"rounds": 0}, "rounds=0: must be >= 1"),
    ],
)
def test_impossible_counts(keep, options, message):
    model = mlp(4, 5, 3)
    with pytest.raises(ValueError, match=message):
        synflow(probe_of(model, data(2)), layers_of(model), keep, **options)


def test_synflow_needs_a_batch_for_its_shape_only():
    model = mlp(4, 5, 3, activation=nn.ReLU)
    with pytest.raises(ValueError, match="takes the shape of its input from the first training batch"):
        synflow(probe_of(model), layers_of(model), 9)
    inputs, labels = data(2)
    plain = synflow(probe_of(model, (inputs, labels)), layers_of(model), 9, rounds=2)
    other = synflow(probe_of(model, (inputs[:1] * torch.nan, None), loss=None), layers_of(model), 9, rounds=2)
    assert all(map(torch.equal, plain.scores, other.scores))


# -- real digits, the project's models ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    reader = registry.find("data", "digits").load()
    cache = str(tmp_path_factory.mktemp("cache"))
    return load("digits", reader, root="", cache=cache, download=False, size=None)


@pytest.mark.parametrize("name", ["lenet_300_100", "resnet20"])
def test_real_digits(digits, name):
    torch.manual_seed(0)
    model = registry.find("model", name).load()(digits.shape, digits.classes)
    train = Batches(digits.train, batch_size=64, shuffle=True)

    def first(n):
        return (batch for _, batch in zip(range(n), train.epoch(0), strict=False))

    layers = layers_of(model)
    keep = round(0.05 * sum(sizes_of(model)))
    probe, kept = Probe(model, first, cross_entropy), {}
    for criterion, options in ((snip, {"batches": 2}), (grasp, {"batches": 2}), (synflow, {"rounds": 20})):
        scores = criterion(probe, layers, keep, **options).scores
        masks = pooled_top_k(scores, keep, everywhere(scores))
        assert sum(int(mask.sum()) for mask in masks) == keep
        kept[criterion] = flat(masks)
    model.train()
    sum(cross_entropy(model(images), labels) for images, labels in first(2)).backward()
    plain = [(layer.weight * layer.weight.grad / 2).detach().abs() for layer in layers]
    torch.testing.assert_close(snip(probe, layers, keep, batches=2).scores, plain, rtol=1e-4, atol=1e-8)
    # They agree more than by chance (5 % of what they keep), and are not the same.
    for other in (grasp, synflow):
        both = int((kept[snip] & kept[other]).sum())
        assert 0.06 * keep < both < 0.9 * keep
