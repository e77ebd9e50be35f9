"""Layouts, formats and accumulation change the arithmetic a little and the algorithm not at all."""

import math

import pytest
import torch
from torch import nn

from dst.config.schema import (
    Config,
    Data,
    Distribution,
    Drop,
    DropFraction,
    Grow,
    Hardware,
    LearningRate,
    Model,
    Optimizer,
    Schedule,
    Sparsity,
    complete,
)
from dst.data.options import Augment
from dst.models.resnet_cifar import resnet18
from dst.run.build import build
from dst.sparsity.options import Update
from dst.training.decay import parameter_groups
from dst.training.guard import DivergedError
from dst.training.observer import NoObserver
from dst.training.precision import Precision
from dst.training.stopping import StopFlag


@pytest.fixture
def training(tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "cache"

    def make(epochs=1, accumulate=1, batch_size=64, model=None, **hardware):
        config = Config(
            model=model or Model(name="mlp", hidden=[64]),
            data=Data(augment=Augment(), cache=str(cache)),
            sparsity=Sparsity(
                label="rigl_itop",
                density=0.1,
                distribution=Distribution("erk"),
                drop=Drop("magnitude"),
                grow=Grow("gradient"),
                drop_fraction=DropFraction(name="cosine", initial=0.5),
                update=Update(every=10),
            ),
            schedule=Schedule(
                epochs=epochs,
                batch_size=batch_size,
                accumulate=accumulate,
                optimizer=Optimizer(weight_decay=5e-4),
                lr=LearningRate(peak=0.1),
            ),
            hardware=Hardware(threads=1, **hardware),
        )
        return build(complete(config)).training

    return make


def first_masks(training):
    """Train to just after the first update and return the masks, flat."""
    batches = training.train_batches.epoch(0)
    for _ in range(10):
        training.train_step(*next(batches), NoObserver())
    assert training.sparsifier.updates == 1
    return torch.cat([mask.flatten() for mask in training.sparsifier.topology.masks])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_update_waits_for_its_gradients_once(training, precision, monkeypatch):
    """The loop makes sure that they are finite, so that the sparsifier need not look at them again."""
    one = training(precision=precision)
    batches = one.train_batches.epoch(0)
    one.train_step(*next(batches), NoObserver())  # the first step is also looked at for what the optimizer does
    monkeypatch.setattr("dst.sparsity.weights.holder.all_finite", lambda _: pytest.fail("looked again"))
    while one.sparsifier.updates < 2:
        one.train_step(*next(batches), NoObserver())


@pytest.mark.parametrize(
    ("hardware", "differing"),
    [
        # Of 466 active weights: how many may be others than in fp32 after the first update. bf16 keeps 8 bits of a
        # gradient, fp16 11 bits; near-ties at the threshold of growth may then fall the other way.
        ({"precision": "bf16"}, 0.05),
        ({"precision": "fp16"}, 0.02),
        ({"channels_last": True}, 0.0),
        ({"compile": True}, 0.01),
    ],
)
def test_first_masks_are_those_of_fp32(training, hardware, differing):
    expected, found = first_masks(training()), first_masks(training(**hardware))
    assert int(found.sum()) == int(expected.sum())
    assert int((expected & ~found).sum()) <= differing * int(expected.sum())


def test_channels_last_convolutions_keep_masks_and_weights_in_step(training):
    """Masks take the layout of their weights, whose order of elements in memory is another."""
    model = Model(name="resnet18")
    results = []
    for channels_last in (False, True):
        run = training(model=model, channels_last=channels_last, batch_size=8)
        batches = run.train_batches.epoch(0)
        run.sparsifier.steps = 8  # the second step is the first update
        for _ in range(2):
            run.train_step(*next(batches), NoObserver())
        assert run.sparsifier.updates == 1
        weights = [layer.weight for layer in run.sparsifier.topology.layers]
        for weight, mask, (_, dtyped) in zip(
            weights, run.sparsifier.topology.masks, run.sparsifier.weights._sparse, strict=False
        ):
            assert dtyped.stride() == weight.stride() or dtyped.shape != weight.shape
            assert torch.count_nonzero(weight[~mask]) == 0
        if channels_last:
            assert weights[1].is_contiguous(memory_format=torch.channels_last)
        results.append(torch.cat([mask.flatten() for mask in run.sparsifier.topology.masks]))
    same = int((results[0] & results[1]).sum()) / int(results[0].sum())
    assert same > 0.99


def test_accumulated_parts_make_the_step_of_the_whole_batch(training):
    """Also where the parts are not equal: the last batch of an epoch has 14 samples."""
    runs = [training(accumulate=parts) for parts in (1, 3)]
    for run in runs:
        run.run(NoObserver(), StopFlag())
    for whole, parts in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-5)
    assert runs[0].ledger.total == runs[1].ledger.total
    assert runs[0].counters.samples == runs[1].counters.samples == 1294


