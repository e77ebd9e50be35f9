"""Which positions first: exact by hand, on given weights, on the masks of another run, by saliency."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from dst import registry
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity import init as inits
from dst.sparsity.initial_masks import FirstParts, Start, first_counts, first_masks
from dst.sparsity.saliency import Probe, snip, synflow


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, 3)
    )


def data(batches=4):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 8, 8, generator=generator), torch.arange(8) % 3) for _ in range(batches)]


def probe(model, batches=4):
    return Probe(model, lambda n: data(batches)[:n], nn.functional.cross_entropy)


def sparse(model, **options):
    """A static sparsifier; ``init`` brings its counts unless a density is given."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    defaults = {"density": None, "distribution": None, "drop": None, "grow": None}
    return Sparsifier(model, optimizer, **{**defaults, **options})


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def test_bernoulli_counts_follow_the_binomial_and_are_not_exact():
    counts = []
    for seed in range(30):
        sparsifier = sparse(net(), density=0.2, distribution="uniform", init="bernoulli", seed=seed)
        counts.append(sparsifier.topology.active)
    size = sparsifier.topology.size
    deviation = (size * 0.2 * 0.8) ** 0.5
    assert len(set(counts)) > 5
    assert all(abs(count - 0.2 * size) < 4 * deviation for count in counts)
    assert abs(sum(counts) / 30 - 0.2 * size) < 4 * deviation / 30**0.5


def test_bernoulli_leaves_no_layer_empty():
    for seed in range(20):
        sparsifier = sparse(net(), density=0.002, distribution="uniform", init="bernoulli", seed=seed)
        assert all(report.active >= 1 for report in sparsifier.layers)


def test_magnitude_of_each_layer_and_of_the_network():
    model = nn.Sequential(linear([9.0, -8.0, 1.0, 2.0]), linear([3.0], [-0.5], [7.0], [0.1]))
    per_layer = sparse(copy.deepcopy(model), density=0.5, distribution="uniform", init="magnitude")
    assert [mask.flatten().tolist() for mask in per_layer.topology.masks] == [[1, 1, 0, 0], [1, 0, 1, 0]]
    ticket = sparse(copy.deepcopy(model), density=0.375, distribution="magnitude", init="magnitude")
    assert [mask.flatten().tolist() for mask in ticket.topology.masks] == [[1, 1, 0, 0], [0, 0, 1, 0]]
    assert ticket.forward_passes == 0


def test_lottery_ticket_ratios_of_lenet_300_100():
    """ITOP's global threshold on PyTorch's initial weights at density 0.1 gives .058, .414, .649 (specs)."""
    from dst.models.mlp import lenet_300_100

    torch.manual_seed(0)
    ticket = sparse(lenet_300_100((1, 28, 28), 10), density=0.1, distribution="magnitude", init="magnitude")
    found = [report.active / report.size for report in ticket.layers]
    assert found == pytest.approx([0.058, 0.414, 0.649], abs=0.02)


def test_snip_takes_the_most_salient_weights_of_the_network():
    model = net()
    scores = snip(probe(model), Scope().layers(model), 0).scores
    by_snip = {"distribution": "snip", "init": partial(inits.saliency, criterion="snip"), "probe": probe(model)}
    sparsifier = sparse(model, density=0.1, **by_snip)
    kept = round(0.1 * sum(score.numel() for score in scores))
    threshold = torch.cat([score.flatten() for score in scores]).topk(kept).values.min()
    assert sparsifier.topology.active == kept
    for mask, score in zip(sparsifier.topology.masks, scores, strict=True):
        assert torch.equal(mask, score >= threshold)
    assert sparsifier.forward_passes == 3 * 8, "the same criterion for ratios and positions is asked once"


def test_ratios_of_one_criterion_positions_by_another():
    model = net()
    options = {"distribution": "snip", "init": partial(inits.saliency, criterion="synflow", rounds=5)}
    both = sparse(model, density=0.1, probe=probe(model), **options)
    assert both.forward_passes == 3 * 8 + 3 * 5
    counts = [report.active for report in both.layers]
    model = net()
    ranks = synflow(probe(model), Scope().layers(model), counts, rounds=5).scores
    for mask, rank, count in zip(both.topology.masks, ranks, counts, strict=True):
        assert torch.equal(mask, rank >= rank.flatten().topk(count).values.min())


