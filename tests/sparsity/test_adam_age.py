"""Adam's bias corrections go by the age of each weight: a grown one moves as one that begins, all others as ever."""

import copy
import gc
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.weights import adam_age, adam_correction
from dst.sparsity.weights.adam_age import AdamAge, counts_steps
from dst.training.guard import Guard
from dst.training.optimizer import adamw

LR = 0.01
ADAMW = partial(torch.optim.AdamW, lr=LR, weight_decay=0.0)
KINDS = {
    "fused AdamW": partial(ADAMW, fused=True),
    "foreach AdamW": partial(ADAMW, foreach=True),
    "single-tensor AdamW": partial(ADAMW, foreach=False),
    "fused Adam": partial(torch.optim.Adam, lr=LR, fused=True),
    "foreach Adam": partial(torch.optim.Adam, lr=LR, foreach=True),
    "amsgrad": partial(ADAMW, fused=True, amsgrad=True),
    "maximize": partial(ADAMW, maximize=True),
    "L2 decay": partial(torch.optim.Adam, lr=LR, weight_decay=0.1),
    "decoupled decay": partial(ADAMW, weight_decay=0.1),
    "other betas": partial(ADAMW, betas=(0.8, 0.95)),
    "no momentum": partial(ADAMW, betas=(0.0, 0.99)),
    "a large eps": partial(ADAMW, eps=1e-2),
    "a rate on the device": partial(ADAMW, lr=torch.tensor(LR), fused=True),
    "double precision": partial(ADAMW, fused=True),
}


