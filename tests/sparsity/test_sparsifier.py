"""Exact counts, exact zeros, exact conservation: after every update, for every order, optimizer and growth."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dst.fractions import exact
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity import drop as drops
from dst.sparsity import grow as grows
from dst.sparsity.distribution import erk
from dst.sparsity.drop_fraction import cosine
from dst.sparsity.pattern.constant_fan_in import constant_fan_in
from dst.sparsity.select import top_k
from dst.sparsity.view import LayerView
from tests.states import states_of


def net(seed=0, width=12):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, width), nn.ReLU(), nn.Linear(width, 3)
    )


def optimizer_of(model, kind):
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=1e-2, fused=True)
    return torch.optim.AdamW(model.parameters(), 0.01, weight_decay=1e-2, fused=True)


def batch(step, n=16):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)


def train(model, optimizer, sparsifier, steps, check=None):
    for _ in range(steps):
        inputs, labels = batch(sparsifier.steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        changed = sparsifier.step()
        if check:
            check(changed)


def masks_of(sparsifier):
    return [mask.bool().clone() for mask in sparsifier.topology.masks]


@settings(max_examples=40)
@given(
    st.floats(0.05, 0.9),
    st.sampled_from(["uniform", "er", "erk"]),
    st.sampled_from(["magnitude", "random", "set", "taylor"]),
    st.sampled_from(["gradient", "random", "random_unexplored", "momentum"]),
    st.floats(0.01, 1.0),
    st.sampled_from(["after_step", "replaces_step"]),
    st.booleans(),
    st.sampled_from(["sgd", "adamw"]),
)
def test_invariants(density, distribution, drop, grow, fraction, order, regrow, kind):
    model = net()
    optimizer = optimizer_of(model, kind)
    plan = UpdatePlan(every=2, total_steps=100, order=order, regrow=regrow)
    sparsifier = Sparsifier(
        model,
        optimizer,
        density=density,
        distribution=distribution,
        drop=drop,
        grow=grow,
        plan=plan,
        drop_fraction=fraction,
    )
    total = sum(layer.size for layer in sparsifier.topology.layers)
    counts = [report.active for report in sparsifier.layers]
    assert sum(counts) == round(density * total)
    explored = masks_of(sparsifier)

    def check(changed):
        nonlocal explored
        masks = masks_of(sparsifier)
        assert [int(mask.sum()) for mask in masks] == counts == [report.active for report in sparsifier.layers]
        explored = [seen | mask for seen, mask in zip(explored, masks, strict=True)]
        assert sum(int(seen.sum()) for seen in explored) == sparsifier.topology.explored_count
        for layer, mask in zip(sparsifier.topology.layers, masks, strict=True):
            assert torch.count_nonzero(layer.weight[~mask]) == 0
            for state in states_of(optimizer, layer.weight):
                assert torch.count_nonzero(state[~mask]) == 0
        if changed:
            for report in sparsifier.layers:
                moved = 0 if report.active == report.size else math.ceil(exact(fraction) * report.active)
                if not regrow:
                    assert report.dropped == report.grown == min(moved, report.size - report.active)
                assert report.dropped == report.grown <= moved

    train(model, optimizer, sparsifier, 6, check)
    assert sparsifier.updates == 3


def one_layer(weights, gradients, **options):
    """A linear layer of known weights, its inactive ones zero, and one update by magnitude and gradient."""
    model = nn.Linear(len(weights), 1, bias=False)
    model.weight.data = torch.tensor([weights])
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9, fused=True)
    active = torch.tensor([weights]) != 0
    sparsifier = Sparsifier(
        model,
        optimizer,
        density=float(active.sum()) / len(weights),
        init=lambda start: [active],
        plan=UpdatePlan(every=2, total_steps=10, **options),
        drop_fraction=0.5,
    )
    sparsifier.steps = 1  # the next one has an update
    model.weight.grad = torch.tensor([gradients])
    sparsifier.step()
    return model, sparsifier, optimizer


@pytest.mark.parametrize(
    ("weights", "gradients", "expected"),
    [
        # 4 active, k = ceil(0.5 * 4) = 2: 1. and -2. leave, the two largest gradients of free positions enter
        ([1.0, -2.0, 3.0, 4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 9.0, 1.0, -5.0, 2.0], [2, 3, 5, 6]),
        # a dropped weight with the largest gradient returns
        ([1.0, -2.0, 3.0, 4.0, 0.0, 0.0, 0.0], [8.0, 0.0, 9.0, 9.0, 1.0, -5.0, 2.0], [0, 2, 3, 5]),
        # equal weights: the earlier leave; no gradient anywhere: the earliest free positions enter
        ([2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0], [0.0] * 7, [0, 1, 2, 3]),
        # 3 active, k = 2
        ([0.0, 0.0, 1.0, 5.0, -2.0], [3.0, 4.0, 0.0, 0.0, 0.0], [0, 1, 3]),
    ],
)
def test_update_by_hand(weights, gradients, expected):
    _, sparsifier, _ = one_layer(weights, gradients, order="replaces_step")
    assert sparsifier.topology.masks[0].flatten().nonzero().squeeze(1).tolist() == expected


def test_just_dropped_may_be_barred_from_returning():
    _, sparsifier, _ = one_layer(
        [2.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0], [9.0] * 4 + [0.0] * 3, order="replaces_step", regrow=False
    )
    assert sparsifier.topology.masks[0].tolist() == [[0, 0, 1, 1, 1, 1, 0]]
    (report,) = sparsifier.layers
    assert (report.dropped, report.grown) == (2, 2)


def test_returning_weights_keep_value_and_state_and_count_as_neither_dropped_nor_grown():
    model, sparsifier, optimizer = one_layer([1.0, 2.0, 0.0], [7.0, 0.0, 0.5], order="after_step")
    # k = 1: weight 0 (|w| = 1) leaves and, with the largest gradient, returns.
    assert model.weight.tolist() == [[1.0, 2.0, 0.0]]
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [[7.0, 0.0, 0.0]]
    (report,) = sparsifier.layers
    assert (report.dropped, report.grown) == (0, 0)


def test_grown_weights_start_from_zero_with_zero_state():
    model, _, optimizer = one_layer([1.0, 2.0, 0.0], [0.5, 0.0, 7.0], order="after_step")
    assert model.weight.tolist() == [[0.0, 2.0, 0.0]]
    assert optimizer.state[model.weight]["momentum_buffer"].tolist() == [[0.0, 0.0, 0.0]]


def test_replaced_step_leaves_weights_and_after_step_trains_them():
    for order, moved in (("replaces_step", False), ("after_step", True)):
        model = net()
        optimizer = optimizer_of(model, "sgd")
        sparsifier = Sparsifier(model, optimizer, density=0.3, plan=UpdatePlan(every=2, total_steps=9, order=order))
        sparsifier.steps = 1  # the next one has an update
        before = model[5].bias.detach().clone()
        train(model, optimizer, sparsifier, 1)
        assert (not torch.equal(before, model[5].bias)) == moved


def test_growth_sees_the_dense_gradient():
    model, sparsifier, _ = one_layer([1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 1.0, 2.0], order="after_step")
    assert sparsifier.topology.masks[0].tolist() == [[0, 1, 0, 1]]
    assert model.weight.grad.tolist() == [[0.0, 0.0, 0.0, 0.0]]  # and the optimizer the masked one


def test_dense_gradient_is_needed_by_gradient_growth_at_updates_only():
    for grow, expected in (("gradient", [False, True]), ("random", [False, False])):
        model = net()
        optimizer = optimizer_of(model, "sgd")
        sparsifier = Sparsifier(model, optimizer, density=0.3, grow=grow, plan=UpdatePlan(every=2, total_steps=9))
        needed = []
        for _ in range(2):
            needed.append(sparsifier.needs_dense_gradient())
            train(model, optimizer, sparsifier, 1)
        assert needed == expected


def test_methods_differ_and_the_seed_matters():
    def final(grow, seed):
        model = net()
        optimizer = optimizer_of(model, "sgd")
        sparsifier = Sparsifier(
            model, optimizer, density=0.2, grow=grow, plan=UpdatePlan(every=2, total_steps=99), seed=seed
        )
        train(model, optimizer, sparsifier, 6)
        return torch.cat([mask.flatten() for mask in sparsifier.topology.masks])

    assert torch.equal(final("random", 0), final("random", 0))
    assert not torch.equal(final("random", 0), final("random", 1))
    assert not torch.equal(final("random", 0), final("gradient", 0))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_resume_into_a_different_object_is_bit_identical(kind):
    def fresh(seed):
        model = net(seed)
        optimizer = optimizer_of(model, kind)
        plan = UpdatePlan(every=3, total_steps=50)
        return (
            model,
            optimizer,
            Sparsifier(
                model, optimizer, density=0.2, grow="random", plan=plan, drop_fraction=cosine(plan, initial=0.5), seed=3
            ),
        )

    model, optimizer, sparsifier = fresh(0)
    train(model, optimizer, sparsifier, 7)
    stored = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(model, optimizer, sparsifier, 7)

    other_model, other_optimizer, other = fresh(1)
    other_model.load_state_dict(stored[0])
    other_optimizer.load_state_dict(stored[1])
    other.load_state_dict(stored[2])
    train(other_model, other_optimizer, other, 7)

    assert (other.steps, other.updates, other.rs) == (sparsifier.steps, sparsifier.updates, sparsifier.rs)
    for a, b in zip(masks_of(sparsifier), masks_of(other), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(a, b)
        for x, y in zip(optimizer.state[a].values(), other_optimizer.state[b].values(), strict=True):
            assert torch.equal(x, y)


def test_state_of_another_model_is_refused():
    model = net()
    state = Sparsifier(model, optimizer_of(model, "sgd"), density=0.2).state_dict()
    wider = net(width=13)
    with pytest.raises(ValueError, match="stored masks do not fit this model: layers 3, 5 differ"):
        Sparsifier(wider, optimizer_of(wider, "sgd"), density=0.2).load_state_dict(state)


def test_state_of_another_method_is_refused():
    plan = UpdatePlan(every=2, total_steps=9)
    model = net()
    state = Sparsifier(model, optimizer_of(model, "sgd"), density=0.2, plan=plan).state_dict()
    with pytest.raises(ValueError, match="the stored state has no momentum"):
        Sparsifier(model, optimizer_of(model, "sgd"), density=0.2, plan=plan, grow="momentum").load_state_dict(state)


def test_only_the_layer_that_gives_the_outputs_is_spared_by_ablation():
    """A layer that happens to be the last in scope is not."""
    for scope, ablated in ((Scope(), [True, True, False]), (Scope(dense_last=True), [True, True])):
        model = net()
        plan = UpdatePlan(every=1, total_steps=9)
        sparsifier = Sparsifier(
            model,
            torch.optim.SGD(model.parameters(), 0.0),
            density=0.3,
            distribution="uniform",
            pattern=partial(constant_fan_in, ablation=0.9),
            scope=scope,
            plan=plan,
            drop_fraction=0.9,
        )
        for layer in sparsifier.topology.layers:
            layer.weight.grad = torch.zeros_like(layer.weight)
            layer.weight.grad[0] = 1.0
        sparsifier.step()
        assert [not mask.flatten(1).any(1).all() for mask in sparsifier.topology.masks] == ablated


def test_dense_costs_nothing_and_counts_as_explored():
    model = net()
    sparsifier = Sparsifier(model, optimizer_of(model, "sgd"), density=None, distribution="dense")
    assert (sparsifier.density, sparsifier.rs) == (1.0, 1.0)
    assert sparsifier.weights._sparse == []


def test_scope_leaves_layers_alone():
    model = net()
    sparsifier = Sparsifier(
        model, optimizer_of(model, "sgd"), density=0.1, distribution="uniform", scope=Scope(dense_first=True)
    )
    assert [report.layer for report in sparsifier.layers] == ["3", "5"]
    assert torch.count_nonzero(model[0].weight) == model[0].weight.numel()
    assert sparsifier.topology.active == round(0.1 * (144 * 12 + 12 * 3))


def test_apply_replaces_the_optimizer_step_and_sees_masked_gradients():
    model = net()
    optimizer = optimizer_of(model, "sgd")
    sparsifier = Sparsifier(model, optimizer, density=0.1)
    model(batch(0)[0]).sum().backward()
    seen = []
    sparsifier.step(
        lambda: seen.append(int(torch.count_nonzero(model[3].weight.grad[sparsifier.topology.masks[1] == 0])))
    )
    assert seen == [0]


CUT = partial(drops.threshold, value=0.1)
MOVING = {"plan": UpdatePlan(every=1, total_steps=5)}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"drop": "magnitud"}, "unknown drop 'magnitud': did you mean 'magnitude'"),
        ({"distribution": "ERKK"}, "unknown distribution 'ERKK': did you mean 'erk'"),
        ({"density": 1.5}, "density=1.5"),
        ({"distribution": "dense", "density": None, **MOVING}, "no layer has an inactive weight, so nothing could be"),
        (
            {"redistribute": "magnitude", "scope": Scope(include=["0"]), **MOVING},
            "redistribute would be ignored: .*sing",
        ),
        (
            {"distribution": "uniform_plus", "scope": Scope(dense_first=True)},
            "scope: dense_first=true leaves the first",
        ),
        ({"distribution": "uniform_plus", "scope": Scope(dense_last=True)}, "scope: dense_last=true leaves the last"),
        ({"distribution": partial(erk, classifier=0.5), "scope": Scope(dense_last=True)}, "leave out its classifier"),
        (
            {"drop": CUT, "drop_fraction": 0.2, **MOVING},
            "drop_fraction would be ignored: this drop says itself how many",
        ),
        ({"drop": CUT, "drop_pool": "global", **MOVING}, "drop_pool=global would be ignored: this drop says itself"),
        ({"density": 2.0, "distribution": "magnitude"}, r"density=2\.0: must be in \(0, 1\]"),
        ({"drop_fraction": 0.0, "plan": UpdatePlan(every=1, total_steps=5)}, "drop_fraction=0.0"),
    ],
)
def test_wrong_arguments(wrong, told):
    model = net()
    with pytest.raises(ValueError, match=told):
        Sparsifier(model, optimizer_of(model, "sgd"), **{"density": 0.1, **wrong})


def test_growth_without_a_backward_pass_is_an_error():
    model = net()
    sparsifier = Sparsifier(model, optimizer_of(model, "sgd"), density=0.1, plan=UpdatePlan(every=1, total_steps=5))
    with pytest.raises(RuntimeError, match="needs a backward pass"):
        sparsifier.step()


def test_rs_of_random_growth_follows_the_closed_form():
    """ITOP: u <- u (1 - k / (N - n + k)) a layer and update, Rs = 1 - sum(u) / sum(N)."""
    sizes, density, updates = (300, 400), 0.05, 30
    n_all = sizes[0] * sizes[1]
    model = nn.Linear(sizes[1], sizes[0], bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0, fused=True)
    plan = UpdatePlan(every=1, total_steps=40)
    curve = cosine(plan, initial=0.5, floor=0.005)
    sparsifier = Sparsifier(
        model, optimizer, density=density, grow="random", drop="random", plan=plan, drop_fraction=curve
    )
    active = round(density * n_all)
    unseen, variance = float(n_all - active), 0.0
    for step in range(1, updates + 1):
        sparsifier.step(lambda: None)
        k = math.ceil(curve(step) * active)
        p = k / (n_all - active + k)
        variance = variance * (1 - p) ** 2 + unseen * p * (1 - p)
        unseen *= 1 - p
        assert abs(sparsifier.rs - (1 - unseen / n_all)) < 4 * math.sqrt(variance) / n_all + 1e-12
    assert sparsifier.rs > 0.3


# -- the catalogue -----------------------------------------------------------------------------------------------------


def small(model=None, **options):
    """A network of three layers in training by SGD, updated every second step."""
    model = model or net()
    optimizer = optimizer_of(model, "sgd")
    options = {"density": 0.3, "plan": UpdatePlan(every=2, total_steps=100), "drop": "magnitude", **options}
    moves = options["plan"] is not None and isinstance(options["drop"], str)
    if options["plan"] is None:
        del options["drop"]
    fraction = {"drop_fraction": 0.4} if moves else {}
    return model, optimizer, Sparsifier(model, optimizer, **{**fraction, **options})


@pytest.mark.parametrize("statistic", ["magnitude", "momentum", "nonzeros"])
@pytest.mark.parametrize("regrow", [True, False])
def test_redistribution_moves_budget_and_conserves_the_total(statistic, regrow):
    plan = UpdatePlan(every=2, total_steps=100, regrow=regrow)
    model, optimizer, sparsifier = small(redistribute=statistic, distribution="uniform", plan=plan)
    before = [report.active for report in sparsifier.layers]
    train(model, optimizer, sparsifier, 12)
    after = [report.active for report in sparsifier.layers]
    assert sum(after) == sum(before)
    assert after != before
    assert all(1 <= report.active <= report.size for report in sparsifier.layers)
    for layer, mask in zip(sparsifier.topology.layers, masks_of(sparsifier), strict=True):
        assert torch.count_nonzero(layer.weight[~mask]) == 0


@pytest.mark.parametrize("drop", ["magnitude", "set", "random"])
def test_global_drop_takes_the_fraction_of_all_layers_together(drop):
    plan = UpdatePlan(every=1, total_steps=9, regrow=False)
    options = {"drop": drop, "drop_pool": "global", "grow": "random_unexplored", "distribution": "uniform"}
    model, optimizer, sparsifier = small(plan=plan, **options)
    active = [report.active for report in sparsifier.layers]
    train(model, optimizer, sparsifier, 1)
    assert [report.active for report in sparsifier.layers] == active
    assert sum(report.dropped for report in sparsifier.layers) == sum(math.ceil(0.4 * n) for n in active)


@pytest.mark.parametrize("pool", ["layer", "global"])
def test_where_all_layers_are_full_nothing_could_move(pool):
    """As where a pattern rounds small layers up to all their weights."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(1, 3, bias=False))
    plan = UpdatePlan(every=1, total_steps=9)
    with pytest.raises(ValueError, match="no layer has an inactive weight, so nothing could be grown"):
        small(model, density=0.5, pattern="constant_fan_in", drop_pool=pool, grow="random", plan=plan)


