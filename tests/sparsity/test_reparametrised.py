"""Learned masks: states are those of plain sparse weights, any layer can be held, and edge-popup is exactly that."""

import copy
import gc
import warnings
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dst.network.places import parameter_count, places
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity.reparametrize import edge_popup, soft_threshold
from dst.sparsity.select import count_true
from dst.sparsity.update import topology_update
from dst.sparsity.weights.edge_popup import EdgePopup, active_counts
from dst.sparsity.weights.reparametrised import Edges
from dst.training.decay import parameter_groups
from tests.states import plain, same, states_of

POPUP = partial(edge_popup, density=0.2)
SOFT = partial(soft_threshold, threshold_init=-4.0, threshold_decay=0.001)
BOTH = pytest.mark.parametrize("learn", [POPUP, SOFT], ids=["edge_popup", "soft_threshold"])


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 3), nn.Flatten(), nn.Linear(192, 5)
    )


def learning(model, learn=POPUP, *, density=0.5, optimizer=None, **options):
    """Return a sparsifier that learns masks, and the optimizer that trains it."""
    sparsifier = Sparsifier(model, None, density=density, distribution="uniform", reparametrize=learn, **options)
    made = (optimizer or partial(torch.optim.SGD, lr=0.05, momentum=0.9))(
        parameter_groups(model, "all", sparsifier.weights.parameters, sparsifier.weights.groups)
    )
    sparsifier.attach(made)
    return sparsifier


def train(model, sparsifier, steps=6, shape=(2, 8, 8), convert=lambda inputs: inputs):
    for step in range(steps):
        sparsifier.optimizer.zero_grad()
        generator = torch.Generator().manual_seed(sparsifier.steps)
        dtype = next(model.parameters()).dtype
        inputs = convert(torch.randn(8, *shape, generator=generator).to(dtype))
        outputs = model(inputs)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        (outputs - 1).square().mean().backward()
        sparsifier.step()
    return sparsifier


def assert_sparse_state(model, sparsifier):
    """The state of the model is that of plain weights, zero off the masks in the state of the sparsifier."""
    state, masks = model.state_dict(), sparsifier.state_dict()["masks"]
    names = {id(module): name for name, module in model.named_modules()}
    for layer in sparsifier.topology.layers:
        for place in layer.places:
            prefix = names[id(place.module)]
            found = state[f"{prefix}.{place.attribute}" if prefix else place.attribute]
            assert torch.equal(found, getattr(place.module, place.attribute).detach())
            assert not found[~masks[layer.name]].any()
    return state


# -- states ------------------------------------------------------------------------------------------------------------


@BOTH
def test_the_state_of_a_model_is_that_of_plain_sparse_weights(learn):
    model = net()
    sparsifier = train(model, learning(model, learn))
    state, other = assert_sparse_state(model, sparsifier), net(1)
    assert [*state] == [*other.state_dict()]
    other.load_state_dict(state)
    inputs = torch.randn(4, 2, 8, 8)
    assert torch.equal(model.eval()(inputs), other.eval()(inputs))
    inactive = [~mask for mask in sparsifier.state_dict()["masks"].values()]
    assert all(0 < int(mask.sum()) < mask.numel() for mask in inactive)


@BOTH
def test_a_plain_state_gives_the_weights_that_others_are_computed_from(learn):
    model, given_ = net(), net(7).state_dict()
    sparsifier = learning(model, learn)
    masks = sparsifier.weights.masks
    model.load_state_dict(given_)
    for layer, mask in zip(sparsifier.topology.layers, masks, strict=True):
        key = f"{layer.name}.weight"
        assert torch.equal(layer.weight, given_[key] * mask)
        assert torch.equal(
            model.state_dict()[key] != 0, layer.weight.detach().ne(0) & sparsifier.state_dict()["masks"][layer.name]
        )
    assert torch.equal(model[1].running_mean, given_["1.running_mean"])
    sparsifier.verify()


@BOTH
def test_states_that_do_not_fit_are_refused_by_the_names_of_plain_weights(learn):
    model = net()
    learning(model, learn)
    state, before = net(1).state_dict(), plain(model.state_dict())
    lacking = {key: value for key, value in state.items() if key != "3.weight"}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "3\.weight"\.') as error:
        model.load_state_dict(lacking)
    assert "parametrizations" not in str(error.value)
    assert model.load_state_dict(lacking, strict=False).missing_keys == ["3.weight"]
    model.load_state_dict({key: torch.as_tensor(value) for key, value in net().state_dict().items()})
    with pytest.raises(RuntimeError, match=r"size mismatch for 5\.weight: it is \(5, 3\) there, and \(5, 192\) here"):
        model.load_state_dict({**state, "5.weight": torch.zeros(5, 3)})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "5\.other"'):
        model.load_state_dict({**state, "5.other": torch.zeros(1)})
    assert before is not None


