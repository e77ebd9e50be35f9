"""Repairs of first masks: against an explicit graph, a second way to find paths, arithmetic, and the zoo."""

import math
from collections import defaultdict
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from dst import registry
from dst.sparsity import Scope, Sparsifier
from dst.sparsity.initial_masks import FirstParts, Start, first_masks
from dst.sparsity.options import Repair
from dst.sparsity.pattern.unstructured import unstructured
from dst.sparsity.probe import Probe
from dst.sparsity.repair.flow import check_enough, least_edges, mend_flow
from dst.sparsity.repair.orthogonal import mend_orthogonal
from dst.sparsity.repair.paths import followed
from tests.sparsity.reachable import Tape, arrays, problems, silent_edges


def probe_of(model, *shape):
    batch = torch.randn(4, *shape), torch.tensor([0, 1, 2, 0])
    return Probe(model, lambda n: [batch][:n], nn.functional.cross_entropy)


def built(name, *shape, classes=10):
    torch.manual_seed(0)
    options = {"hidden": [24, 17]} if name == "mlp" else {}
    return registry.find("model", name).load()(shape, classes, **options)


def drawn(model, density, distribution="uniform", *shape, init="random", seed=0):
    layers = Scope().layers(model)
    parts = FirstParts(
        registry.find("distribution", distribution).load(), registry.find("init", init).load(), unstructured
    )
    start = Start(layers, parts.patterns(layers), seed, probe_of(model, *shape))
    return layers, first_masks(start, parts, density)


def total(masks):
    return sum(int(mask.sum()) for mask in masks)


def on_paths(model, layers, masks, *shape):
    """Return, for each layer, which weights join what the input reaches to what reaches the output."""
    with followed(probe_of(model, *shape), layers) as paths:
        return [ways > 0 for ways in paths.through(masks)]


# -- which weights lie on a path ---------------------------------------------------------------------------------------


