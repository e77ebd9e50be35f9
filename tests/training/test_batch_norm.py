"""Statistics of batch norm are found anew as training passes batches, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.training.batch_norm import batch_norms, reestimate
from dst.training.distributed import ALONE
from dst.training.gradients import Passes
from dst.training.precision import Precision
from dst.training.settings import Settings

SAMPLES, BATCH_SIZE = 22, 8  # batches of 8, 8 and 6


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, momentum=0.25), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def batches():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (SAMPLES, 1, 6, 6), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.arange(SAMPLES) % 3)
    return Batches(split, batch_size=BATCH_SIZE, device="cpu", mean=[0.5], std=[0.25], seed=3, shuffle=True)


def passes(precision="fp32", accumulate=1):
    settings = Settings(
        seed=5, label_smoothing=0.0, accumulate=accumulate, channels_last=False, select="last",
        eval_every_epochs=1, log_every_steps=1, checkpoint_every_s=60.0, checkpoint_every_steps=None,
    )  # fmt: skip
    return Passes(settings, Precision(precision, "cpu"), ALONE)


def statistics(model):
    return [getattr(module, name) for module in batch_norms(model) for name in ("running_mean", "running_var")]


def no_tick():
    pass


def test_the_same_pass_gives_the_same_statistics_and_changes_nothing_else():
    """Dropout has random numbers of its own, derived from the seed; weights, momenta and the mode stay."""
    models = [network().train(), network().eval()]
    for number, model in enumerate(models):
        before = copy.deepcopy([*model.parameters()])
        torch.manual_seed(number)
        reestimate(model, passes(), batches(), 4, no_tick)
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
        assert [module.momentum for module in batch_norms(model)] == [0.25, 0.1]
    assert [model.training for model in models] == [True, False]
    assert all(torch.equal(*pair) for pair in zip(*map(statistics, models), strict=True))
    assert not torch.equal(statistics(network())[0], statistics(models[0])[0])
    other = network()
    reestimate(other, passes(), batches(), 5, no_tick)
    assert not torch.equal(statistics(other)[3], statistics(models[0])[3])


def test_parts_of_batches_are_seen_as_in_training():
    """Statistics of the first layer, before any dropout: means over the parts whose gradients are accumulated."""
    model, twin = network(), network()
    reestimate(model, passes(accumulate=2), batches(), 0, no_tick)
    update_bn((part for images, _ in batches().epoch(0) for part in images.chunk(2)), twin)
    assert all(torch.equal(*pair) for pair in zip(statistics(model)[:2], statistics(twin)[:2], strict=True))
    assert model[1].num_batches_tracked == 6
    whole = network()
    update_bn(batches().epoch(0), whole)
    assert not torch.equal(statistics(whole)[1], statistics(model)[1])


def test_the_pass_has_the_runs_precision():
    model, twin = network(), network()
    reestimate(model, passes("bf16"), batches(), 0, no_tick)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        update_bn(batches().epoch(0), twin)
    assert all(torch.equal(*pair) for pair in zip(statistics(model)[:2], statistics(twin)[:2], strict=True))
    exact = network()
    update_bn(batches().epoch(0), exact)
    assert not torch.equal(statistics(exact)[1], statistics(model)[1])


class _StopError(Exception):
    pass


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_pass_that_is_broken_off_leaves_mode_and_momenta(number):
    model, ticks = network().train(), []

    def tick():
        ticks.append(None)
        if len(ticks) == number:
            raise _StopError

    with pytest.raises(_StopError):
        reestimate(model, passes(), batches(), 0, tick)
    assert model.training
    assert [module.momentum for module in batch_norms(model)] == [0.25, 0.1]