@BOTH
@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.AdamW, lr=0.05)], ids=["sgd", "adamw"])
def test_training_goes_on_from_a_state_bit_by_bit(learn, optimizer):
    whole, begun, resumed = net(), net(), net(3)
    one = train(whole, learning(whole, learn, optimizer=optimizer, count_every=2), 9)
    two = train(begun, learning(begun, learn, optimizer=optimizer, count_every=2), 5)
    states = [copy.deepcopy(part.state_dict()) for part in (begun, two.optimizer, two)]
    three = learning(resumed, learn, optimizer=optimizer, count_every=2, seed=9)
    for part, state in zip((resumed, three.optimizer, three), states, strict=True):
        part.load_state_dict(state)
    three.seed = one.seed
    train(resumed, three, 4)
    assert same(resumed.state_dict(), whole.state_dict())
    assert same(three.state_dict(), one.state_dict())
    assert same(three.optimizer.state_dict(), one.optimizer.state_dict())
    assert [vars(report) for report in three.layers] == [vars(report) for report in one.layers]
    assert three.edge_density == one.edge_density


@BOTH
def test_a_state_of_other_layers_is_refused(learn):
    model, other = net(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    state = learning(model, learn).state_dict()
    with pytest.raises(ValueError, match="layers 0, 1, 3, 5 differ"):
        learning(other, learn).load_state_dict(state)


# -- letting go --------------------------------------------------------------------------------------------------------


def shared():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    return model


@BOTH
@pytest.mark.parametrize("make", [net, shared])
def test_release_leaves_plain_sparse_weights_that_train(learn, make):
    model = make()
    shape = (2, 8, 8) if make is net else (8,)
    sparsifier = train(model, learning(model, learn), shape=shape)
    state, layers = plain(model.state_dict()), sparsifier.topology.layers
    sparsifier.release()
    assert plain(model.state_dict()) == state
    assert all(place.parameter is layer.weight for layer in layers for place in layer.places)
    assert [*model.state_dict()] == [*make().state_dict()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    masks = [layer.weight != 0 for layer in layers]
    again = Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), density=0.1, distribution="uniform")
    assert again.density == pytest.approx(0.1, abs=0.01)
    assert any(mask.any() for mask in masks)


@BOTH
def test_a_sparsifier_that_nobody_keeps_goes_away(learn):
    model = net()
    sparsifier = train(model, learning(model, learn), 2)
    gone, computed = weakref.ref(sparsifier), plain(model.state_dict())
    del sparsifier
    gc.collect()
    assert gone() is None
    assert plain(model.state_dict()) == computed
    with pytest.raises(ValueError, match=r"computes its weight anew from parametrizations\.weight"):
        learning(model, learn)


@BOTH
def test_a_copy_computes_alike_and_is_apart(learn):
    model = net()
    sparsifier = train(model, learning(model, learn), 2)
    twin = copy.deepcopy(model)
    before = plain(twin.state_dict())
    assert before == plain(model.state_dict())
    train(model, sparsifier, 3)
    assert plain(twin.state_dict()) == before
    assert plain(model.state_dict()) != before


# -- layers and optimizers ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(learn, dtype):
    model = net().to(dtype)
    assert_sparse_state(model, train(model, learning(model, learn)))
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {dtype}


@BOTH
def test_channels_last_computes_the_same_masks(learn):
    one, other = net(), net().to(memory_format=torch.channels_last)
    first = train(one, learning(one, learn), 1)
    second = train(other, learning(other, learn), 1, convert=lambda x: x.contiguous(memory_format=torch.channels_last))
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert same(first.weights.masks, second.weights.masks)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in pairs)


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@BOTH
@pytest.mark.parametrize("options", [{}, {"kdim": 8, "vdim": 8}], ids=["fused", "apart"])
def test_attention(learn, options):
    torch.manual_seed(0)
    model = Attention(**options)
    if options:
        model.attention._qkv_same_embed_dim = False
        for name in ("q", "k", "v"):
            setattr(model.attention, f"{name}_proj_weight", nn.Parameter(torch.randn(8, 8) / 8**0.5))
        model.attention.register_parameter("in_proj_weight", None)
    sparsifier = train(model, learning(model, learn), shape=(5, 8))
    state = assert_sparse_state(model, sparsifier)
    assert len(sparsifier.topology.layers) == (4 if options else 2)
    twin = copy.deepcopy(model)
    sparsifier.release()
    inputs = torch.randn(2, 5, 8)
    assert torch.allclose(twin(inputs), model(inputs), atol=1e-6)
    assert torch.allclose(twin.eval()(inputs), model.eval()(inputs), atol=1e-6)
    assert [*state] == [*model.state_dict()]