def test_a_layer_that_drops_its_last_weight_gets_one_back():
    model = nn.Sequential(nn.Linear(30, 30, bias=False), nn.Linear(30, 1, bias=False))
    optimizer = optimizer_of(model, "sgd")
    options = {"density": 0.02, "distribution": "uniform", "redistribute": "nonzeros", "grow": "random"}
    sparsifier = Sparsifier(model, optimizer, plan=UpdatePlan(every=1, total_steps=99), drop_fraction=0.9, **options)
    for _ in range(20):
        sparsifier.step(lambda: None)
        assert min(report.active for report in sparsifier.layers) >= 1
        assert sparsifier.topology.active == round(0.02 * 930)


def test_set_drops_the_same_fraction_of_both_signs():
    from dst.sparsity.drop import set as set_score
    from dst.sparsity.view import LayerView

    weights = torch.tensor([5.0, 1.0, -0.1, -9.0, 3.0, 2.0, -4.0, -0.3, 4.0, 0.0])
    active = weights != 0
    scores = set_score(LayerView(weights, active, active, None, 0))
    # Positive: 1 2 3 4 5, negative: -.1 -.3 -4 -9; of 9 weights the lowest 4 are 1, 2 and -.1, -.3.
    lowest = scores.masked_fill(~active, torch.inf).argsort(stable=True)[:4]
    assert sorted(weights[lowest].tolist()) == pytest.approx([-0.3, -0.1, 1.0, 2.0])