def test_ratios_by_saliency_with_positions_at_random():
    model = net()
    sparsifier = sparse(model, density=0.1, distribution="grasp", init="random", probe=probe(model), seed=1)
    ticket = net()
    positions = {"distribution": "grasp", "init": partial(inits.saliency, criterion="grasp"), "probe": probe(ticket)}
    same_ratios = sparse(ticket, density=0.1, **positions)
    assert [r.active for r in sparsifier.layers] == [r.active for r in same_ratios.layers]
    assert not torch.equal(sparsifier.topology.masks[1], same_ratios.topology.masks[1])


def test_saliency_without_data():
    with pytest.raises(ValueError, match=r"snip looks at data, but there is none: give Sparsifier a probe"):
        sparse(net(), density=0.1, distribution="snip")


# -- inits that bring counts of their own ------------------------------------------------------------------------------


def test_file_takes_the_masks_of_another_run(tmp_path):
    first = sparse(net(), density=0.2, distribution="erk", init="random", seed=5)
    torch.save({"sparsifier": first.state_dict(), "model": {}}, tmp_path / "checkpoint.pt")
    second = sparse(net(1), init=partial(inits.file, path=str(tmp_path / "checkpoint.pt")))
    for mine, theirs in zip(second.topology.masks, first.topology.masks, strict=True):
        assert torch.equal(mine, theirs)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    third = sparse(net(1), init=partial(inits.file, path=str(tmp_path / "state.pt")))
    assert third.topology.active == first.topology.active


def test_masks_of_another_model_are_refused(tmp_path):
    torch.save(
        sparse(nn.Sequential(linear([1.0, 2.0])), density=0.5, distribution="uniform").state_dict(),
        tmp_path / "other.pt",
    )
    told = r"other.pt do not fit this model and scope: 0 is 1x2 there and 1x3 here, 1 is absent there and 3x1 here"
    model = nn.Sequential(linear([1.0, 2.0, 3.0]), linear([1.0], [2.0], [3.0]))
    with pytest.raises(ValueError, match=told):
        sparse(model, init=partial(inits.file, path=str(tmp_path / "other.pt")))
    torch.save({"model": {}}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"there are no masks in .*none.pt"):
        sparse(model, init=partial(inits.file, path=str(tmp_path / "none.pt")))


GIVEN = ([0.0, 4.0, -1.0, 2.0, 3.0, 5.0],)  # five nonzero weights


@pytest.mark.parametrize(("rate", "kept"), [(0.2, [1, 3, 4, 5]), (0.21, [1, 4, 5]), (0.6, [1, 5]), (0.99, [5])])
def test_prune_uniform_removes_a_share_of_the_nonzero_weights_of_each_layer(rate, kept):
    layer = linear(*GIVEN)
    sparsifier = sparse(layer, init=partial(inits.prune_uniform, rate=rate))
    assert sparsifier.topology.masks[0].flatten().nonzero().flatten().tolist() == kept
    assert layer.weight.flatten().nonzero().flatten().tolist() == kept


@pytest.mark.parametrize(
    ("prune", "rate", "kept"),
    [(inits.prune_global, 0.9, 10), (inits.prune_uniform, 0.07, 93), (inits.prune_global, 0.29, 71)],
)
def test_rates_are_exact(prune, rate, kept):
    """100 * (1 - 0.9) is below 10 in floats, 100 * 0.07 above 7."""
    assert sparse(linear([float(i) for i in range(1, 101)]), init=partial(prune, rate=rate)).topology.active == kept


def test_prune_global_ranks_all_layers_together():
    model = nn.Sequential(linear([9.0, 8.0, 0.0, 7.0]), linear([1.0], [2.0], [3.0]))
    sparsifier = sparse(model, init=partial(inits.prune_global, rate=0.5))  # 6 nonzero, 3 stay
    assert [mask.flatten().tolist() for mask in sparsifier.topology.masks] == [[1, 1, 0, 0], [0, 0, 1]]


def test_prune_structured_removes_output_units_but_none_of_the_last_layer():
    model = nn.Sequential(linear([1.0, 1.0], [0.0, 0.0], [3.0, 0.0], [2.0, 2.0]), linear([0.1] * 4, [5.0] * 4))
    sparsifier = sparse(model, init=partial(inits.prune_structured, rate=0.4))  # floor(0.4 * 3 living) = 1 unit
    assert sparsifier.topology.masks[0].tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert sparsifier.topology.masks[1].all()


