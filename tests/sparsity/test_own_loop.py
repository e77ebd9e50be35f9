"""Anybody's loop: what cannot be held sparse is refused by name, what can is held, with any optimizer and under AMP."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity.init import prune_structured
from dst.sparsity.marks import marked
from dst.sparsity.pattern.n_m import n_m
from dst.sparsity.weights.held import all_finite, begin_state
from dst.training.optimizer import adamw, sgd


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(step, n=32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, 12, generator=generator), torch.randint(3, (n,), generator=generator)


def loss_of(model, step):
    inputs, labels = batch(step)
    return nn.functional.cross_entropy(model(inputs), labels)


def momentum_sgd(model, **options):
    return torch.optim.SGD(model.parameters(), 0.1, **{"momentum": 0.9, "weight_decay": 1e-3, **options})


def sparse(model, optimizer=None, **options):
    """Updated every second step, unless the options say otherwise."""
    options = {"density": 0.2, "plan": UpdatePlan(every=2, total_steps=100), **options}
    return Sparsifier(model, optimizer or momentum_sgd(model), **options)


def train(model, sparsifier, steps, apply=None):
    for _ in range(steps):
        sparsifier.optimizer.zero_grad()
        loss_of(model, sparsifier.steps).backward()
        sparsifier.step(apply)


def real_density(model, sparsifier):
    """Of the weights that the model computes with now."""
    names = [report.layer for report in sparsifier.layers]
    weights = [model.get_submodule(name).weight for name in names]
    return sum(int(torch.count_nonzero(w)) for w in weights) / sum(w.numel() for w in weights)


# -- weights that cannot be held ---------------------------------------------------------------------------------------

PARAMETRISED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", PARAMETRISED)
@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(3, 4, 3), nn.ConvTranspose1d(3, 4, 3)])
def test_a_weight_that_is_computed_anew_is_refused_unless_it_is_left_out(kind, layer):
    model = nn.Module()
    model.plain, model.made = nn.Linear(4, 4), PARAMETRISED[kind](type(layer)(**_sizes(layer)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"layer 'made' computes its weight anew from .*weight.*exclude=\['made'\]"):
        sparse(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    sparsifier = sparse(model, scope=Scope(exclude=["made"]))
    assert [report.layer for report in sparsifier.layers] == ["plain"]
    assert all(name.startswith("made.") for name in sparsifier.outside)


def _sizes(layer):
    if isinstance(layer, nn.Linear):
        return {"in_features": 8, "out_features": 8}
    return {"in_channels": 3, "out_channels": 4, "kernel_size": 3}


def frozen(model):
    model[2].weight.requires_grad_(False)


def in_the_same_memory(model):
    model[2].weight = nn.Parameter(model[0].weight.detach()[:8].view(8, 12))


def untyped(model):
    model[2].weight = nn.Parameter(torch.zeros(8, 16, dtype=torch.uint8), requires_grad=False)


def lazy(model):
    model[2] = nn.LazyLinear(8)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (frozen, "layers 2 are frozen"),
        (in_the_same_memory, r"[02]\.weight and [02]\.weight are two parameters in the same memory"),
        (untyped, r"layer '2' has weights of torch\.uint8"),
        (lazy, "layer '2' has no shape yet"),
    ],
)
def test_other_weights_that_cannot_be_held_are_refused_by_name(change, told):
    model = net()
    change(model)
    with pytest.raises(ValueError, match=told):
        sparse(model)


def test_what_no_scope_can_make_sparse_is_told_and_counted():
    """An embedding and a recurrent layer, of 10 * 8 and two of 32 * 8 weights; attention's projections are held."""
    model = nn.Module()
    model.embedding, model.attention = nn.Embedding(10, 8), nn.MultiheadAttention(8, 2)
    model.memory, model.first, model.last = nn.LSTM(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
    with pytest.warns(UserWarning, match=r"trained dense.*memory\.weight_ih_l0 \(256 weights\)") as told:
        sparsifier = sparse(model, scope=Scope(exclude=["last"]))
    assert "last" not in str(told[0].message)
    assert "in_proj" not in str(told[0].message)
    assert sparsifier.outside == {
        "embedding.weight": 80,
        "memory.weight_ih_l0": 256,
        "memory.weight_hh_l0": 256,
        "last.weight": 16,
    }
    assert sparsifier.topology.size == 192 + 64 + 64  # the attention's projections, and the first layer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sparse(net(), scope=Scope(dense_last=True)).outside == {"4.weight": 24}


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("pattern", {"pattern": "constant_fan_in"}),
        ("pattern", {"pattern": partial(n_m, n=2, m=4, indivisible="dense"), "density": None, "distribution": None}),
        ("init", {"init": partial(prune_structured, rate=0.5), "density": None, "distribution": None}),
        ("grow", {"grow": "momentum_neuron"}),
    ],
)
def test_what_goes_by_output_units_refuses_transposed_convolutions(part, options):
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=f"layer 1 is a transposed convolution.*choose another {part}"):
        sparse(model, **options)
    sparse(model, scope=Scope(exclude=["1"]), **options)
    free = sparse(model, scope=Scope(include=["1"]))  # where it does not matter
    assert free.topology.active == round(0.2 * 8 * 4 * 9)