@pytest.fixture(params=[adam_correction.GrownWeights, adam_correction.AllWeights], scope="module", autouse=True)
def part(request):
    """The ways to pass over weights: that of a host, and that of a GPU, which a host takes here too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adam_age, "part_for", lambda device, size: request.param)
        yield request.param


def weights(kind="", seed=0, sizes=((6, 5), (4, 6))):
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if kind == "double precision" else torch.float32
    return [nn.Parameter(torch.randn(*size, generator=generator).to(dtype)) for size in sizes]


def gradients(parameters, generator, scale=1.0):
    for parameter in parameters:
        values = scale * torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(values)  # in the weight's memory order, as autograd's


def set_step(optimizer, step):
    for state in optimizer.state.values():
        state["step"].fill_(step)


@torch.no_grad()
def grow(optimizer, ages, parameters, masks):
    """Let the weights in the masks be new: their values and moments are zero."""
    for parameter, mask in zip(parameters, masks, strict=True):
        state = optimizer.state[parameter]
        for tensor in (parameter, *(v for k, v in state.items() if k != "step")):
            tensor.masked_fill_(mask, 0)
    ages.changed([torch.ones_like(mask) for mask in masks], masks)


def masks_of(parameters, seed=1, share=0.4):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(parameter.shape, generator=generator) < share for parameter in parameters]


def tracked(optimizer, parameters):
    return AdamAge(optimizer, {f"layer {i}": parameter for i, parameter in enumerate(parameters)})


# -- the oracles -------------------------------------------------------------------------------------------------------


BY_TENSOR = {2: 0.744137, 1000: 2.514567, 10_000: 3.162206}
"""The first move of a grown weight, in learning rates, under a constant gradient: by the step at which it comes."""


@pytest.mark.parametrize("step", BY_TENSOR)
@pytest.mark.parametrize("by_weight", [True, False])
def test_a_grown_weight_first_moves_by_a_learning_rate_at_any_step(step, by_weight):
    parameter = nn.Parameter(torch.ones(8, 8))
    optimizer = KINDS["fused AdamW"]([parameter])
    ages = tracked(optimizer, [parameter])
    parameter.grad = torch.ones(8, 8)
    optimizer.step()
    set_step(optimizer, step - 1)
    mask = torch.eye(8, dtype=torch.bool)
    grow(optimizer, ages if by_weight else _NoAge(), [parameter], [mask])
    moves = []
    for _ in range(3):
        before = parameter.detach().clone()
        optimizer.step()
        moves.append((before - parameter.detach())[mask] / LR)
    if by_weight:
        assert all(torch.allclose(move, torch.ones(8), atol=1e-5) for move in moves)
    else:
        assert torch.allclose(moves[0], torch.full((8,), BY_TENSOR[step]), atol=1e-5)


class _NoAge:
    def changed(self, *_):
        """By the age of the tensor: nothing is noted."""


def test_the_published_case_of_an_age_of_two():
    """Moments of .1 and .001 at an age of 2, as a code whose ages begin with 2 has them at the first step: .744137."""
    parameter = nn.Parameter(torch.zeros(4, 4))
    optimizer = KINDS["fused AdamW"]([parameter])
    ages = tracked(optimizer, [parameter])
    parameter.grad = torch.ones(4, 4)
    optimizer.step()
    set_step(optimizer, 500)
    mask = torch.ones(4, 4, dtype=torch.bool)
    grow(optimizer, ages, [parameter], [mask])
    set_step(optimizer, 501)  # an age of 1
    state = optimizer.state[parameter]
    state["exp_avg"].fill_((0.1 - 0.1 * 0.5) / 0.9)  # a gradient of 0.5 makes .1 and .001 of these
    state["exp_avg_sq"].fill_((0.001 - 0.001 * 0.25) / 0.999)
    parameter.grad.fill_(0.5)
    optimizer.step()
    assert torch.allclose(-parameter.detach() / LR, torch.full((4, 4), 0.744137), atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_weight_moves_as_one_of_a_tensor_that_begins_and_others_keep_their_bits(kind):
    """50 steps with any gradients, tiny ones among them (eps), grown at two steps; all others against torch alone."""
    make = KINDS[kind]
    parameters, others = weights(kind), weights(kind)
    optimizer, plain = make(parameters), make(others)
    ages = tracked(optimizer, parameters)
    generator = torch.Generator().manual_seed(2)
    first, second = masks_of(parameters, 3, 0.3), masks_of(parameters, 4, 0.2)
    grown = [torch.zeros_like(mask) for mask in first]
    fresh = {}  # a tensor that begins when these weights do
    for step in range(80):
        gradients(parameters, generator, 1e-8 if step % 7 == 3 else 1.0)
        for parameter, other in zip(parameters, others, strict=True):
            other.grad = parameter.grad.clone()
        for copies, begun in fresh.values():
            for parameter, one in zip(parameters, copies, strict=True):
                one.grad = parameter.grad.clone()
            begun.step()
        optimizer.step()
        plain.step()
        if step in (24, 30):
            masks = first if step == 24 else second
            grow(optimizer, ages, parameters, masks)
            grown = [old | new for old, new in zip(grown, masks, strict=True)]
            copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
            fresh[step] = copies, make(copies)
    for i, parameter in enumerate(parameters):
        assert torch.equal(parameter[~grown[i]], others[i][~grown[i]])
        assert (parameter != others[i])[grown[i]].any()
        for mask, step in ((first[i] & ~second[i], 24), (second[i], 30)):
            copies, _ = fresh[step]
            tolerance = 1e-13 if kind == "double precision" else 1e-6
            assert torch.allclose(parameter[mask], copies[i][mask], rtol=tolerance, atol=tolerance)


def test_dense_adamw_keeps_the_bits_of_torchs():
    results = []
    for holds in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = adamw([{"params": list(model.parameters())}], 0.01, weight_decay=0.1)
        sparsifier = Sparsifier(model, optimizer, density=None, distribution="dense") if holds else None
        for step in range(30):
            optimizer.zero_grad()
            model(torch.randn(8, 12, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            sparsifier.step() if sparsifier else optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(map(torch.equal, *results))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    events=st.lists(st.tuples(st.integers(0, 30), st.floats(0, 0.6)), min_size=1, max_size=4),
    betas=st.sampled_from([(0.9, 0.999), (0.9, 0.95), (0.0, 0.9)]),
    is_last_format=st.booleans(),
)
def test_ages_are_those_of_a_simple_simulation(seed, events, betas, is_last_format):
    """Every weight by itself, with its own age, in double precision; also of a convolution in another memory order."""
    (parameter,) = weights(seed=seed, sizes=((4, 3, 2, 2),))
    if is_last_format:
        parameter.data = parameter.data.to(memory_format=torch.channels_last)
    optimizer = ADAMW([parameter], betas=betas, fused=True)
    ages = tracked(optimizer, [parameter])
    generator = torch.Generator().manual_seed(seed)
    value, first, second, age = parameter.detach().double(), *torch.zeros(3, *parameter.shape, dtype=torch.float64)
    for step in range(32):
        gradients([parameter], generator)
        gradient = parameter.grad.double()
        optimizer.step()
        age += 1
        first, second = (
            betas[0] * first + (1 - betas[0]) * gradient,
            betas[1] * second + (1 - betas[1]) * gradient**2,
        )
        value -= LR * first / (1 - betas[0] ** age) / ((second / (1 - betas[1] ** age)).sqrt() + 1e-8)
        for when, share in events:
            if when == step:
                mask = torch.rand(parameter.shape, generator=generator) < share
                grow(optimizer, ages, [parameter], [mask])
                for tensor in (value, first, second, age):
                    tensor.masked_fill_(mask, 0)
    assert torch.allclose(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)


def test_old_ages_are_forgotten_and_make_no_difference():
    parameters = weights()
    optimizer = ADAMW(parameters, betas=(0.5, 0.9), fused=True)
    ages = tracked(optimizer, parameters)
    generator = torch.Generator().manual_seed(0)
    gradients(parameters, generator)
    optimizer.step()
    grow(optimizer, ages, parameters, masks_of(parameters))
    horizon = math.ceil(math.log(torch.finfo(torch.float32).eps / 4) / math.log(0.9))
    everything = [torch.ones_like(p, dtype=torch.bool) for p in parameters]
    set_step(optimizer, horizon)
    ages.changed(everything, [None, None])
    assert set(ages.state_dict(everything)) == {"layer 0", "layer 1"}
    set_step(optimizer, horizon + 1)
    before = [p.detach().clone() for p in parameters]
    plain_states = copy.deepcopy(optimizer.state_dict())
    optimizer.step()
    corrected = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, was in zip(parameters, before, strict=True):
            parameter.copy_(was)
    optimizer.load_state_dict(plain_states)
    ages.changed(everything, [None, None])
    assert ages.state_dict(everything) == {}
    optimizer.step()
    assert all(torch.allclose(p, was, rtol=0, atol=1e-9) for p, was in zip(parameters, corrected, strict=True))


# -- steps that are none -----------------------------------------------------------------------------------------------


def test_a_veto_is_no_step_of_a_weights_life():
    runs = []
    for vetoes in (True, False):
        parameters = weights()
        optimizer = KINDS["fused AdamW"](parameters)
        guard = Guard(optimizer, nn.ParameterList(parameters))
        ages = tracked(optimizer, parameters)
        generator = torch.Generator().manual_seed(0)
        for step in range(20):
            gradients(parameters, generator)
            if step == 8:
                grow(optimizer, ages, parameters, masks_of(parameters))
            if vetoes and step in (8, 12):  # the first step of a weight's life among them
                good = [p.grad for p in parameters]
                parameters[0].grad = torch.full_like(good[0], math.inf)
                before = [p.detach().clone() for p in parameters]
                guard.judge(torch.zeros(()))
                optimizer.step()
                assert all(map(torch.equal, parameters, before))
                for parameter, gradient in zip(parameters, good, strict=True):
                    parameter.grad = gradient
            guard.judge(torch.zeros(()))
            optimizer.step()
        runs.append([p.detach().clone() for p in parameters])
    assert all(map(torch.equal, *runs))


@pytest.mark.parametrize("fused", [True, False])
def test_steps_that_a_grad_scaler_leaves_out_are_none(fused):
    runs = []
    for overflows in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(8, 8)
        optimizer = torch.optim.AdamW(model.parameters(), LR, fused=fused)
        sparsifier = Sparsifier(model, optimizer, density=0.3, plan=UpdatePlan(every=4, total_steps=100), grow="random")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000, backoff_factor=0.5)

        def apply(scaler=scaler, optimizer=optimizer):
            scaler.step(optimizer)
            scaler.update()

        for step in range(16):
            for bad in [True, False] if overflows and step in (5, 8) else [False]:
                optimizer.zero_grad()
                inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
                loss = model(inputs).square().mean()
                scaler.scale(loss * math.inf if bad else loss).backward()
                if bad:
                    before = model.weight.detach().clone()
                    apply()
                    assert torch.equal(before, model.weight)
                else:
                    sparsifier.step(apply)
        runs.append(model.weight.detach().clone())
    assert torch.equal(*runs)


def test_a_layer_without_a_gradient_gets_no_older():
    """Two layers, of which one is left out of some steps; each against a tensor of its own."""
    parameters = weights()
    optimizer = KINDS["fused AdamW"](parameters)
    ages = tracked(optimizer, parameters)
    alone = [nn.Parameter(p.detach().clone()) for p in parameters]
    own = [KINDS["fused AdamW"]([p]) for p in alone]
    own_ages = [tracked(o, [p]) for o, p in zip(own, alone, strict=True)]
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        optimizer.zero_grad()
        gradients(parameters if step % 3 else parameters[:1], generator)
        for parameter, one, its in zip(parameters, alone, own, strict=True):
            one.grad = None if parameter.grad is None else parameter.grad.clone()
            its.step()
        optimizer.step()
        if step in (5, 17):
            masks = masks_of(parameters, step)
            grow(optimizer, ages, parameters, masks)
            for its, age, one, mask in zip(own, own_ages, alone, masks, strict=True):
                grow(its, age, [one], [mask])
    assert all(map(torch.equal, parameters, alone))
    (batches,) = [len(ages._batches)]
    assert batches == 2


# -- in a sparsifier ---------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def sparse(model, optimizer=None, **options):
    plan = {"every": 3, "total_steps": 1000, **options.pop("plan", {})}
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), LR, fused=True)
    return Sparsifier(model, optimizer, density=0.3, plan=UpdatePlan(**plan), **options)


def train(model, sparsifier, steps):
    for _ in range(steps):
        generator = torch.Generator().manual_seed(sparsifier.steps)
        inputs, labels = torch.randn(16, 12, generator=generator), torch.randint(3, (16,), generator=generator)
        sparsifier.optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        sparsifier.step()


def births(sparsifier):
    """By layer: 0 where no weight is, or one since the start."""
    masks = sparsifier.topology.masks
    found = sparsifier.weights._ages.state_dict(masks)
    names = [report.layer for report in sparsifier.layers]
    return {
        name: torch.zeros_like(mask, dtype=torch.int32).masked_scatter_(mask, found[name])
        for name, mask in zip(names, masks, strict=True)
        if name in found
    }


@pytest.mark.parametrize("order", ["after_step", "replaces_step"])
@pytest.mark.parametrize("returning", ["keep", "reset"])
def test_weights_are_born_when_they_enter_and_only_then(order, returning):
    model = net()
    sparsifier = sparse(model, grow="random", drop_fraction=0.5, plan={"order": order, "returning_weights": returning})
    known = {report.layer: torch.zeros(report.size) for report in sparsifier.layers}
    for _ in range(8):
        train(model, sparsifier, 2)
        before = [mask.clone() for mask in sparsifier.topology.masks]
        train(model, sparsifier, 1)
        now = int(sparsifier.optimizer.state[model[0].weight]["step"])
        found, returned = births(sparsifier), 0
        for report, old, new in zip(sparsifier.layers, before, sparsifier.topology.masks, strict=True):
            born = known[report.layer].view(old.shape)
            is_now = found[report.layer] == now
            assert is_now[new & ~old].all()
            returned += int((is_now & old).sum())
            expected = torch.where(is_now, now, born * new)
            assert torch.equal(found[report.layer].float(), expected)
            known[report.layer] = expected.flatten()
        assert (returned > 0) == (returning == "reset")
        weights = [model[i].weight for i in (0, 2, 4)]
        for weight, report in zip(weights, sparsifier.layers, strict=True):  # what was born just now has no moments
            for moment in ("exp_avg", "exp_avg_sq"):
                assert (sparsifier.optimizer.state[weight][moment][found[report.layer] == now] == 0).all()


def test_by_the_tensor_is_as_without_any_correction():
    runs = []
    for corrects in (True, False):
        model = net()
        sparsifier = sparse(model, plan={"adam_age": "tensor"})
        if not corrects:
            sparsifier.weights._ages.release()
        train(model, sparsifier, 20)
        assert births(sparsifier) == {}
        assert "births" not in sparsifier.state_dict()
        runs.append(model)
    assert all(map(torch.equal, runs[0].parameters(), runs[1].parameters()))
    model = net()
    train(model, sparse(model), 20)
    assert not torch.equal(model[0].weight, runs[0][0].weight)  # and the default is another


def test_weights_that_other_masks_let_in_are_new():
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 2)
    torch.manual_seed(1)
    before = list(sparsifier.topology.masks)
    masks = [mask.flatten()[torch.randperm(mask.numel())].view_as(mask) for mask in before]
    sparsifier.set_masks(masks)
    for found, old, new in zip(births(sparsifier).values(), before, masks, strict=True):
        assert torch.equal(found == 2, new & ~old)
        assert (found == 0)[~new | old].all()


def test_what_is_pruned_is_forgotten():
    model = net()
    curve = lambda step: 0.3 if step < 9 else 0.1  # noqa: E731
    sparsifier = sparse(model, density_curve=curve, drop_pool="layer")
    train(model, sparsifier, 12)
    for found, mask in zip(births(sparsifier).values(), sparsifier.topology.masks, strict=True):
        assert (found[~mask] == 0).all()
        assert (found[mask] > 0).any()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax])
@pytest.mark.parametrize("age", ["weight", "tensor"])
def test_other_optimizers_are_left_as_they_are_and_an_age_for_them_is_refused(make, age):
    model = net()
    assert not counts_steps(make(model.parameters(), lr=LR))
    assert sparse(model, make(model.parameters(), lr=LR)).weights._ages is None
    model = net()
    with pytest.raises(ValueError, match=f"adam_age={age} would be ignored: {make.__name__} does not correct"):
        sparse(model, make(model.parameters(), lr=LR), plan={"adam_age": age})


def test_an_age_without_growth_is_refused_also_in_a_later_phase():
    told = "adam_age=weight would be ignored: nothing is grown"
    options = {"drop": None, "grow": None, "density_curve": lambda step: 0.2}
    with pytest.raises(ValueError, match=told):
        sparse(net(), plan={"adam_age": "weight"}, **options)
    model = net()
    sparsifier = sparse(model, torch.optim.SGD(model.parameters(), 0.1))
    other = net()
    later = sparse(other, plan={"adam_age": "weight"}).topology_update
    with pytest.raises(ValueError, match="adam_age=weight would be ignored: SGD"):
        sparsifier.begin(later)


class OwnStep(torch.optim.AdamW):
    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)


class OwnName(torch.optim.AdamW):
    pass


def test_a_class_with_a_step_of_its_own_is_left_alone():
    model = net()
    assert not counts_steps(OwnStep(model.parameters()))
    assert counts_steps(OwnName(model.parameters()))
    assert counts_steps(torch.optim.Adam(model.parameters()))


def test_a_scheduler_may_wrap_the_step_and_move_rate_and_betas():
    """OneCycleLR moves both; the first move of a grown weight is still a rate, under a constant gradient."""
    parameter = nn.Parameter(torch.ones(6, 6))
    optimizer = KINDS["foreach AdamW"]([parameter])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40)
    ages = tracked(optimizer, [parameter])
    mask = torch.eye(6, dtype=torch.bool)
    for step in range(20):
        parameter.grad = torch.ones(6, 6)
        before, rate = parameter.detach().clone(), optimizer.param_groups[0]["lr"]
        optimizer.step()
        if step == 11:
            assert torch.allclose((before - parameter.detach())[mask], torch.full((6,), rate), rtol=1e-4)
        schedule.step()
        if step == 10:
            grow(optimizer, ages, [parameter], [mask])


choose = adam_age.part_for


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [
        ("cpu", 8, adam_correction.GrownWeights),
        ("cuda", 2**26, adam_correction.AllWeights),
        ("cuda", 2**26 + 1, adam_correction.GrownWeights),
    ],
)
def test_a_gpu_passes_over_all_weights_unless_they_are_very_many(device, size, expected):
    assert choose(torch.device(device), size) is expected


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.operations.append(operation.name())
        return operation(*args, **(kwargs or {}))


def test_on_a_gpu_as_many_operations_are_launched_however_many_layers_there_are(part):
    counts = {}
    for layers in (2, 6):
        parameters = weights(sizes=[(6, 5)] * layers)
        optimizer = KINDS["fused AdamW"](parameters)
        ages = tracked(optimizer, parameters)
        gradients(parameters, torch.Generator().manual_seed(0))
        optimizer.step()
        grow(optimizer, ages, parameters, masks_of(parameters))
        optimizer.step()
        with Counted() as counted:
            ages._after_step()
        counts[layers] = sum("_local_scalar" not in name for name in counted.operations)
    if part is adam_correction.AllWeights:
        assert counts == {2: 16, 6: 16}  # four of them of numbers that a host would read
    else:
        assert counts[6] - counts[2] == 4 * 3


@pytest.mark.parametrize("vetoed", [None, 0.0, 1.0])
def test_a_step_on_a_gpu_reads_no_number_on_the_host_and_takes_a_rate_from_a_tensor(part, vetoed):
    """To the same bits, whether the rate is a number or a tensor of either precision; as on a host."""
    found = {}
    for rate in (LR, torch.tensor(LR), torch.tensor(LR, dtype=torch.float64)):
        parameters = weights()
        optimizer = ADAMW(parameters, lr=rate, fused=True)
        ages = tracked(optimizer, parameters)
        gradients(parameters, torch.Generator().manual_seed(0))
        optimizer.step()
        grow(optimizer, ages, parameters, masks_of(parameters))
        before = [parameter.detach().clone() for parameter in parameters]
        for state in optimizer.state.values():
            state["step"] += 1
            state["exp_avg_sq"].add_(0.5)
            state["exp_avg"].add_(0.25)
        if vetoed is not None:
            optimizer.found_inf = torch.tensor(vetoed)
        with Counted() as counted:
            ages._after_step()
        reads = sum("_local_scalar" in name for name in counted.operations)
        assert reads == 0 if part is adam_correction.AllWeights else reads > 0
        moved = [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
        masks = masks_of(parameters)
        assert all((moves[mask] != 0).all() == (vetoed != 1) for moves, mask in zip(moved, masks, strict=True))
        assert all((moves[~mask] == 0).all() for moves, mask in zip(moved, masks, strict=True))
        found[rate] = parameters
    first, *others = found.values()
    assert all(torch.equal(one, other) for rest in others for one, other in zip(first, rest, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision_and_of_mixed_memory_orders(dtype):
    """A first move of one rate, in layers of which one has its channels last, and moments that have not."""
    parameters = weights(sizes=((4, 3, 2, 2), (5, 3, 2, 2)))
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    parameters[1].data = parameters[1].data.to(memory_format=torch.channels_last)
    optimizer = ADAMW(parameters, foreach=True)
    ages = tracked(optimizer, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    for _ in range(4):
        optimizer.step()
    for moment in ("exp_avg", "exp_avg_sq"):
        optimizer.state[parameters[1]][moment] = optimizer.state[parameters[1]][moment].contiguous()
    masks = masks_of(parameters)
    grow(optimizer, ages, parameters, masks)
    optimizer.step()
    for parameter, mask in zip(parameters, masks, strict=True):
        tolerance = 1e-6 if dtype == torch.float64 else 0.02
        assert torch.allclose(parameter.detach()[mask].double() / LR, torch.tensor(-1.0).double(), rtol=tolerance)


def test_the_table_of_corrections_is_made_with_the_ages_and_anew_only_for_other_betas(monkeypatch):
    """Making it waits for a device, which an ordinary step never does."""
    parameters = weights()
    optimizer = KINDS["fused AdamW"](parameters)
    ages = tracked(optimizer, parameters)
    made, make = [], adam_correction._curve
    monkeypatch.setattr(adam_correction, "_curve", lambda betas, dtype: (made.append(betas), make(betas, dtype))[1])
    for step in range(12):
        gradients(parameters, torch.Generator().manual_seed(step))
        optimizer.param_groups[0]["betas"] = (0.9, 0.999) if step < 8 else (0.8, 0.99)
        optimizer.step()
        assert len(made) == (0 if step <= 3 else 1 if step < 8 else 2)
        if step == 3:
            grow(optimizer, ages, parameters, masks_of(parameters))
            assert made == [(0.9, 0.999)]
    assert made[1:] == [(0.8, 0.99)]


def test_layers_of_two_groups_go_by_their_own_rates():
    parameters = weights()
    groups = [
        {"params": parameters[:1], "lr": 0.1},
        {"params": parameters[1:], "lr": 0.001, "betas": (0.5, 0.9), "eps": 1e-4},
    ]
    optimizer = torch.optim.AdamW(groups, fused=True, weight_decay=0)
    ages = tracked(optimizer, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    for _ in range(30):
        optimizer.step()
    masks = masks_of(parameters)
    grow(optimizer, ages, parameters, masks)
    optimizer.step()
    for parameter, mask, rate in zip(parameters, masks, (0.1, 0.001 / (1 + 1e-4)), strict=True):
        assert torch.allclose(parameter.detach()[mask], torch.tensor(-rate), rtol=1e-5)


# -- state and life ----------------------------------------------------------------------------------------------------


def test_a_resume_has_the_same_bits_and_a_state_from_before_has_no_ages():
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 10)
    state = copy.deepcopy((model.state_dict(), sparsifier.optimizer.state_dict(), sparsifier.state_dict()))
    assert all(born.dtype == torch.int32 for born in state[2]["births"].values())
    assert {name: len(born) for name, born in state[2]["births"].items()} == sparsifier.topology.active_by_layer
    train(model, sparsifier, 10)

    def resumed(state):
        other = net()
        again = sparse(other)
        other.load_state_dict(state[0])
        again.optimizer.load_state_dict(copy.deepcopy(state[1]))
        again.load_state_dict(state[2])
        return other, again

    other, again = resumed(state)
    train(other, again, 10)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    ours, theirs = again.state_dict()["births"], sparsifier.state_dict()["births"]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    old = {key: value for key, value in state[2].items() if key != "births"}
    other, again = resumed((*state[:2], old))
    assert births(again) == {}
    train(other, again, 10)
    assert not torch.equal(model[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda born: {**born, "9": born["0"]}, "of another model: it has layers 9"),
        (lambda born: {**born, "0": born["0"][1:]}, r"layer 0: \d+ ages are stored for \d+ weights"),
    ],
)
def test_ages_of_others_are_refused(change, told):
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 4)
    state = sparsifier.state_dict()
    with pytest.raises(ValueError, match=told):
        sparsifier.load_state_dict({**state, "births": change(state["births"])})


def test_a_released_or_forgotten_sparsifier_leaves_the_optimizer_alone():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), LR, fused=True)
    for how in ("release", "forget"):
        sparsifier = sparse(model, optimizer)
        train(model, sparsifier, 4)
        assert len(optimizer._optimizer_step_post_hooks) == 1
        if how == "release":
            sparsifier.release()
        del sparsifier
        gc.collect()
        assert len(optimizer._optimizer_step_post_hooks) == 0
    optimizer.step()


def test_an_optimizer_that_is_watched_can_be_copied_and_pickled():
    model = net()
    sparsifier = sparse(model)
    train(model, sparsifier, 5)
    copied = copy.deepcopy(sparsifier.optimizer)
    pickled = pickle.loads(pickle.dumps(sparsifier.optimizer.state_dict()))
    assert len(copied._optimizer_step_post_hooks) == 0
    assert pickled["state"].keys() == sparsifier.optimizer.state_dict()["state"].keys()
    train(model, sparsifier, 5)


def test_memory_that_is_given_anew_is_found():
    """``model.to`` moves a weight, loading replaces moments: both between two updates."""
    runs = []
    for moves in (True, False):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 3))
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
        sparsifier = sparse(model, plan={"every": 4})
        for step in range(12):
            generator = torch.Generator().manual_seed(step)
            sparsifier.optimizer.zero_grad()
            model(torch.randn(4, 3, 4, 4, generator=generator)).square().mean().backward()
            sparsifier.step()
            if moves and step == 5:
                for parameter in model.parameters():
                    parameter.data = parameter.data.clone()
                sparsifier.optimizer.load_state_dict(copy.deepcopy(sparsifier.optimizer.state_dict()))
        runs.append(model)
    assert all(map(torch.equal, runs[0].parameters(), runs[1].parameters()))


# -- an optimizer whose state is another, or a copy --------------------------------------------------------------------


def grown_by_adamw(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), **options}], lr=0.01)
    plan = UpdatePlan(every=3, total_steps=1000)
    return model, optimizer, Sparsifier(model, optimizer, density=0.3, plan=plan)


def train_on(model, sparsifier, first, last):
    for i in range(first, last):
        sparsifier.optimizer.zero_grad()
        model(torch.randn(16, 20, generator=torch.Generator().manual_seed(i))).square().mean().backward()
        sparsifier.step()


def test_weights_that_a_new_state_has_not_seen_grow_are_of_its_age():
    """All moments begin anew, so torch's own correction is right for every weight."""
    model, optimizer, sparsifier = grown_by_adamw()
    train_on(model, sparsifier, 0, 7)
    before = [weight.detach().clone() for weight in sparsifier.weights.parameters]
    optimizer.state.clear()
    train_on(model, sparsifier, 7, 8)
    for weight, old, mask in zip(sparsifier.weights.parameters, before, sparsifier.topology.masks, strict=True):
        moved = (weight.detach() - old * (1 - 0.01 * 0.01)).abs()[mask]
        assert moved.max() == pytest.approx(0.01, rel=1e-2)
        assert moved.median() > 0.009


