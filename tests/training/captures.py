"""What tests of captured steps share: short trainings that are stopped and continued, and what is compared of them."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dst.run.build import build
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.sparsity import test_catalogue as catalogue

LENGTH = ("schedule.epochs=3", "schedule.batch_size=24")  # epochs of 12 steps, the last of which has fewer samples
EVERY = 5


class Log(NoObserver):
    """Keeps what it is told, and asks to stop after a step."""

    def __init__(self, stop_after=None):
        self.rows, self.lines, self.saved = [], [], None
        self.stop, self._stop_after = StopFlag(), stop_after

    def on_metrics(self, step, epoch, values):
        self.rows.append((step, {name: value for name, value in values.items() if not name.startswith("time/")}))

    def on_capture(self, step, line):
        self.lines.append(line)

    def on_step(self, step):
        if self._stop_after is not None and step == self._stop_after - 1:
            self.stop.requested = "SIGTERM"

    def on_checkpoint(self, step, state):
        self.saved = copy.deepcopy(state)


def composed(method, model="lenet_300_100", options=()):
    config = catalogue.composed(method, model, (*LENGTH, *options))
    if config.sparsity.update.every is not None:
        config.sparsity.update.every = EVERY
    return config


def trained(config, *, stop_after=None, state=None, begin=None):
    """Train, and return the training and what it has told; ``begin``: what is done to it before its first step."""
    training, log = build(config).training, Log(stop_after)
    if state is not None:
        training.load_state_dict(state)
    if begin is not None:
        begin(training)
    try:
        training.run(log, log.stop)
    except StopRequestedError:
        assert training.counters.step == stop_after
    return training, log


def compare(eagerly, captured):
    """Train in both ways, captured with a stop in the midst of the second epoch; compare everything, bit by bit."""
    eager, expected = eagerly()
    stopped, before = captured(stop_after=18)
    resumed, after = captured(state=before.saved)
    assert eager.replays.steps == 0
    assert stopped.replays.steps > 2
    assert resumed.replays.steps > 2
    assert differing(eager, resumed) == []
    assert [*before.rows, *after.rows] == expected.rows
    assert sum(line.startswith("captured the step in") for line in after.lines) == 1
    return resumed, after


def leaves(value, name=""):
    """Yield all tensors and numbers of a state, by their names; times aside."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{i}")
    elif "seconds" not in name:
        yield name, value


def differing(one, other):
    """Return the names of what differs between the states of two trainings."""
    ours, theirs = dict(leaves(one.state_dict())), dict(leaves(other.state_dict()))
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not same(value, theirs[name])]


def same(one, other):
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


class Reading(nn.Module):
    """A module of somebody who looks at every batch, or at every gradient."""

    def __init__(self, inner, *, backward=False):
        super().__init__()
        self.inner, self.backward = inner, backward

    def forward(self, inputs):
        if self.backward:
            return _Looked.apply(self.inner(inputs))
        return self.inner(inputs) * (1 if inputs.mean().item() < 100 else 2)


class _Looked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 if gradient.mean().item() < 100 else 2)