# -- attention ---------------------------------------------------------------------------------------------------------


def tokens(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 5, 12, generator=generator)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("make", [momentum_sgd, lambda model: torch.optim.AdamW(model.parameters(), 1e-2)])
def test_attention_is_held_and_its_queries_keys_and_values_move(make):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
    sparsifier = sparse(model, make(model), grow="random", verify_every=1)
    names = ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]
    assert [report.layer for report in sparsifier.layers] == names
    assert sparsifier.outside == {}
    fused = model.self_attn.in_proj_weight
    first = sparsifier.topology.masks[0].clone()
    for step in range(13):  # one more than the last update, so that what has grown is not zero any more
        sparsifier.optimizer.zero_grad()
        nn.functional.mse_loss(model(tokens(step)), tokens(step).flip(1)).backward()
        sparsifier.step()
    mask = sparsifier.topology.masks[0]
    assert not fused[~mask].any()
    assert sparsifier.layers[0].active == int(torch.count_nonzero(fused)) == int(first.sum())
    left, entered = (first & ~mask).chunk(3), (mask & ~first).chunk(3)  # of queries, of keys, of values
    assert all(torch.any(part) for part in (*left, *entered))
    with torch.no_grad():  # what torch fuses for inference computes with the same sparse weights
        trained, fast = model(tokens(99)), model.eval()(tokens(99))
    torch.testing.assert_close(fast, trained)
    assert not torch.equal(fast, trained)  # it really was another computation


def test_projections_apart_are_layers_of_their_own():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(12, 2, kdim=7, vdim=5)

        def forward(self, x):
            return self.attention(x, x.new_ones(3, 5, 7), x.new_ones(3, 5, 5))[0]

    model = Cross()
    sparsifier = sparse(model, verify_every=1)
    sizes = {"q_proj": 12 * 12, "k_proj": 12 * 7, "v_proj": 12 * 5, "out_proj": 12 * 12}
    parts = {f"attention.{part}": size for part, size in sizes.items()}
    assert {report.layer: report.size for report in sparsifier.layers} == parts
    for step in range(4):
        sparsifier.optimizer.zero_grad()
        model(tokens(step)).square().mean().backward()
        sparsifier.step()
    assert sparsifier.topology.active == round(0.2 * sum(parts.values()))
    assert not model.attention.v_proj_weight[~sparsifier.topology.masks[2]].any()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("in_proj", lambda module: parametrize.register_parametrization(module, "in_proj_weight", nn.Softsign())),
        ("in_proj", lambda module: prune.l1_unstructured(module, "in_proj_weight", 0.5)),
        ("k_proj", lambda module: parametrize.register_parametrization(module, "k_proj_weight", nn.Softsign())),
        ("out_proj", lambda module: parametrizations.weight_norm(module.out_proj)),
    ],
)
def test_attention_that_computes_its_projection_anew_is_refused_unless_it_is_left_out(part, change):
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, kdim=4 if part == "k_proj" else None))
    change(model[1])
    with pytest.raises(ValueError, match=rf"layer '1\.{part}' computes its weight anew from .*exclude=\['1\.{part}'\]"):
        sparse(model)
    assert f"1.{part}" not in [report.layer for report in sparse(model, scope=Scope(exclude=[f"1.{part}"])).layers]


# -- optimizers --------------------------------------------------------------------------------------------------------