def test_random_unexplored_takes_what_never_was_active_first():
    """With unseen positions left, Rs grows by exactly what is grown; then everything has been explored."""
    model, optimizer, sparsifier = small(grow="random_unexplored", drop="random", distribution="uniform")
    unseen = [report.size - report.active for report in sparsifier.layers]
    moved = [math.ceil(0.4 * report.active) for report in sparsifier.layers]
    for update in range(1, 9):
        train(model, optimizer, sparsifier, 2)
        expected = [max(0, free - update * k) for free, k in zip(unseen, moved, strict=True)]
        assert [report.size - report.explored for report in sparsifier.layers] == expected
    assert sparsifier.rs == 1.0


def test_momentum_is_an_unmasked_average_of_dense_gradients_and_explores():
    model, optimizer, sparsifier = small(grow="momentum")
    averages = [torch.zeros_like(layer.weight) for layer in sparsifier.topology.layers]
    for _ in range(6):
        inputs, labels = batch(sparsifier.steps)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        assert sparsifier.needs_dense_gradient()
        for average, layer in zip(averages, sparsifier.topology.layers, strict=True):
            average.lerp_(layer.weight.grad, 0.1)
        sparsifier.step()
    for average, kept in zip(averages, sparsifier.topology.momentum, strict=True):
        torch.testing.assert_close(average, kept)
    assert sparsifier.rs > sparsifier.density