def test_prune_structured_spares_the_outputs_only():
    model = nn.Sequential(linear([1.0, 1.0], [3.0, 0.0]), linear([0.1] * 2, [5.0] * 2), linear([1.0] * 2, [2.0] * 2))
    prune = partial(inits.prune_structured, rate=0.5)
    inner = sparse(copy.deepcopy(model), init=prune, scope=Scope(dense_last=True))
    assert [mask.any(1).tolist() for mask in inner.topology.masks] == [[False, True], [False, True]]
    with pytest.raises(ValueError, match="only the network's last layer is in scope"):
        sparse(model, init=prune, scope=Scope(include=["2"]))


@pytest.mark.parametrize("name", ["prune_and_grow_uniform", "prune_and_grow_global", "prune_and_grow_structured"])
def test_prune_and_grow(name):
    model = net()
    with torch.no_grad():
        model[4].weight[:, ::2] = 0.0  # as a sparse run would have left it
    before = [layer.weight.detach().clone() for layer in Scope().layers(model)]
    twin = copy.deepcopy(model)
    pruned = sparse(copy.deepcopy(model), init=partial(getattr(inits, name.replace("_and_grow", "")), rate=0.5))
    loss = sum(nn.functional.cross_entropy(twin.train()(x), y) for x, y in data()[:2]) / 2
    slopes = [g.abs() for g in torch.autograd.grad(loss, [layer.weight for layer in Scope().layers(twin)])]
    sparsifier = sparse(model, init=partial(getattr(inits, name), rate=0.5, batches=2), probe=probe(model))
    assert sparsifier.forward_passes == 3 * 16
    for i, (mask, kept) in enumerate(zip(sparsifier.topology.masks, pruned.topology.masks, strict=True)):
        weight = sparsifier.topology.layers[i].weight
        assert not (kept & ~mask).any(), "what pruning keeps stays"
        assert torch.equal(weight[kept], before[i][kept])
        assert torch.count_nonzero(weight[~kept]) == 0, "what grows starts from zero"
        grown = mask & ~kept
        if "structured" in name:
            empty = ~kept.flatten(1).any(1)
            assert (mask.flatten(1).all(1) & empty).sum() == ((before[i] != 0).flatten(1).any(1) & empty).sum()
            assert torch.equal(grown.flatten(1).any(1), grown.flatten(1).all(1))
        else:
            assert mask.sum() == torch.count_nonzero(before[i])
            if not mask.all():
                assert slopes[i][grown].min() >= slopes[i][~mask].max() - 1e-6


def unmarked_bernoulli(start):
    """Somebody's own init, which does not say that it keeps to no pattern."""
    return inits.bernoulli(start)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"init": partial(inits.prune_uniform, rate=0.5), "density": 0.1}, "density=0.1 would be ignored"),
        ({"init": "random"}, "density and distribution are missing"),
        ({"init": partial(inits.prune_and_grow_uniform, rate=0.5)}, "gradient looks at data"),
        (
            {
                "init": lambda start: [torch.rand_like(layer.weight) for layer in start.layers],
                "density": 0.1,
                "distribution": "erk",
            },
            "boolean masks",
        ),
        (
            {"init": "bernoulli", "density": 0.3, "distribution": "uniform", "pattern": "constant_fan_in"},
            "this init keeps to no pattern, so its masks would break this pattern: choose random, magnitude",
        ),
        (
            {
                "init": unmarked_bernoulli,
                "density": 0.3,
                "distribution": "uniform",
                "pattern": "constant_fan_in",
            },
            "the pattern does not allow the mask that this init gives; random, magnitude",
        ),
        (
            {
                "density": 0.3,
                "distribution": "uniform",
                "pattern": "constant_fan_in",
                "redistribute": "magnitude",
                "plan": UpdatePlan(every=1, total_steps=9),
                "drop": "magnitude",
                "grow": "gradient",
            },
            "redistribute changes how many weights a layer has, which this pattern keeps",
        ),
    ],
)
def test_parts_that_do_not_go_together(options, told):
    with pytest.raises(ValueError, match=told):
        sparse(net(), **options)


def test_given_weights_that_are_all_zero():
    with pytest.raises(ValueError, match="layer  has only zeros"):
        sparse(linear([0.0, 0.0]), init=partial(inits.prune_uniform, rate=0.5))


# -- what grown weights start with -------------------------------------------------------------------------------------