def test_an_older_state_of_the_optimizer_forgets_who_was_not_born_then():
    model, optimizer, sparsifier = grown_by_adamw()
    train_on(model, sparsifier, 0, 4)
    older = copy.deepcopy(optimizer.state_dict())
    train_on(model, sparsifier, 4, 8)
    assert {int(born.max()) for born in sparsifier.weights.births.values()} == {6}
    optimizer.load_state_dict(older)
    assert {int(born.max()) for born in sparsifier.weights.births.values()} == {3}


def test_a_copy_of_all_three_trains_alike():
    model, optimizer, sparsifier = grown_by_adamw()
    train_on(model, sparsifier, 0, 8)
    twin, _, other = copy.deepcopy((model, optimizer, sparsifier))
    train_on(model, sparsifier, 8, 14)
    train_on(twin, other, 8, 14)
    assert torch.equal(model[0].weight, twin[0].weight)
    assert torch.equal(model[2].weight, twin[2].weight)


def test_betas_may_be_a_list():
    model, _, sparsifier = grown_by_adamw(betas=[0.9, 0.999])
    other, _, same = grown_by_adamw(betas=(0.9, 0.999))
    train_on(model, sparsifier, 0, 8)
    train_on(other, same, 0, 8)
    assert torch.equal(model[0].weight, other[0].weight)


def test_one_optimizer_is_enough():
    model, _, sparsifier = grown_by_adamw()
    with pytest.raises(RuntimeError, match="an optimizer trains these weights already"):
        sparsifier.attach(torch.optim.SGD(model.parameters(), 0.1))