def test_momentum_survives_a_resume():
    model, optimizer, sparsifier = small(grow="momentum", redistribute="momentum")
    train(model, optimizer, sparsifier, 5)
    stored = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    train(model, optimizer, sparsifier, 5)
    other_model, other_optimizer, other = small(net(1), grow="momentum", redistribute="momentum")
    for target, state in zip((other_model, other_optimizer, other), stored, strict=True):
        target.load_state_dict(state)
    train(other_model, other_optimizer, other, 5)
    for a, b in zip(masks_of(sparsifier), masks_of(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("pool", ["global", "layer"])
@pytest.mark.parametrize("regenerate", [True, False])
def test_pruning_follows_the_curve_exactly(pool, regenerate):
    """GMP without, GraNet with drop and grow; the count after every update is that of the curve."""
    from dst.sparsity.density_schedule import cubic

    plan = UpdatePlan(every=2, total_steps=20)
    curve = cubic(plan, 0.1, initial=0.8, end=0.5)
    parts = {} if regenerate else {"drop": None, "grow": None}
    model, optimizer, sparsifier = small(density=0.8, plan=plan, density_curve=curve, prune_pool=pool, **parts)
    for step in range(2, 20, 2):
        previous = masks_of(sparsifier)
        train(model, optimizer, sparsifier, 2)
        assert sparsifier.topology.active == round(curve(step) * sparsifier.topology.size)
        assert all(report.active >= 1 for report in sparsifier.layers)
        if not regenerate:  # what is pruned stays pruned
            assert all(not (new & ~old).any() for new, old in zip(masks_of(sparsifier), previous, strict=True))
        for layer, mask in zip(sparsifier.topology.layers, masks_of(sparsifier), strict=True):
            assert torch.count_nonzero(layer.weight[~mask]) == 0
    assert sparsifier.density == pytest.approx(0.1, abs=0.5 / sparsifier.topology.size)


def test_pruning_every_layer_alike_gives_every_layer_the_density():
    from dst.sparsity.density_schedule import cubic

    plan = UpdatePlan(every=2, total_steps=20)
    curve = cubic(plan, 0.25, end=0.5)
    model, optimizer, sparsifier = small(
        density=None, distribution="dense", plan=plan, density_curve=curve, prune_pool="layer", drop=None, grow=None
    )
    train(model, optimizer, sparsifier, 10)
    for report in sparsifier.layers:
        assert abs(report.active - 0.25 * report.size) <= 1


def test_pruning_every_layer_alike_ends_uniform_from_uneven_layers_too():
    """GraNet_uniform: all layers come to the same density, those that have less already keep what they have."""
    from dst.sparsity.density_schedule import cubic

    plan = UpdatePlan(every=2, total_steps=20)
    curve = cubic(plan, 0.2, initial=0.4, end=0.5)
    model, optimizer, sparsifier = small(density=0.4, plan=plan, density_curve=curve, prune_pool="layer")
    first = [report.active / report.size for report in sparsifier.layers]
    assert max(first) > 2 * min(first)
    train(model, optimizer, sparsifier, 10)
    for report in sparsifier.layers:
        assert abs(report.active - 0.2 * report.size) <= 1
    assert sparsifier.topology.active == round(0.2 * sparsifier.topology.size)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"drop": None}, "drop and grow go together"),
        ({"verify_every": 0}, "verify_every=0: must be >= 1"),
        ({"drop_pool": "all"}, "pool=all: allowed: global, layer"),
        ({"redistribute": "momentums"}, "did you mean 'momentum'"),
        ({"drop": None, "grow": None, "redistribute": "momentum"}, "redistribute would be ignored"),
        ({"drop": partial(drops.threshold, value=0.1), "drop_pool": "global"}, "drop_pool=global would be ignored"),
        ({"plan": None, "density_curve": lambda step: 0.1}, "density_curve would be ignored"),
        ({"drop": None, "grow": None, "drop_fraction": 0.3}, "drop_fraction would be ignored"),
        ({"drop": partial(drops.threshold, value=0.1), "drop_fraction": 0.3}, "drop_fraction would be ignored"),
        ({"drop": None, "grow": None}, "plan would be ignored"),
    ],
)
def test_wrong_compositions(wrong, told):
    with pytest.raises(ValueError, match=told):
        small(**wrong)