@BOTH
def test_a_weight_that_two_layers_share_has_one_mask(learn):
    model = shared()
    sparsifier = train(model, learning(model, learn), shape=(8,))
    assert len(sparsifier.topology.layers) == 1
    assert_sparse_state(model, sparsifier)
    assert torch.equal(model[0].weight, model[2].weight)


@BOTH
def test_a_compiled_model_computes_the_same(learn):
    one, other = net(), net()
    first, second = learning(one, learn), learning(other, learn)
    other.compile(backend="aot_eager")
    train(one, first, 2)
    train(other, second, 2)
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in pairs)


@BOTH
def test_an_optimizer_of_something_else_is_refused(learn):
    model = net()
    early = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"give None, and attach\(\) one that trains all parameters"):
        Sparsifier(model, early, density=0.5, distribution="uniform", reparametrize=learn)
    sparsifier = Sparsifier(model, None, density=0.5, distribution="uniform", reparametrize=learn)
    with pytest.raises(ValueError, match="the optimizer does not train (layers 0, 3, 5|layers thresholds)"):
        sparsifier.attach(early)
    with pytest.raises(RuntimeError, match="nothing trains these weights yet"):
        sparsifier.optimizer


def test_nothing_else_may_move_weights():
    options = {"density": 0.5, "distribution": "uniform", "reparametrize": POPUP}
    told = "the update does not go with reparametrize, by which masks are learned"
    with pytest.raises(ValueError, match=told):
        Sparsifier(net(), None, plan=UpdatePlan(every=2, total_steps=9), **options)
    with pytest.raises(ValueError, match="reparametrize changes how many weights a layer has"):
        Sparsifier(net(), None, pattern="constant_fan_in", **options)
    with pytest.raises(ValueError, match="count_every would be ignored: masks are not learned"):
        Sparsifier(net(), None, density=0.5, count_every=2)
    model = net()
    sparsifier = learning(model)
    with pytest.raises(ValueError, match=told):
        sparsifier.begin(topology_update(UpdatePlan(every=2, total_steps=9)))
    state = plain(sparsifier.state_dict())
    with pytest.raises(RuntimeError, match="the masks are learned: nothing else can set them"):
        sparsifier.set_masks(sparsifier.weights.masks)
    assert plain(sparsifier.state_dict()) == state
    other = net()
    with pytest.raises(RuntimeError, match="masks are not learned: set_masks says"):
        Sparsifier(other, None, density=0.5).set_density(0.1)
    with pytest.raises(RuntimeError, match="the density of these masks is an outcome of training"):
        learning(net(), SOFT).set_density(0.1)


def test_weights_that_are_computed_otherwise_are_found_out():
    model = net()
    sparsifier = learning(model)
    nn.utils.parametrize.remove_parametrizations(model[5], "weight")
    with pytest.raises(RuntimeError, match="layer 5 computes its weight in another way than it was told to"):
        sparsifier.verify()


@pytest.mark.parametrize("decay", ["all", "not_norms", "weights"])
def test_what_is_frozen_is_left_out_and_scores_decay_as_weights(decay):
    model = net()
    sparsifier = Sparsifier(model, None, density=0.5, distribution="uniform", reparametrize=POPUP)
    groups = parameter_groups(model, decay, sparsifier.weights.parameters, sparsifier.weights.groups)
    scores = {id(parameter) for parameter in sparsifier.weights.parameters}
    assert {id(parameter) for parameter in groups[0]["params"]} == scores
    assert all(not group["params"] for group in groups[1:])


@BOTH
def test_parameters_that_only_compute_weights_do_not_count(learn):
    model = net()
    before = sum(parameter.numel() for parameter in model.parameters())
    learning(model, learn)
    assert parameter_count(model) == parameter_count(net()) == before


# -- what is outside ---------------------------------------------------------------------------------------------------