def set_scale(run, scale):
    run.precision.load_state_dict({**run.precision.state_dict(), "scale": scale})


def scale_of(run):
    return run.precision.state_dict()["scale"]


def test_an_overflowing_scale_costs_steps_not_the_run(training):
    run = training(precision="fp16")
    set_scale(run, 2.0**40)
    before = [p.detach().clone() for p in run.model.parameters()]
    batches = run.train_batches.epoch(0)
    run.train_step(*next(batches), NoObserver())
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert scale_of(run) == 2.0**39
    run._guard.check(now=True)  # infinite gradients are normal


def test_momentum_is_zero_where_the_very_first_step_overflows(training):
    dirt = [torch.full((n,), math.nan) for n in (16, 64, 128, 640, 2560, 16384, 65536) for _ in range(40)]
    run = training(precision="fp16")
    set_scale(run, 2.0**40)
    del dirt
    run.train_step(*next(run.train_batches.epoch(0)), NoObserver())
    for parameter in run.model.parameters():
        assert torch.count_nonzero(run.optimizer.state[parameter]["momentum_buffer"]) == 0


def test_an_update_sees_gradients_without_overflow(training):
    run = training(precision="fp16")
    batches = run.train_batches.epoch(0)
    for _ in range(9):
        run.train_step(*next(batches), NoObserver())
    set_scale(run, 2.0**40)
    flops = run.ledger.total
    run.train_step(*next(batches), NoObserver())
    assert run.sparsifier.updates == 1
    assert scale_of(run) < 2.0**40
    repeated = round(math.log2(2.0**40 / scale_of(run)))
    costs = run.ledger.flops
    one = 64 * (costs.test(run.active) + costs.backward(run.active) + costs.dense_gradient(run.active))
    assert run.ledger.total - flops == (1 + repeated) * one  # what was computed again is counted again


def test_a_vanished_scale_is_divergence(training):
    run = training(precision="fp16")
    set_scale(run, 2.0**-11)
    with pytest.raises(DivergedError):
        run.run(NoObserver(), StopFlag())


def test_scale_is_part_of_the_state():
    precision = Precision("fp16", "cpu")
    precision._scaler.scale(torch.ones(()))
    precision.halve_scale()
    other = Precision("fp16", "cpu")
    other.load_state_dict(precision.state_dict())
    assert float(other.scaled(torch.ones(()))) == float(precision.scaled(torch.ones(()))) == 2.0**15


def test_scale_and_counter_stay_where_they_are():
    assert Precision("bf16", "cpu").step_tensors == []
    precision = Precision("fp16", "cpu")
    assert precision.step_tensors == []  # until the first loss is scaled
    precision.scaled(torch.ones(()))
    scale, counter = precision.step_tensors
    state = precision.state_dict()
    precision.halve_scale()
    assert float(scale) == 2.0**15
    precision.load_state_dict({**state, "_growth_tracker": 7})
    assert (float(scale), int(counter)) == (2.0**16, 7)
    assert all(now is then for now, then in zip(precision.step_tensors, (scale, counter), strict=True))


def test_unknown_precision():
    with pytest.raises(ValueError, match="name=fp8: did you mean 'fp32'\\? allowed: bf16, fp16, fp32, tf32"):
        Precision("fp8", "cpu")
    with pytest.raises(ValueError, match="name=tf32: with device=cpu it would be ignored: only GPUs have it"):
        Precision("tf32", "cpu")


def test_decay_is_told_by_the_type_of_the_module():
    """Down-sampling batch norms have no 'bn' in their name, and are norms all the same."""
    with torch.device("meta"):
        model = nn.Sequential(resnet18((3, 32, 32), 10), nn.Linear(10, 5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def groups(decay):
        return [sorted(names[id(p)] for p in group["params"]) for group in parameter_groups(model, decay)]

    (everything,) = groups("all")
    decayed, rest = groups("not_norms")
    assert sorted(decayed + rest) == everything
    assert "1.bias" in decayed
    assert "0.layer2.0.shortcut.1.weight" in rest
    assert len(rest) == 2 * 20
    decayed, rest = groups("weights")
    assert sorted(decayed + rest) == everything
    assert len(decayed) == 21 + 1
    assert "1.bias" in rest