# -- thresholds and growth by neuron -----------------------------------------------------------------------------------


def threshold_update(**options):
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -2.0, 3.0, 4.0, 0.5, 0.0, 0.0, 0.0]])
    active = model.weight.detach() != 0
    sparsifier = Sparsifier(
        model,
        torch.optim.SGD(model.parameters(), 0.0),
        density=5 / 8,
        distribution="uniform",
        init=lambda start: [active],
        drop=partial(drops.threshold, **options),
        plan=UpdatePlan(every=1, total_steps=9, regrow=False),
    )
    model.weight.grad = torch.arange(8.0)[None]
    sparsifier.step()
    return sparsifier.topology.masks[0].flatten().nonzero().flatten().tolist(), sparsifier.layers[0].dropped


@pytest.mark.parametrize(
    ("options", "stay", "dropped"),
    [
        ({"value": 0.1}, [0, 1, 2, 3, 4], 0),
        ({"value": 1.0}, [0, 1, 2, 3, 7], 1),  # below 1: 0.5 alone
        ({"value": 2.5}, [2, 3, 5, 6, 7], 3),
        ({"value": 99.0}, [3, 2, 5, 6, 7], 3),  # five are below, but only three places are free
        ({"quantile": 0.2}, [0, 1, 2, 3, 7], 1),
        ({"quantile": 0.59}, [1, 2, 3, 6, 7], 2),  # floor(0.59 * 5)
    ],
)
def test_threshold_drops_what_is_below_it(options, stay, dropped):
    assert threshold_update(**options) == (sorted(stay), dropped)