def test_layers_outside_the_scope_are_frozen_too():
    model = net()
    sparsifier = train(model, learning(model, scope=Scope(dense_first=True, exclude=["5"])))
    assert [layer.name for layer in sparsifier.topology.layers] == ["3"]
    assert sparsifier.outside_is_frozen
    for name, parameter in net().named_parameters():
        if name != "3.weight":
            assert torch.equal(model.get_parameter(name), parameter)
    assert not learning(net(), SOFT).outside_is_frozen


def test_weights_that_no_scope_can_make_sparse_are_said_to_be_frozen():
    for learn, told in ((POPUP, "frozen as they are and not counted"), (SOFT, "trained dense and not counted")):
        model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8))
        with pytest.warns(UserWarning, match=told):
            learning(model, learn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learning(net())


# -- edge-popup --------------------------------------------------------------------------------------------------------


def popup(weight, mask, density, seed=0):
    """Return a linear layer of these weights, held by edge-popup, and what holds it."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
    sparsifier = Sparsifier(
        layer,
        None,
        density=None,
        distribution=None,
        init=fixed(mask),
        reparametrize=partial(edge_popup, density=density),
        seed=seed,
    )
    return layer, sparsifier


def fixed(mask):
    from dst.sparsity.marks import marked

    return marked("own_counts")(lambda start: [mask])


def set_scores(sparsifier, *scores):
    with torch.no_grad():
        for parameter, given_ in zip(sparsifier.weights.parameters, scores, strict=True):
            parameter.copy_(given_)
    sparsifier.learned.refresh()


def test_active_are_the_largest_magnitudes_of_scores_within_the_edges_ties_by_lowest_index():
    mask = torch.tensor([[True, True, False, True], [True, True, True, False]])
    layer, sparsifier = popup(torch.arange(1.0, 9).view(2, 4), mask, 0.375)
    set_scores(sparsifier, torch.tensor([[0.1, -0.7, 9.0, 0.5], [0.5, -0.5, 0.2, 9.0]]))
    assert sparsifier.weights.active()[0].tolist() == [[False, True, False, True], [True, False, False, False]]
    assert layer.weight.tolist() == [[0, 2, 0, 4], [5, 0, 0, 0]]
    assert sparsifier.edge_density == 6 / 8


def test_the_gradient_is_straight_through_to_the_magnitude_of_all_scores():
    """Of every edge, active or not, with the sign of its score; nothing off the edges."""
    mask = torch.tensor([[True, True, False, True], [True, True, True, False]])
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [-5.0, 6.0, 7.0, 8.0]])
    scores = torch.tensor([[0.1, -0.7, 0.0, 0.5], [-0.6, 0.3, -0.2, 0.0]])
    layer, sparsifier = popup(weight, mask, 0.375)
    set_scores(sparsifier, scores)
    inputs, outputs = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    (layer(inputs) * outputs).sum().backward()
    expected = outputs.T @ inputs * weight * scores.sign() * mask
    (parameter,) = sparsifier.weights.parameters
    assert torch.equal(parameter.grad, expected)
    assert (expected != 0).sum() == 6
    assert layer.bias.grad is None
    assert sparsifier.topology.layers[0].weight.grad is None


def test_a_step_follows_the_formula():
    mask = torch.ones(2, 3, dtype=torch.bool)
    weight = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    layer, sparsifier = popup(weight, mask, 0.5)
    scores = torch.tensor([[0.3, -0.2, 0.1], [0.25, -0.15, 0.05]])
    set_scores(sparsifier, scores)
    sparsifier.attach(torch.optim.SGD(sparsifier.weights.parameters, 0.01, weight_decay=0.1))
    inputs = torch.tensor([[1.0, -1.0, 0.5]])
    layer(inputs).sum().backward()
    sparsifier.step()
    expected = scores - 0.01 * (inputs.expand(2, 3) * weight * scores.sign() + 0.1 * scores)
    assert torch.allclose(sparsifier.weights.parameters[0], expected)
    best = expected.abs().flatten().argsort(descending=True)[:3]
    assert sorted(best.tolist()) == sparsifier.weights.active()[0].flatten().nonzero().flatten().tolist()


def test_nothing_but_scores_is_trained():
    model = net()
    first = copy.deepcopy(dict(net().named_parameters()))
    sparsifier = learning(model, optimizer=partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1))
    edges = {layer.name: mask.clone() for layer, mask in zip(sparsifier.topology.layers, sparsifier.weights.masks)}
    before = [mask.clone() for mask in sparsifier.weights.active()]
    train(model, sparsifier, 20)
    assert any(not torch.equal(*pair) for pair in zip(before, sparsifier.weights.active(), strict=True))
    for layer in sparsifier.topology.layers:
        assert torch.equal(layer.weight, first[f"{layer.name}.weight"] * edges[layer.name])
    others = {name: value for name, value in first.items() if name not in {f"{name}.weight" for name in edges}}
    assert {"0.bias", "1.weight", "1.bias", "5.bias"} < others.keys()
    for name, value in others.items():
        assert torch.equal(model.get_parameter(name), value)
        assert not model.get_parameter(name).requires_grad
    for parameter, mask in zip(sparsifier.weights.parameters, sparsifier.weights.masks, strict=True):
        for tensor in (parameter, parameter.grad, *states_of(sparsifier.optimizer, parameter)):
            assert not tensor[~mask].any()
    assert not torch.equal(model[1].running_mean, net()[1].running_mean)  # statistics of batches are no parameters


def test_scores_start_at_random_from_the_seed():
    same_seed, other_seed = (learning(net(), seed=seed).weights.parameters for seed in (0, 1))
    again = learning(net(), seed=0).weights.parameters
    assert same(list(same_seed), list(again))
    assert not same(list(same_seed), list(other_seed))
    for scores, fan_in in zip(same_seed, (18, 27, 192), strict=True):
        there = scores[scores != 0]
        assert there.abs().max() <= fan_in**-0.5
        assert len(there.unique()) > 0.9 * len(there)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5),
    density=st.floats(0.01, 0.99),
    shares=st.lists(st.floats(0, 1), min_size=5, max_size=5),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_and_a_layer_with_fewer_edges_keeps_them_all(sizes, density, shares, seed):
    model = nn.Sequential(*(nn.Linear(fan_in, fan_out, bias=False) for fan_out, fan_in in sizes))
    layers = Scope().layers(model)
    generator = torch.Generator().manual_seed(seed)
    numbers = [layer.size for layer in layers]
    edges = [max(1, round(share * size)) for share, size in zip(shares[: len(numbers)], numbers, strict=True)]
    masks = []
    for layer, count in zip(layers, edges, strict=True):
        mask = torch.zeros(layer.size, dtype=torch.bool)
        mask[torch.randperm(layer.size, generator=generator)[:count]] = True
        masks.append(mask.view(layer.weight.shape))
    total = round(density * sum(numbers))
    if not len(layers) <= total <= sum(edges):
        with pytest.raises(ValueError, match=f"density={density}: would be {total:,} active weights"):
            EdgePopup(Edges(layers, masks, 0), density)
        return
    how = EdgePopup(Edges(layers, masks, 0), density)
    active = how.active()
    counts = count_true(active)
    assert counts == active_counts(density, numbers, edges) == [*how.counts_at(density).values()]
    assert sum(counts) == total
    assert not any((chosen & ~mask).any() for chosen, mask in zip(active, masks, strict=True))
    level = max((count - 1) / size for count, size in zip(counts, numbers, strict=True))
    for count, size, most in zip(counts, numbers, edges, strict=True):  # as dense as any other, up to a weight
        assert count == most or count + 1 >= level * size - 1e-9 or count == 1
    assert {float(value) for part in how.parametrizations for value in part.active.unique()} <= {0.0, 1.0}


def test_a_density_can_be_set_while_scores_stay():
    model = net()
    sparsifier = train(model, learning(model, count_every=4), 3)
    scores = plain(sparsifier.learned.state_dict()["scores"])
    assert sparsifier.counts_at(0.3) != sparsifier.topology.active_by_layer
    sparsifier.set_density(0.3)
    assert plain(sparsifier.learned.state_dict()["scores"]) == scores
    assert sparsifier.topology.active_by_layer == sparsifier.counts_at(0.3)
    assert sparsifier.topology.active == round(0.3 * sparsifier.topology.size)
    with pytest.raises(ValueError, match=r"but the masks that they are chosen from have [\d,]+ of"):
        sparsifier.set_density(0.6)
    assert sparsifier.learned.density == 0.3


def test_a_strangers_loop():
    """Active weights are counted every so many steps, and when asked; in between only the masks move."""
    model = net()
    sparsifier = learning(model, count_every=3)
    changed = []
    for _ in range(7):
        train(model, sparsifier, 1)
        changed.append(sparsifier.updates)
    assert changed == [0, 0, 1, 1, 1, 2, 2]
    sparsifier.count()
    assert same(sparsifier.topology.masks, sparsifier.weights.active())
    assert sparsifier.rs >= sparsifier.density
    assert [place.parameter for place in places(model)] == [None] * 3