def one_update(**options):
    """Weights 1, 2, 3, 4 of eight active; two leave (1 and 2), two enter: 1 again (gradient 9) and place 4."""
    layer = linear([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    first = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    optimizer = torch.optim.SGD(layer.parameters(), 0.0, momentum=0.9)
    plan = UpdatePlan(every=1, total_steps=9, **options)
    sparsifier = Sparsifier(
        layer, optimizer, density=0.5, distribution="uniform", init=lambda start: [first], plan=plan, drop_fraction=0.5
    )
    layer.weight.grad = torch.tensor([[9.0, 0.0, 1.0, 1.0, 8.0, 0.0, 0.0, 0.0]])
    sparsifier.step()
    return layer.weight.flatten().tolist(), optimizer.state[layer.weight]["momentum_buffer"].flatten().tolist()


@pytest.mark.parametrize(
    ("options", "weights", "momentum"),
    [
        ({}, [1, 0, 3, 4, 0, 0, 0, 0], [9, 0, 1, 1, 0, 0, 0, 0]),
        ({"grown_weights": "initial"}, [1, 0, 3, 4, 5, 0, 0, 0], [9, 0, 1, 1, 0, 0, 0, 0]),
        ({"returning_weights": "reset"}, [0, 0, 3, 4, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]),
        (
            {"grown_weights": "initial", "returning_weights": "reset"},
            [1, 0, 3, 4, 5, 0, 0, 0],
            [0, 0, 1, 1, 0, 0, 0, 0],
        ),
    ],
)
def test_value_and_state_of_grown_and_returning_weights(options, weights, momentum):
    assert one_update(**options) == (weights, momentum)


def test_initial_weights_survive_a_resume():
    model, twin = net(), net(1)
    plan = UpdatePlan(every=1, total_steps=9, grown_weights="initial")
    options = {"density": 0.2, "distribution": "erk", "drop": "magnitude", "grow": "random", "plan": plan}
    first, second = sparse(model, **options), sparse(twin, **options)
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(second.topology.initial, first.topology.initial, strict=True):
        assert torch.equal(mine, theirs)


# -- the counts alone --------------------------------------------------------------------------------------------------


def parts_of(distribution, pattern="unstructured", **options):
    found = {"distribution": distribution, "init": "random", "pattern": pattern}
    loaded = {kind: registry.find(kind, name).load() for kind, name in found.items()}
    return FirstParts(**{**loaded, "pattern": partial(loaded["pattern"], **options)})


def meta_layers():
    with torch.device("meta"):
        return Scope().layers(net())


def start_of(model, parts, probe=None):
    layers = Scope().layers(model)
    return Start(layers, parts.patterns(layers), 0, probe)


@pytest.mark.parametrize(
    ("parts", "densities"),
    [
        (parts_of("erk"), (0.013, 0.1, 0.555, 0.9)),
        (parts_of("uniform"), (0.013, 0.1, 0.9)),
        (parts_of("uniform_plus"), (0.1, 0.9)),
        (parts_of("er", "constant_fan_in"), (0.1, 0.5)),
        (parts_of("dense"), (None,)),
        (parts_of("dense", "n_m", n=2, m=4, indivisible="dense"), (None,)),
    ],
)
def test_the_counts_are_those_of_the_masks_and_need_no_weights(parts, densities):
    for density in densities:
        masks = first_masks(start_of(net(), parts), parts, density)
        assert first_counts(meta_layers(), parts, density) == [int(mask.sum()) for mask in masks]


def test_counts_that_need_data_are_shared_evenly_until_it_is_there():
    """That is enough to see whether a density is possible; the criterion then shares the same total otherwise."""
    model = net()
    parts = FirstParts(snip, inits.random, registry.find("pattern", "unstructured").load())
    evenly = first_counts(meta_layers(), parts, 0.1)
    masks = first_masks(start_of(model, parts, probe(model)), parts, 0.1)
    ranked = [int(mask.sum()) for mask in masks]
    assert evenly == first_counts(meta_layers(), parts_of("uniform"), 0.1) != ranked
    assert sum(evenly) == sum(ranked)


@pytest.mark.parametrize(
    ("parts", "density", "told"),
    [
        (parts_of("erk"), None, "density and distribution are missing"),
        (parts_of("dense"), 0.5, r"density=0\.5 would be ignored"),
        (parts_of("erk"), 1e-6, "every layer keeps at least one"),
        (parts_of("dense", "n_m", n=2, m=7), None, r"layer 0: n_m: 1 input channels"),
    ],
)
def test_impossible_counts_are_refused_without_weights(parts, density, told):
    with pytest.raises(ValueError, match=told):
        first_counts(meta_layers(), parts, density)