@pytest.mark.parametrize(
    ("drop", "options", "dropped"),
    [("magnitude", {"drop_fraction": 0.07}, 7), (partial(drops.threshold, quantile=0.29), {}, 29)],
)
def test_shares_of_counts_are_exact(drop, options, dropped):
    """Of 100 active weights 0.07 are 7 (7.000000000000001 in floats), 0.29 are 29 (28.999999999999996)."""
    model = nn.Linear(20, 10, bias=False)
    optimizer = optimizer_of(model, "sgd")
    sparsifier = Sparsifier(
        model, optimizer, density=0.5, drop=drop, plan=UpdatePlan(every=1, total_steps=10, regrow=False), **options
    )
    model(torch.randn(4, 20)).square().sum().backward()
    sparsifier.step()
    assert (sparsifier.layers[0].active, sparsifier.layers[0].dropped) == (100, dropped)


@pytest.mark.parametrize("options", [{}, {"value": 0.1, "quantile": 0.1}])
def test_threshold_needs_exactly_one_of_value_and_quantile(options):
    with pytest.raises(ValueError, match="drop: exactly one of value and quantile is needed, not value="):
        threshold_update(**options)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=6, max_size=6), min_size=1, max_size=5))
def test_growth_by_neuron_is_an_apportionment(rows):
    """Whatever is grown, no unit could give a place to another and be nearer to its share (Sainte-Lague)."""
    average = torch.tensor(rows)
    mask = torch.zeros_like(average, dtype=torch.bool)
    mask[:, 0] = True
    scores = grows.momentum_neuron(LayerView(average, mask, mask, None, 0, average))
    shares = average.mean(1)
    for k in range(1, 5 * len(rows) + 1):
        grown = top_k(scores, k, among=~mask).sum(1)
        assert grown.sum() == k
        for i, here in enumerate(grown):
            for j, there in enumerate(grown):
                if here > 0 and there < 5:
                    assert shares[i] / (here - 0.5) >= shares[j] / (there + 0.5) - 1e-6
    within = scores[0][1:]
    ordered = average[0][1:]
    assert all(within[a] > within[b] for a in range(5) for b in range(5) if ordered[a] > ordered[b] and shares[0] > 0)