class Graph(nn.Module):
    """A sum, a concatenation, a layer used twice, a product by a gate; every unit is a node of an explicit graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(*sizes) for sizes in ((4, 3), (3, 3), (6, 2)))
        self.norm, self.scale = nn.LayerNorm(3), nn.Parameter(torch.randn(3))

    def forward(self, x):
        h = torch.relu(self.norm(self.a(x)))
        twice = torch.tanh(self.b(torch.sigmoid(self.b(h)) * 0 + self.b(h))) * self.scale
        return self.c(torch.cat([h + twice, twice], 1))


def edges_of_graph():
    """Return (from, to, layer, position) of every weight, and the joints without a weight."""
    weights, joints = [], []
    for o in range(3):
        weights += [(f"x{i}", f"h{o}", "a", (o, i)) for i in range(4)]
        for i in range(3):
            weights += [(f"h{i}", f"m{o}", "b", (o, i)), (f"m{i}", f"t{o}", "b", (o, i))]
        joints += [(f"h{o}", f"s{o}"), (f"t{o}", f"s{o}")]
    for o in range(2):
        weights += [(f"s{i}", f"y{o}", "c", (o, i)) for i in range(3)]
        weights += [(f"t{i}", f"y{o}", "c", (o, i + 3)) for i in range(3)]
    return weights, joints


def walked(begin, edges):
    """Return all nodes that can be reached, breadth first."""
    after = defaultdict(list)
    for tail, head in edges:
        after[tail].append(head)
    seen, queue = set(begin), list(begin)
    while queue:
        queue += [node for node in after[queue.pop(0)] if node not in seen]
        seen |= set(queue)
    return seen


def expected_of_graph(masks):
    weights, joints = edges_of_graph()
    active = [(tail, head) for tail, head, layer, place in weights if masks[layer][place]] + joints
    reached = walked([f"x{i}" for i in range(4)], active)
    leading = walked(["y0", "y1"], [(head, tail) for tail, head in active])
    found = {name: np.zeros(mask.shape, dtype=bool) for name, mask in masks.items()}
    for tail, head, layer, place in weights:
        found[layer][place] |= tail in reached and head in leading
    return found


class Plain(Graph):
    """The same without a gate, which lets everything through."""

    def forward(self, x):
        h = torch.relu(self.norm(self.a(x)))
        twice = torch.tanh(self.b(nn.functional.gelu(self.b(h)))) * self.scale
        return self.c(torch.cat([h + twice, twice - 0 * twice.detach()], 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.05, 0.9))
@example(0, 0.0)
@example(0, 1.0)
def test_weights_on_paths_are_those_of_an_explicit_graph(seed, density):
    torch.manual_seed(0)
    model, random = Plain(), np.random.default_rng(seed)
    layers = Scope().layers(model)
    masks = {layer.name: random.random(tuple(layer.weight.shape)) < density for layer in layers}
    found = on_paths(model, layers, [torch.from_numpy(mask) for mask in masks.values()], 4)
    expected = expected_of_graph(masks)
    for layer, alive in zip(layers, found, strict=True):
        assert np.array_equal(alive.numpy(), expected[layer.name]), layer.name


SMALL = [
    *[("mlp", (1, 8, 8)), ("lenet_5", (1, 20, 20)), ("alexnet_s", (3, 16, 16)), ("vgg_c", (1, 8, 8))],
    *[("resnet20", (1, 8, 8)), ("wrn_22_2", (1, 8, 8))],
]


@pytest.mark.parametrize("density", [0.005, 0.05, 1.0])
@pytest.mark.parametrize(("name", "shape"), SMALL, ids=[name for name, _ in SMALL])
def test_weights_on_paths_are_those_of_boolean_maps(name, shape, density):
    model = built(name, *shape)
    layers = Scope().layers(model)
    generator = torch.Generator().manual_seed(1)
    masks = [torch.rand(layer.weight.shape, generator=generator) < density for layer in layers]
    expected = Tape(model, shape, arrays(layers, masks)).alive
    for layer, alive in zip(layers, on_paths(model, layers, masks, *shape), strict=True):
        assert np.array_equal(alive.numpy(), expected[layer.name]), layer.name


def test_no_depth_makes_a_path_vanish_or_overflow():
    """200 layers: sums of ones would be 8 ** 200, and a weight of 1e-9 to that power is nothing."""
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(200)))
    for layer in model:
        layer.weight.data.fill_(1e-9)
    layers = Scope().layers(model)
    everywhere = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    assert all(alive.all() for alive in on_paths(model, layers, everywhere, 8))
    line = [torch.eye(8, dtype=torch.bool) & (torch.arange(8) == 3) for _ in layers]
    for layer, alive in zip(layers[1:-1], on_paths(model, layers, line, 8)[1:-1], strict=True):
        assert alive.nonzero().tolist() == [[3, 3]], layer.name


class Attends(nn.Module):
    """Self-attention of three projections; one sequence is a row of tokens."""

    def __init__(self, function):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))
        self.function = function

    def forward(self, x):
        return self.out(self.function(self.q(x), self.k(x), self.v(x))).mean(1)


def by_hand(q, k, v):
    return torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1) @ v


@pytest.mark.parametrize("function", [by_hand, nn.functional.scaled_dot_product_attention], ids=["by hand", "torch's"])
def test_a_query_is_alive_where_it_meets_a_key_and_a_value_comes_through(function):
    model = Attends(function)
    layers = Scope().layers(model)
    masks = {name: torch.zeros(4, 4, dtype=torch.bool) for name in ("q", "k", "v", "out")}
    masks["q"][0, 1] = masks["q"][2, 1] = masks["k"][2, 3] = masks["v"][3, 0] = masks["out"][1, 3] = True
    alive = dict(zip(masks, on_paths(model, layers, [*masks.values()], 5, 4), strict=True))
    assert (alive["q"] & masks["q"]).nonzero().tolist() == [[2, 1]]  # unit 0 of the queries meets no key
    assert (alive["k"] & masks["k"]).nonzero().tolist() == [[2, 3]]
    assert (alive["v"] & masks["v"]).nonzero().tolist() == [[3, 0]]
    assert alive["k"].any(1).tolist() == [True, False, True, False]  # a key may be joined to the queries that are there
    masks["v"][3, 0] = False
    alive = dict(zip(masks, on_paths(model, layers, [*masks.values()], 5, 4), strict=True))
    assert not torch.cat([alive["q"], alive["k"]]).any()  # there is nothing that they could mix


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.position = nn.Linear(6, 8), nn.Parameter(torch.randn(1, 5, 8))
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x) + self.position], 1)
        return self.head(self.blocks(tokens)[:, 0])


def test_flow_is_mended_in_a_transformer():
    torch.manual_seed(0)
    model = Encoder()
    layers = Scope().layers(model)
    masks = [torch.rand_like(layer.weight) < 0.05 for layer in layers]
    found = mend_flow(probe_of(model, 5, 6), layers, masks, move=False)
    alive = on_paths(model, layers, found.masks, 5, 6)
    for layer, mask, living in zip(layers, found.masks, alive, strict=True):
        assert (mask & ~living).sum() == 0, layer.name
        assert mask.any(0).all(), layer.name
        assert mask.any(1).all(), layer.name


def test_what_feeds_the_output_without_an_input_is_no_path():
    """Biases, norms and positions make units that are not zero; none of them begins at the input."""
    model = Encoder()
    layers = Scope().layers(model)
    masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    masks[0][:] = False
    assert not any(alive.any() for alive in on_paths(model, layers, masks, 5, 6)[1:])


def test_what_cannot_be_followed_is_said():
    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.other(torch.argsort(self.one(x)).to(x.dtype) * 0)

    model = Opaque()
    layers = Scope().layers(model)
    masks = [torch.rand_like(layer.weight) < 0.5 for layer in layers]
    with pytest.raises(ValueError, match=r"no gradient for layer one|no way from input to output"):
        mend_flow(probe_of(model, 3), layers, masks, move=False)


def test_following_leaves_model_and_random_state_alone():
    model = built("resnet20", 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    layers, masks = drawn(model, 0.02, "uniform", 1, 8, 8)
    probe, copies = probe_of(model, 1, 8, 8), [mask.clone() for mask in masks]
    torch.set_rng_state(state)
    mend_flow(probe, layers, masks, move=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(map(torch.equal, masks, copies))
    assert model.training


# -- mended masks ------------------------------------------------------------------------------------------------------


@cache
def zoo(name, shape):
    return built(name, *shape)


ZOO = [
    *[("mlp", (1, 8, 8), 0.08), ("lenet_300_100", (1, 28, 28), 0.008), ("lenet_5", (1, 20, 20), 0.02)],
    *[("mlp_cifar10", (3, 8, 8), 0.005), ("alexnet_s", (3, 32, 32), 0.002), ("vgg_c", (1, 8, 8), 0.002)],
    *[("vgg16", (3, 16, 16), 0.001), ("resnet18", (1, 8, 8), 0.001), ("resnet20", (1, 8, 8), 0.02)],
    *[("resnet50_cifar", (3, 4, 4), 0.002), ("resnet18_imagenet", (3, 32, 32), 0.001), ("wrn_22_2", (1, 8, 8), 0.003)],
]


@pytest.mark.parametrize("flow", ["add", "move"])
@pytest.mark.parametrize(("name", "shape", "density"), ZOO, ids=[name for name, *_ in ZOO])
def test_nothing_is_dead_in_a_mended_network(name, shape, density, flow):
    model = zoo(name, shape)
    layers, masks = drawn(model, density, "uniform", *shape)
    assert problems(model, shape, layers, masks)
    found = mend_flow(probe_of(model, *shape), layers, masks, move=flow == "move")
    assert problems(model, shape, layers, found.masks) == []
    rise = total(found.masks) - total(masks)
    assert rise == sum(layer.added - layer.removed for layer in found.layers)
    assert rise == 0 if flow == "move" else rise > 0


@pytest.mark.parametrize("flow", ["add", "move"])
def test_every_edge_of_a_mended_transformer_has_a_gradient(flow):
    """Nothing of it is cut off by a ReLU, so that no edge on a path has a gradient of zero in the real network."""
    model = built("vit_tiny", 1, 8, 8)
    layers, masks = drawn(model, 0.008, "uniform", 1, 8, 8)
    found = mend_flow(probe_of(model, 1, 8, 8), layers, masks, move=flow == "move")
    assert sum(layer.dead_units for layer in found.layers) > 100
    assert total(found.masks) == total(masks) if flow == "move" else total(found.masks) > total(masks)
    for layer, mask in zip(layers, found.masks, strict=True):
        layer.weight.data *= mask
        assert mask.any(0).all()
        assert mask.flatten(1).any(1).all()
    model.double()
    generator = torch.Generator().manual_seed(0)
    logits = model(torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64))
    (logits * torch.randn(logits.shape, generator=generator, dtype=torch.float64)).sum().backward()
    for layer, mask in zip(layers, found.masks, strict=True):
        assert torch.count_nonzero(layer.weight.grad[mask]) == mask.sum(), layer.name


@pytest.mark.parametrize("flow", ["add", "move"])
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk", "balanced", "pyramidal", "snip", "synflow"])
def test_every_ratio_is_mended(distribution, flow):
    shape = (1, 8, 8)
    model = built("wrn_22_2", *shape)
    layers, masks = drawn(model, 0.005, distribution, *shape)
    found = mend_flow(probe_of(model, *shape), layers, masks, move=flow == "move")
    assert problems(model, shape, layers, found.masks) == []
    assert (total(found.masks) == total(masks)) == (flow == "move")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.0, 0.5), st.booleans())
def test_any_masks_are_mended(seed, density, move):
    """Layers without any edge, and full ones, among them; with fewer edges than units ``move`` names the density."""
    shape, random = (2, 6, 6), np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(
        *[nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 7, 3, 2, 1)],
        *[nn.ReLU(), nn.Flatten(), nn.Linear(28, 6), nn.ReLU(), nn.Linear(6, 3)],
    )
    layers = Scope().layers(model)
    densities = random.choice([0.0, density, density, 1.0], len(layers))
    masks = [
        torch.from_numpy(random.random(tuple(layer.weight.shape)) < d)
        for layer, d in zip(layers, densities, strict=True)
    ]
    least = 5 + 7 + 28 + 6
    mend = partial(mend_flow, probe_of(model, *shape), layers, masks, move=move, seed=seed)
    if move and total(masks) < least:
        with pytest.raises(ValueError, match=rf"flow=move: {total(masks)} active weights.*need {least} to have one"):
            mend()
        return
    found = mend()
    assert problems(model, shape, layers, found.masks) == []
    if move:
        assert total(found.masks) == total(masks)
    for layer, old, new in zip(found.layers, masks, found.masks, strict=True):
        assert layer.added == int((new & ~old).sum())
        assert layer.removed == int((old & ~new).sum())


def test_grouped_and_transposed_convolutions_are_mended_by_group():
    torch.manual_seed(0)
    model = nn.Sequential(
        *[nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2, groups=2), nn.ReLU()],
        *[nn.Conv2d(6, 6, 3, groups=6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)],
    )
    layers = Scope().layers(model)
    masks = [torch.zeros_like(layer.weight, dtype=torch.bool) for layer in layers]
    found = mend_flow(probe_of(model, 4, 4, 4), layers, masks, move=False)
    assert [int(mask.sum()) for mask in found.masks] == [8, 8, 6, 6]  # the larger side of each group, and no more
    assert least_edges(layers) == 28
    for layer, mask, alive in zip(layers, found.masks, on_paths(model, layers, found.masks, 4, 4, 4), strict=True):
        assert (mask & ~alive).sum() == 0, layer.name
        assert mask.flatten(1).any(1).all(), layer.name


def test_alive_masks_stay_as_they_are():
    model = built("mlp", 1, 8, 8)
    layers, masks = drawn(model, 0.7, "uniform", 1, 8, 8)
    found = mend_flow(probe_of(model, 1, 8, 8), layers, masks, move=True)
    assert all(map(torch.equal, masks, found.masks))
    assert {(layer.dead_units, layer.dead_edges, layer.added, layer.removed) for layer in found.layers} == {(0,) * 4}
    assert found.forward_passes == 6  # the full network and the masked one, a forward and a backward pass each


def test_a_chain_without_edges_gets_as_few_as_its_units_need():
    model = nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4))
    layers = Scope().layers(model)
    masks = [torch.zeros_like(layer.weight, dtype=torch.bool) for layer in layers]
    found = mend_flow(probe_of(model, 5), layers, masks, move=False)
    assert [int(mask.sum()) for mask in found.masks] == [5, 4]
    assert [(layer.dead_units, layer.added) for layer in found.layers] == [(8, 5), (7, 4)]


def test_edges_move_within_their_layer_first():
    """The second layer has 5 edges for its 4 units, in one row; the first has none to give away and gets none."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 4, bias=False))
    layers = Scope().layers(model)
    one = torch.ones(2, 2, dtype=torch.bool)
    other = torch.tensor([[1, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.bool)
    found = mend_flow(probe_of(model, 2), layers, [one, other], move=True)
    assert torch.equal(found.masks[0], one)
    assert int(found.masks[1].sum()) == 5
    assert found.masks[1].any(1).all()
    assert (found.layers[1].added, found.layers[1].removed) == (1, 1)


def test_a_layer_gets_of_others_just_what_its_units_lack():
    """6 edges for 8 units here, 14 for 8 there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    layers = Scope().layers(model)
    masks = [torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8, dtype=torch.bool)]
    masks[0].view(-1)[:6], masks[1].view(-1)[:14] = True, True
    found = mend_flow(probe_of(model, 8), layers, masks, move=True)
    assert [int(mask.sum()) for mask in found.masks] == [8, 12]


def test_the_last_edges_suffice():
    """As many edges as units, in the worst places: the repair finds a perfect matching."""
    for seed in range(10):
        model = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
        layers = Scope().layers(model)
        masks = [torch.zeros(9, 9, dtype=torch.bool) for _ in layers]
        masks[0][0], masks[1][:, 4] = True, True
        found = mend_flow(probe_of(model, 9), layers, masks, move=True, seed=seed)
        assert all((mask.sum(0) == 1).all() and (mask.sum(1) == 1).all() for mask in found.masks)


@pytest.mark.parametrize(("name", "least", "nominal"), [("vgg16", 4_736, 14_716), ("resnet18", 5_312, 11_164)])
def test_the_least_number_of_edges_is_the_published_one(name, least, nominal):
    with torch.device("meta"):
        model = registry.find("model", name).load()((3, 32, 32), 10)
    layers = Scope().layers(model)
    assert least_edges(layers) == least
    assert round(0.001 * sum(layer.size for layer in layers)) == nominal
    check_enough(layers, least)


def test_wrn_22_2_cannot_have_a_thousandth_of_its_edges():
    with torch.device("meta"):
        layers = Scope().layers(registry.find("model", "wrn_22_2").load()((3, 32, 32), 10))
    size = sum(layer.size for layer in layers)
    assert (least_edges(layers), round(0.001 * size)) == (1_712, 1_077)
    told = "1,077 active weights are too few at first: the units of the 23 layers need 1,712"
    with pytest.raises(ValueError, match=told) as error:
        check_enough(layers, 1_077)
    named = float(str(error.value).partition("a density of ")[2].partition(" ")[0])
    assert 1_712 <= round(named * size) < 1_712 * 1.02


def test_new_edges_are_drawn_at_random_from_the_seed():
    model = built("lenet_300_100", 1, 28, 28)
    layers, masks = drawn(model, 0.01, "er", 1, 28, 28)
    one, same, other = (
        mend_flow(probe_of(model, 1, 28, 28), layers, masks, move=True, seed=s).masks for s in (1, 1, 2)
    )
    assert all(map(torch.equal, one, same))
    added = [[int((b & ~a).sum()) for a, b in zip(masks, found, strict=True)] for found in (one, other)]
    common = sum(int((a & b & ~m).sum()) for a, b, m in zip(one, other, masks, strict=True))
    assert common < 0.2 * min(map(sum, added))


def test_edges_that_only_meet_padding_are_told_and_do_not_count():
    """A 3x3 kernel on a map of one pixel has one edge that is not idle."""
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(2, 2))
    layers = Scope().layers(model)
    masks = [torch.zeros(2, 2, 3, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)]
    masks[0][:, :, 0, 0] = True
    found = mend_flow(probe_of(model, 2, 1, 1), layers, masks, move=False)
    assert (found.layers[0].added, found.layers[0].removed, found.layers[0].idle) == (2, 0, 4)
    assert int(found.masks[0][:, :, 1, 1].sum()) == 2
    moved = mend_flow(probe_of(model, 2, 1, 1), layers, masks, move=True)
    assert (total(moved.masks), moved.layers[0].added, moved.layers[0].removed) == (8, 2, 2)


def test_only_weights_that_are_not_zero_become_edges():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    layers = Scope().layers(model)
    masks = [torch.zeros(2, 3, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)]
    model[0].weight.data = torch.tensor([[0.0, 1, 0], [1, 0, 1]])
    found = mend_flow(probe_of(model, 3), layers, masks, move=False)
    assert found.masks[0].tolist() == [[False, True, False], [True, False, True]]
    model[0].weight.data[0, 1] = 0
    with pytest.raises(ValueError, match=r"layer 0: a unit without edges cannot be given one.*are zero"):
        mend_flow(probe_of(model, 3), layers, masks, move=False)


# -- in a sparsifier ---------------------------------------------------------------------------------------------------


def sparsifier_of(model, probe, **options):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    defaults = {"density": 0.01, "distribution": "uniform", "probe": probe}
    return Sparsifier(model, optimizer, drop=None, grow=None, **{**defaults, **options})


@pytest.mark.parametrize("flow", ["add", "move"])
def test_new_edges_have_their_initial_value_and_a_gradient(flow):
    """Except where the edge's input or its unit is silent on the batch, which is where ReLU lets nothing through."""
    model = built("vgg16", 3, 16, 16)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = probe_of(model, 3, 16, 16)
    _, before = drawn(model, 0.002, "uniform", 3, 16, 16)
    sparsifier = sparsifier_of(model, probe, density=0.002, repair=Repair(flow))
    added = [now & ~was for now, was in zip(sparsifier.topology.masks, before, strict=True)]
    silent = silent_edges(model, sparsifier.topology.layers, *next(iter(probe.batches(1))))
    counted = 0
    for layer, new, quiet in zip(sparsifier.topology.layers, added, silent, strict=True):
        assert torch.equal(layer.weight[new], initial[f"{layer.name}.weight"][new])
        assert (layer.weight[new] != 0).all()
        assert ((layer.weight.grad != 0) | quiet)[new].all(), layer.name
        counted += int((new & ~quiet).sum())
    assert counted > 0.5 * total(added) > 500


def test_the_density_rises_or_stays_as_reported():
    rises = {}
    for flow in ("none", "add", "move"):
        model = built("lenet_300_100", 1, 28, 28)
        sparsifier = sparsifier_of(model, probe_of(model, 1, 28, 28), repair=Repair(flow))
        rises[flow] = sparsifier.topology.active - 2_662
        assert sparsifier.topology.counts == [report.active for report in sparsifier.layers]
        assert sum(int((layer.weight != 0).sum()) for layer in sparsifier.topology.layers) == sparsifier.topology.active
        mended = sparsifier.mended
        assert (mended is None) == (flow == "none")
        assert sparsifier.forward_passes == (mended.forward_passes if mended else 0)
        if mended:
            assert rises[flow] == sum(row["added"] - row["removed"] for row in mended.report()["flow"])
    assert rises["none"] == rises["move"] == 0 < rises["add"]


@pytest.mark.parametrize("init", ["bernoulli", "magnitude", "prune_uniform", "prune_global"])
def test_any_init_is_mended(init):
    shape, own = (1, 8, 8), init.startswith("prune")
    model = built("resnet20", *shape)
    options = {"density": None, "distribution": None} if own else {"density": 0.01}
    chosen = registry.find("init", init).load()
    chosen = partial(chosen, rate=0.99) if own else chosen
    sparsifier = sparsifier_of(model, probe_of(model, *shape), init=chosen, repair=Repair("add"), **options)
    assert sum(row.added for row in sparsifier.mended.flow) > 0
    assert problems(model, shape, sparsifier.topology.layers, sparsifier.topology.masks) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"repair": Repair("add"), "pattern": "constant_fan_in"}, "flow=add mends single weights, and this pattern"),
        ({"repair": Repair(orthogonal=True), "pattern": "constant_fan_in"}, "orthogonal=true mends single weights"),
        ({"repair": Repair("add"), "probe": None}, "flow=add follows the network from an input on.*give.*a probe"),
        ({"repair": Repair("move"), "distribution": "dense", "density": None}, "flow=move would be ignored: all"),
        (
            {"repair": Repair("move"), "density": 0.001},
            "flow=move: 266 active weights are too few.*a density of 0.0045",
        ),
        (
            {
                **{"repair": Repair("add"), "density": None, "distribution": None},
                "init": partial(registry.find("init", "prune_structured").load(), rate=0.5),
            },
            "flow=add would bring back the units that this init removes on purpose",
        ),
    ],
)
def test_repairs_that_cannot_be_are_refused(options, told):
    model = built("lenet_300_100", 1, 28, 28)
    with pytest.raises(ValueError, match=told):
        sparsifier_of(model, **{"probe": probe_of(model, 1, 28, 28), **options})


