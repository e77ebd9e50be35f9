"""What weight decay alone makes of a parameter, against torch's optimizers that do nothing else."""

import math

import pytest
import torch

from dst.sparsity.marks import marks_of
from dst.training.decay import left_by_decay
from dst.training.lr import LRPlan, constant, cosine, multistep
from dst.training.optimizer import adamw, sgd

MNIST = LRPlan(0.1, 6 * 422)


def rates_of(*curves):
    return [curve(step) for curve, steps in curves for step in range(steps)]


def simulated(make, decay, rates, **options):
    """Return the share that an optimizer leaves of a parameter without gradients."""
    parameter = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = make([{"params": [parameter], "weight_decay": decay}], lr=rates[0], **options)
    parameter.grad = torch.zeros_like(parameter)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return float(parameter.detach())


SGD = [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": False}, {"momentum": 0.0, "nesterov": False}]
CURVES = {
    "cosine": (cosine(MNIST), 2532),
    "warm": (cosine(LRPlan(0.1, 2532, 500)), 2532),
    "steps": (multistep(MNIST, milestones=[0.5, 0.75]), 2532),
    "constant": (constant(LRPlan(0.05, 1500)), 1500),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("options", SGD)
def test_sgd(options, curve):
    """Momentum has not carried all of it on by the end where the rate does not fall to zero: ten steps' worth."""
    rates = rates_of(CURVES[curve])
    left = left_by_decay(marks_of(sgd), rates, options["momentum"])
    for decay in (1e-4, 1e-3):
        assert math.log(simulated(sgd, decay, rates, **options)) == pytest.approx(math.log(left(decay)), rel=0.02)


@pytest.mark.parametrize("curve", CURVES)
def test_adamw(curve):
    rates = rates_of(CURVES[curve])
    left = left_by_decay(marks_of(adamw), rates)
    for decay in (1e-4, 1e-2, 0.5):
        assert simulated(adamw, decay, rates) == pytest.approx(left(decay), rel=1e-9)


def test_it_is_over_all_phases():
    curves = [(cosine(LRPlan(0.1, 800)), 800), (constant(LRPlan(0.01, 400)), 400)]
    rates = rates_of(*curves)
    for make, momentum in ((sgd, 0.9), (adamw, 0.0)):
        whole = left_by_decay(marks_of(make), rates, momentum)(1e-3)
        parts = [left_by_decay(marks_of(make), rates_of(curve), momentum)(1e-3) for curve in curves]
        assert whole == pytest.approx(math.prod(parts), rel=1e-12)
        assert whole == pytest.approx(simulated(make, 1e-3, rates), rel=1e-2)


def test_known_settings():
    """Of 54,000 images of MNIST in batches of 128, and of CIFAR-10: where thresholds' s gets from -200."""
    mnist = left_by_decay(marks_of(sgd), rates_of(CURVES["cosine"]), 0.9)
    assert -200 * mnist(1e-3) == pytest.approx(-57, abs=1)
    published = rates_of((cosine(LRPlan(0.1, 100 * 196)), 100 * 196))
    assert -200 * left_by_decay(marks_of(sgd), published[: 20 * 196], 0.9)(1e-3) > -6
    shipped = rates_of((cosine(LRPlan(0.1, 160 * 196), floor=0.01), 160 * 196))
    assert -200 * left_by_decay(marks_of(sgd), shipped, 0.9)(1e-4) == pytest.approx(-35, abs=1)


def test_a_decay_that_takes_all_leaves_nothing():
    assert left_by_decay(marks_of(adamw), [0.1, 0.1])(20.0) == 0
    assert left_by_decay(marks_of(sgd), [0.1] * 10, 0.9)(1e6) == 0


def test_of_another_optimizer_nothing_is_known():
    assert left_by_decay(["ages"], [0.1]) is None