@pytest.mark.parametrize(("regrow", "entered"), [(True, [[0], [3]]), (False, [[3], [3]])])
def test_places_that_were_just_left_take_their_turn_in_growth_by_neuron(regrow, entered):
    """Two units of the same mean gradient share two places, though the best two are what the first unit just left."""
    model = nn.Linear(4, 2, bias=False)
    model.weight.data = torch.tensor([[0.1, 0.2, 0.0, 0.0], [8.0, 9.0, 0.0, 0.0]])
    active = model.weight.detach() != 0
    sparsifier = Sparsifier(
        model,
        torch.optim.SGD(model.parameters(), 0.0),
        density=0.5,
        distribution="uniform",
        init=lambda start: [active],
        grow="momentum_neuron",
        drop_fraction=0.5,
        plan=UpdatePlan(every=1, total_steps=9, regrow=regrow),
    )
    model.weight.grad = torch.tensor([[4.0, 3.0, 1.0, 2.0], [2.0, 1.0, 3.0, 4.0]])
    sparsifier.step()
    expected = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])
    for row, places in enumerate(entered):
        expected[row, places] = 1
    assert sparsifier.topology.masks[0].tolist() == expected.bool().tolist()


def test_growth_by_neuron_explores():
    model = net()
    optimizer = optimizer_of(model, "sgd")
    sparsifier = Sparsifier(
        model, optimizer, density=0.1, grow="momentum_neuron", plan=UpdatePlan(every=2, total_steps=99)
    )
    train(model, optimizer, sparsifier, 20)
    assert sparsifier.density == pytest.approx(0.1, abs=1e-3)
    assert sparsifier.rs > 0.15