REFUSED = {"Muon", "LBFGS"}
OWN_WAY = {"SparseAdam"}
"""Takes sparse gradients only, and says so."""
OPTIMIZERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in OWN_WAY])
@pytest.mark.parametrize("order", ["after_step", "replaces_step"])
def test_every_optimizer_of_torch_is_held_or_refused_by_name(name, order):
    model = nn.Sequential(nn.Linear(12, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False))
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    plan = UpdatePlan(every=3, total_steps=100, order=order)
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"{name} .*inactive weights would move"):
            sparse(model, optimizer, plan=plan)
        return
    sparsifier = sparse(model, optimizer, plan=plan)
    train(model, sparsifier, 20)
    assert sparsifier.updates == 6
    assert real_density(model, sparsifier) <= sparsifier.density == pytest.approx(0.2, abs=1e-2)
    sparsifier.verify()


class Mixing(torch.optim.SGD):
    """An optimizer of a user whose step of a weight depends on its neighbours."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(0.01 * parameter.grad.mean() + 0.01)


@pytest.mark.parametrize("plan", [None, UpdatePlan(every=50, total_steps=100)])
def test_an_optimizer_that_moves_inactive_weights_is_found_out_at_its_first_step(plan):
    model = net()
    sparsifier = sparse(model, Mixing(model.parameters(), 0.1), plan=plan)
    with pytest.raises(RuntimeError, match=r"not zero in layers 0 \(\d+ of 192\).*Mixing may treat"):
        train(model, sparsifier, 1)


def test_an_optimizer_of_another_model_is_refused():
    model, other = net(), net(1)
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="does not train layers 0, 2, 4: is it of another model"):
        sparse(model, momentum_sgd(other))
    some = torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], 0.1)
    with pytest.raises(ValueError, match="does not train layers 2:"):
        sparse(model, some)
    assert torch.equal(before, model[0].weight)
    sparse(model, some, scope=Scope(exclude=["2"]))


def test_a_second_sparsifier_on_the_same_weights_is_refused():
    model = net()
    optimizer = momentum_sgd(model)
    first = sparse(model, optimizer, scope=Scope(include=["0", "2"]))
    with pytest.raises(ValueError, match=r"another Sparsifier holds layers 0, 2 already.*release\(\)"):
        sparse(model, optimizer)
    beside = sparse(model, optimizer, scope=Scope(include=["4"]))
    assert (len(first.layers), len(beside.layers)) == (2, 1)
    first.release()
    beside.release()
    for _ in range(2):  # one that is no longer used holds nothing, though no garbage was collected
        sparse(model, optimizer)


def test_layers_frozen_during_training_are_told_at_the_next_update():
    model = net()
    sparsifier = sparse(model, grow="random")
    train(model, sparsifier, 1)
    model[2].weight.requires_grad_(False)
    weights = model[2].weight.detach().clone()
    with pytest.raises(RuntimeError, match="layers 2 have been frozen"):
        train(model, sparsifier, 1)
    assert torch.equal(weights, model[2].weight)


@pytest.mark.parametrize(
    "options",
    [
        {"drop": "magnitude"},
        {"grow": "random"},
        {"drop": "magnitude", "grow": "gradient"},
        {"redistribute": "momentum"},
        {"drop_fraction": 0.5},
        {"drop_pool": "global"},
        {"density_curve": lambda step: 0.1},
    ],
)
def test_what_needs_a_plan_is_refused_without(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} would be ignored: without a plan"):
        sparse(net(), plan=None, **options)


# -- gradients that are not masked -------------------------------------------------------------------------------------


def closing(model, sparsifier, masks):
    """Return a closure as optimizers take it."""

    def closure():
        sparsifier.optimizer.zero_grad()
        loss = loss_of(model, 99)
        loss.backward()
        if masks:
            sparsifier.mask_gradients()
        return loss

    return closure


@pytest.mark.parametrize("how", ["a backward pass before the step", "a closure of the optimizer"])
@pytest.mark.parametrize("masks", [True, False])
def test_a_backward_pass_within_the_step_masks_its_gradients_or_is_told(how, masks):
    model = net()
    sparsifier = sparse(model)
    closure, optimizer = closing(model, sparsifier, masks), sparsifier.optimizer

    def apply():
        if how == "a closure of the optimizer":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    if masks:
        train(model, sparsifier, 6, apply)
        assert real_density(model, sparsifier) <= sparsifier.density
        sparsifier.verify()
    else:
        with pytest.raises(RuntimeError, match=r"backward pass within the step.*mask_gradients\(\)"):
            train(model, sparsifier, 1, apply)


def test_a_model_that_is_held_can_be_copied_and_saved(tmp_path):
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 3)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        train(other, sparse(other), 3)
    train(model, sparsifier, 3)


# -- verify ------------------------------------------------------------------------------------------------------------


def moved(model):
    with torch.no_grad():
        model[0].weight.add_(1.0)


def replaced(model):
    model[0].weight = nn.Parameter(torch.ones(16, 12))


def normed(model):
    parametrizations.weight_norm(model[0])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (moved, r"inactive weights are not zero in layers 0 \(1\d\d of 192\)"),
        (replaced, "layer 0 computes with another weight"),
        (normed, "layer 0 computes with another weight"),
    ],
)
def test_verify_compares_the_density_with_that_of_the_weights(change, told):
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 4)
    before = [parameter.clone() for parameter in model.parameters()]
    sparsifier.verify()
    assert all(map(torch.equal, before, model.parameters()))
    change(model)
    with pytest.raises(RuntimeError, match=told):
        sparsifier.verify()


def test_verification_at_every_nth_update():
    model = net()
    sparsifier = sparse(model, grow="random", verify_every=2)
    train(model, sparsifier, 2)
    replaced(model)  # from now on the weight that is updated is not the model's
    train(model, sparsifier, 1)
    with pytest.raises(RuntimeError, match="layer 0 computes with another weight"):
        train(model, sparsifier, 1)
    assert sparsifier.updates == 2


# -- scaled gradients --------------------------------------------------------------------------------------------------


def scaled_loop(model, sparsifier, scaler, steps, overflows=()):
    """Train by a GradScaler; at some steps the scale is such that gradients overflow. Return where updates were."""
    updated = []

    def apply():
        scaler.step(sparsifier.optimizer)
        scaler.update()

    for _ in range(steps):
        step = sparsifier.steps + 1
        sparsifier.optimizer.zero_grad()
        loss = scaler.scale(loss_of(model, step))
        if step in overflows:
            loss = loss * overflows[step]
        loss.backward()
        if sparsifier.step(apply):
            updated.append(step)
    return updated


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("order", ["after_step", "replaces_step"])
@pytest.mark.parametrize("overflow", [INF, NAN, 1e38])
@pytest.mark.parametrize("grow", ["gradient", "random", "momentum"])
def test_an_update_whose_gradients_overflow_is_postponed(fused, order, overflow, grow):
    model = net()
    plan = UpdatePlan(every=4, total_steps=100, order=order)
    sparsifier = sparse(model, momentum_sgd(model, fused=fused), plan=plan, grow=grow)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scale = scaler.get_scale()
    weights, masks = [], []

    def remember():
        weights.append([p.detach().clone() for p in model.parameters()])
        masks.append([mask.clone() for mask in sparsifier.topology.masks])

    assert scaled_loop(model, sparsifier, scaler, 7, {4: overflow, 5: overflow}) == [6]
    assert (sparsifier.updates, sparsifier.postponed) == (1, False)
    assert scaler.get_scale() == scale / 4  # both overflows have reached the scaler
    remember()
    assert scaled_loop(model, sparsifier, scaler, 1, {8: overflow}) == []
    remember()
    assert all(map(torch.equal, *weights))  # the scaler has left the step out
    assert all(map(torch.equal, *masks))
    assert sparsifier.update_due()
    assert scaled_loop(model, sparsifier, scaler, 12) == [9, 12, 16, 20]
    sparsifier.verify()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(torch.isfinite(average).all() for average in sparsifier.topology.momentum)


def test_a_postponed_update_survives_a_resume():
    def fresh():
        model = net()
        return model, sparse(model, plan=UpdatePlan(every=2, total_steps=100))

    model, sparsifier = fresh()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled_loop(model, sparsifier, scaler, 2, {2: INF})
    other_model, other = fresh()
    other_model.load_state_dict(model.state_dict())
    other.optimizer.load_state_dict(sparsifier.optimizer.state_dict())
    other.load_state_dict(sparsifier.state_dict())
    assert scaled_loop(other_model, other, torch.amp.GradScaler("cpu"), 1) == [3]
    former = {key: value for key, value in sparsifier.state_dict().items() if key != "postponed"}
    other.load_state_dict(former)  # as it was stored before there was such a thing
    assert not other.postponed


def test_an_average_of_gradients_leaves_overflowed_steps_out():
    """It is that of a run without these steps."""
    averages = []
    for overflows in ({3: INF, 6: NAN}, {}):
        model = net()
        sparsifier = sparse(
            model,
            torch.optim.SGD(model.parameters(), 0.0),
            grow="momentum",
            plan=UpdatePlan(every=50, total_steps=100),
        )
        for step in range(1, 9):
            if step in (3, 6) and not overflows:
                continue
            sparsifier.optimizer.zero_grad()
            (loss_of(model, step) * overflows.get(step, 1.0)).backward()
            finite = step not in overflows
            sparsifier.step(sparsifier.optimizer.step if finite else lambda: None)
            assert all(torch.isfinite(average).all() for average in sparsifier.topology.momentum)
        averages.append(sparsifier.topology.momentum)
    assert all(map(torch.equal, *averages))


def test_gradients_that_diverge_are_told_and_not_postponed_for_ever():
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 1)
    (loss_of(model, 1) * INF).backward()
    with pytest.raises(RuntimeError, match="gradients of step 2 were not finite and have reached the weights"):
        sparsifier.step()


# -- the state of the optimizer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [sgd, adamw], ids=["sgd", "adamw"])
@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"momentum": 0.0, "nesterov": False}])
def test_a_state_that_begins_with_zeros_gives_the_steps_of_torch(make, options):
    """All layers dense, against an optimizer of torch that no Sparsifier has seen, to the last bit."""
    if make is adamw and options:
        options = {"beta1": 0.8} if "momentum" in options else {"beta2": 0.95}
    runs = []
    for ours in (True, False):
        model = net()
        optimizer = make([{"params": list(model.parameters())}], lr=0.1, weight_decay=1e-3, **options)
        method = Sparsifier(model, optimizer, density=None, distribution="dense") if ours else None
        steps = []
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            method.step() if method else optimizer.step()
            steps.append([p.detach().clone() for p in model.parameters()])
            steps.append([t.clone() for state in optimizer.state.values() for t in state.values()])
        runs.append(steps)
    for ours, plain in zip(*runs, strict=True):
        assert len(ours) == len(plain)
        assert all(map(torch.equal, ours, plain))


@pytest.mark.parametrize("sparse_too", [True, False])
def test_momentum_is_zero_after_a_first_step_that_overflowed(sparse_too):
    """Memory that has been used before is what the optimizer would find."""
    model = net()
    dirt = [torch.full_like(p, NAN) for _ in range(50) for p in model.parameters()]
    optimizer = sgd([{"params": list(model.parameters())}], lr=0.1)
    options = {} if sparse_too else {"density": None, "distribution": "dense", "plan": None}
    sparsifier = sparse(model, optimizer, **options)
    scaler = torch.amp.GradScaler("cpu")
    del dirt
    scaled_loop(model, sparsifier, scaler, 1, {1: INF})
    for parameter in model.parameters():
        assert torch.count_nonzero(optimizer.state[parameter]["momentum_buffer"]) == 0


def test_a_state_from_before_the_first_step_is_filled_up():
    model = net()
    optimizer = momentum_sgd(model, fused=True)
    empty = optimizer.state_dict()
    sparsifier = sparse(model, optimizer)
    state = sparsifier.state_dict()
    optimizer.load_state_dict(empty)
    assert not optimizer.state[model[0].weight]
    sparsifier.load_state_dict(state)
    assert torch.count_nonzero(optimizer.state[model[0].weight]["momentum_buffer"]) == 0


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"dampening": 0.5}, {"fused": False}])
def test_state_is_begun_only_where_it_changes_nothing(options):
    model = net()
    optimizer = momentum_sgd(model, **{"fused": True, **options})
    begin_state(optimizer)
    assert not optimizer.state


# -- what a part reads -------------------------------------------------------------------------------------------------


def by_gradient(layer):
    return layer.dense_gradient().abs()


def by_attribute(layer):
    return layer.gradient.abs()


def by_average(layer):
    return layer.gradient_average().abs()


@pytest.mark.parametrize(
    ("grow", "told"), [(by_gradient, r'@marked\("dense_gradient"\)'), (by_average, r'@marked\("momentum"\)')]
)
def test_growth_that_reads_gradients_without_saying_so_is_told(grow, told):
    model = net()
    sparsifier = sparse(model, grow=grow)
    train(model, sparsifier, 1)
    assert not sparsifier.needs_dense_gradient()  # by which training FLOPs would have been too few
    with pytest.raises(RuntimeError, match=told):
        train(model, sparsifier, 1)


def test_there_is_no_way_around_the_mark():
    model = net()
    with pytest.raises(AttributeError):
        train(model, sparse(model, grow=by_attribute), 2)
    model = net()
    with pytest.raises(RuntimeError, match="not marked to do so"):
        train(model, sparse(model, redistribute=lambda layer: layer.dense_gradient().abs().sum()), 2)


def test_marked_growth_is_counted_and_grows_as_the_catalogues():
    masks = []
    for grow in (marked("dense_gradient")(by_gradient), "gradient"):
        model = net()
        sparsifier = sparse(model, grow=grow)
        train(model, sparsifier, 1)
        assert sparsifier.needs_dense_gradient()
        train(model, sparsifier, 5)
        masks.append(sparsifier.topology.masks)
    assert all(map(torch.equal, *masks))


@pytest.mark.parametrize("slot", ["grow", "redistribute"])
def test_what_comes_after_the_drop_cannot_read_dense_gradients(slot):
    part = marked("dense_gradient", "after_drop")(lambda layer: layer.dense_gradient())
    with pytest.raises(ValueError, match="finds no dense gradients"):
        sparse(net(), **{slot: part})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_numbers_are_told_from_others_in_every_format(dtype):
    large = min(torch.finfo(dtype).max, 1e15)
    tensors = [torch.full((40, 50), large, dtype=dtype), None, torch.zeros(3)]
    assert all_finite(tensors)
    assert all_finite([None])
    for wrong in (INF, -INF, NAN):
        tensors[0][39, 49] = wrong
        assert not all_finite(tensors)


# -- weights from elsewhere --------------------------------------------------------------------------------------------


def _given(model, how):
    """Give a model other weights, all of them, in one of the ways in which loops do so."""
    other = net(seed=7)
    if how == "load_state_dict":
        model.load_state_dict(other.state_dict())
    elif how == "copy_":
        with torch.no_grad():
            for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
                ours.copy_(theirs)
    else:
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(other.parameters()).detach(), model.parameters())


@pytest.mark.parametrize(
    ("compute", "how"),
    [
        *(("masked", how) for how in ("load_state_dict", "copy_", "vector_to_parameters")),
        ("packed", "load_state_dict"),  # packed weights have another shape, which nothing else can fill
    ],
)
@pytest.mark.parametrize("before", [0, 3])
def test_weights_that_are_loaded_later_are_masked_at_the_next_step(how, compute, before):
    model = net()
    sparsifier = Sparsifier(model, momentum_sgd(model), density=0.2, compute=compute)  # static: no update mends it
    train(model, sparsifier, before)
    _given(model, how)
    train(model, sparsifier, 1)
    sparsifier.verify()
    with sparsifier.unpacked():
        assert real_density(model, sparsifier) == pytest.approx(sparsifier.density, abs=0.01)


def test_growth_after_weights_were_loaded_sees_masked_ones():
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 1)
    _given(model, "load_state_dict")
    masks = [mask.clone() for mask in sparsifier.topology.masks]
    train(model, sparsifier, 1)  # an update
    for weight, old, new in zip(sparsifier.weights.weights, masks, sparsifier.topology.masks, strict=True):
        assert (new & ~old).any()
        assert not weight[new & ~old].any()  # what is grown starts from zero, not from what was loaded


def test_a_state_of_the_optimizer_that_is_loaded_later_is_masked_at_the_next_step():
    dense, model = net(seed=1), net()
    other, optimizer = momentum_sgd(dense), momentum_sgd(model)
    loss_of(dense, 0).backward()
    other.step()
    sparsifier = Sparsifier(model, optimizer, density=0.2)
    train(model, sparsifier, 2)
    optimizer.load_state_dict(other.state_dict())  # momentum everywhere
    train(model, sparsifier, 1)
    sparsifier.verify()


def test_weights_that_nobody_else_has_changed_are_not_masked_again(monkeypatch):
    model = net()
    sparsifier = sparse(model)
    passes = []
    zero = type(sparsifier.weights)._zero
    monkeypatch.setattr(type(sparsifier.weights), "_zero", lambda *given: passes.append(1) or zero(*given))
    train(model, sparsifier, 1)
    assert passes == []
    train(model, sparsifier, 1)
    assert sparsifier.updates == 1
    updating = len(passes)  # what an update itself takes
    train(model, sparsifier, 1)
    assert len(passes) == updating