# -- isometry ----------------------------------------------------------------------------------------------------------


def off(matrix):
    """Return the distance of a matrix from an isometry, by its singular values."""
    values = torch.linalg.svdvals(matrix.detach().double())
    return float((values.square() - 1).square().sum().sqrt())


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (6, 5, 3, 3), (20, 2, 3, 3)])
def test_masked_weights_come_nearer_to_an_isometry(shape):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=False) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], 3)
    model = nn.Sequential(layer)
    (handle,) = Scope().layers(model)
    mask, initial = torch.rand(shape) < 0.3, layer.weight.detach().clone()
    (report,) = mend_orthogonal([handle], [mask])
    assert report.before == pytest.approx(off((initial * mask).flatten(1)), rel=1e-4)
    assert report.after == pytest.approx(off((layer.weight * mask).flatten(1)), rel=1e-2, abs=1e-4)
    assert report.after < 0.1 * report.before
    assert torch.equal(layer.weight[~mask], initial[~mask])


def test_lonely_edges_become_one_and_empty_rows_stay():
    """Two rows with an edge each, and one without: that error of 1 cannot be mended."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    layers = Scope().layers(model)
    mask = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    model[0].weight.data = torch.tensor([[0.1, 5, 5, 5], [5, -0.2, 5, 5], [5, 5, 5, 5]])
    (report,) = mend_orthogonal(layers, [mask])
    assert model[0].weight[mask].tolist() == pytest.approx([1, -1], abs=0.01)
    assert report.before == pytest.approx(math.sqrt(0.99**2 + 0.96**2 + 1))
    assert report.after == pytest.approx(1, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0, 1),
    st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e15]),
    st.integers(0, 999),
)
def test_isometry_is_never_worse_and_touches_active_weights_only(rows, columns, density, scale, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    model[0].weight.data.mul_(scale)
    mask, initial = torch.rand(rows, columns) < density, model[0].weight.detach().clone()
    (report,) = mend_orthogonal(Scope().layers(model), [mask])
    assert not report.after > report.before
    assert torch.equal(model[0].weight[~mask], initial[~mask])
    assert model[0].weight.isfinite().all()
    if report.after == report.before:
        assert torch.equal(model[0].weight, initial)


def test_an_isometry_stays_as_it_is():
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    model[0].weight.data = torch.eye(6)
    (report,) = mend_orthogonal(Scope().layers(model), [torch.eye(6, dtype=torch.bool)])
    assert (report.before, report.after) == (0, 0)
    assert torch.equal(model[0].weight, torch.eye(6))


def test_each_group_is_a_matrix_of_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    layers = Scope().layers(model)
    (report,) = mend_orthogonal(layers, [torch.ones(4, 1, 3, 3, dtype=torch.bool)])
    assert report.after < 0.05
    assert model[0].weight.flatten(1).norm(dim=1).tolist() == pytest.approx([1] * 4, abs=0.02)


def test_both_repairs_go_together_and_flow_comes_first():
    model = built("lenet_300_100", 1, 28, 28)
    sparsifier = sparsifier_of(model, probe_of(model, 1, 28, 28), repair=Repair("move", orthogonal=True))
    report = sparsifier.mended.report()
    assert [*report] == ["flow", "orthogonal"]
    for row, layer in zip(report["orthogonal"], sparsifier.topology.layers, strict=True):
        assert row["after"] < row["before"]
        assert row["after"] == pytest.approx(off(layer.weight.detach()), rel=1e-2, abs=1e-3)
