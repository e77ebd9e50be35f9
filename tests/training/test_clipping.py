"""Clipping acts on the gradients that the optimizer takes, and on record is what it did, to the last bit."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from dst.config.schema import complete
from dst.records.read import read_metrics, read_status
from dst.run.build import build
from dst.training.clipping import Clipping
from dst.training.observer import NoObserver
from tests.composed import compose_cells
from tests.e2e.test_command_line import TINY
from tests.processes import REPOSITORY, run, run_folder, run_together, traces

LIMITS = ("schedule.clip_norm=0.08", "schedule.clip_value=0.01")


def parameters(*gradients):
    """Return parameters that have these gradients."""
    made = [nn.Parameter(torch.ones(len(gradient))) for gradient in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return made


def gradients_of(found):
    return [parameter.grad.tolist() for parameter in found]


@pytest.fixture
def training(tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "cache"

    def make(*overrides):
        words = (*TINY, f"data.cache={cache}", "schedule.lr.name=constant", *overrides)
        ((_, config),) = compose_cells(REPOSITORY / "conf", words, multirun=False)
        return build(complete(config)).training

    return make


# -- the object --------------------------------------------------------------------------------------------------------


def test_by_norm():
    found = parameters([3.0, 4.0], [0.0, -12.0])
    clipping = Clipping(found, norm=6.5)
    clipping.clip()
    assert gradients_of(found) == [pytest.approx([1.5, 2.0]), pytest.approx([0.0, -6.0])]
    assert clipping.figures() == {"train/gradient_norm": 13.0, "train/clipped": 1.0}


def test_by_value():
    found = parameters([3.0, 4.0], [0.0, -12.0])
    clipping = Clipping(found, value=3.5)
    clipping.clip()
    assert gradients_of(found) == [[3.0, 3.5], [0.0, -3.5]]
    assert clipping.figures() == {"train/clipped_values": pytest.approx(2 / 3)}  # the zero is no gradient


def test_the_value_comes_before_the_norm():
    found = parameters([3.0, 4.0], [0.0, -12.0])
    clipping = Clipping(found, value=5.0, norm=math.sqrt(2))
    clipping.clip()
    assert gradients_of(found) == [pytest.approx([0.6, 0.8]), pytest.approx([0.0, -1.0])]
    assert clipping.figures() == {
        "train/gradient_norm": pytest.approx(math.sqrt(9 + 16 + 25)),
        "train/clipped": 1.0,
        "train/clipped_values": pytest.approx(1 / 3),
    }


def test_what_is_small_enough_is_left_alone():
    found = parameters([3.0, 4.0], [0.0, -12.0])
    clipping = Clipping(found, value=12.0, norm=13.0)
    clipping.clip()
    assert gradients_of(found)[0] == pytest.approx([3.0, 4.0])
    assert clipping.figures() == {"train/gradient_norm": 13.0, "train/clipped": 0.0, "train/clipped_values": 0.0}


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("limits", [{"norm": 5.0}, {"value": 3.5}, {"norm": 3.0, "value": 3.5}])
def test_figures_are_means_over_the_steps_with_finite_gradients(limits, bad):
    found = parameters([3.0, 4.0])
    clipping = Clipping(found, **limits)
    assert clipping.figures() == {}
    for gradient in ([0.0, 4.0], [bad, 1.0], [6.0, 0.0], [0.0, 0.0]):
        found[0].grad = torch.tensor(gradient)
        clipping.clip()
    norms = [3.5, 3.5, 0.0] if "value" in limits else [4.0, 6.0, 0.0]
    by_norm = {
        "train/gradient_norm": sum(norms) / 3,
        "train/clipped": sum(norm > limits.get("norm", 0) for norm in norms) / 3,
    }
    by_value = {"train/clipped_values": 2 / 2}
    expected = {**(by_norm if "norm" in limits else {}), **(by_value if "value" in limits else {})}
    assert clipping.figures() == pytest.approx(expected)
    assert clipping.figures() == {}


def test_sums_are_state():
    one, other = (Clipping(parameters([3.0, 4.0]), norm=1.0, value=3.5) for _ in range(2))
    one.clip()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.figures() == one.figures() != {}


def test_sums_stay_where_they_are():
    clipping = Clipping(parameters([3.0, 4.0]), norm=1.0)
    (sums,) = clipping.step_tensors
    clipping.clip()
    assert sums.tolist() == [1, 5, 1, 0, 0]
    state = copy.deepcopy(clipping.state_dict())
    clipping.figures()
    assert sums.tolist() == [0] * 5
    clipping.load_state_dict(state)
    assert sums.tolist() == [1, 5, 1, 0, 0]


@pytest.mark.parametrize(("option", "told"), [({"norm": 0}, "norm=0"), ({"value": -1}, "value=-1")])
def test_impossible_limits_are_refused(option, told):
    with pytest.raises(ValueError, match=f"Clipping: {told}: must be > 0"):
        Clipping(parameters([1.0]), **option)


# -- in the loop -------------------------------------------------------------------------------------------------------


def test_without_clipping_nothing_is_added(training):
    plain = training()
    assert plain.clipping is None
    assert "clipping" not in plain.state_dict()


def test_the_norm_is_that_of_active_weights_and_bounds_the_step(training):
    plain = ("schedule.optimizer.momentum=0", "schedule.optimizer.nesterov=false", "schedule.optimizer.weight_decay=0")
    one = training("sparsity=set_itop", "schedule.clip_norm=0.05", *plain, "schedule.lr.peak=1")
    norms, dense, clip = [], [], one.clipping.clip
    unmasked = one.sparsifier.mask_gradients

    def watched():
        masks = {id(layer.weight): mask for layer, mask in zip(*layers_and_masks(one), strict=True)}
        squares = [p.grad[masks[id(p)]].double().square().sum() if id(p) in masks else p.grad.double().square().sum()
                   for p in one.model.parameters()]  # fmt: skip
        norms.append(float(torch.stack(squares).sum().sqrt()))
        clip()

    def seen():
        dense.append(float(torch.stack([p.grad.double().square().sum() for p in one.model.parameters()]).sum().sqrt()))
        unmasked()

    one.clipping.clip, one.sparsifier.mask_gradients = watched, seen
    batches = one.train_batches.epoch(0)
    for _ in range(9):
        before = [p.detach().clone() for p in one.model.parameters()]
        one.train_step(*next(batches), NoObserver())
        moved = [
            (old - new.detach()).double().square().sum()
            for old, new in zip(before, one.model.parameters(), strict=True)
        ]
        assert float(torch.stack(moved).sum().sqrt()) == pytest.approx(min(norms[-1], 0.05), rel=1e-4)
    assert all(masked < 0.9 * whole for masked, whole in zip(norms, dense, strict=True))
    assert sum(norm > 0.05 for norm in norms) > 0
    assert one.clipping.figures() == {
        "train/gradient_norm": pytest.approx(sum(norms) / 9, rel=1e-6),
        "train/clipped": pytest.approx(sum(norm > 0.05 for norm in norms) / 9),
    }


def layers_and_masks(one):
    return one.sparsifier.topology.layers, one.sparsifier.topology.masks


def by_hand(one, norm, value):
    """Train an epoch in a loop of one's own, with the functions of torch."""
    weights = list(one.model.parameters())

    def step():
        clip_grad_value_(weights, value)
        clip_grad_norm_(weights, norm)
        one.optimizer.step()

    for inputs, labels in one.train_batches.epoch(0):
        one.optimizer.zero_grad()
        F.cross_entropy(one.model(inputs), labels).backward()
        one.sparsifier.step(step)
    return weights


@pytest.mark.parametrize("method", ["rigl", "rigl_itop"])
def test_weights_are_those_of_a_loop_of_ones_own(training, method):
    """Bit for bit, over updates in place of steps and after them."""
    one, plain = (training(f"sparsity={method}", *limits) for limits in (LIMITS, ()))
    for each in (one, plain):
        for batch in each.train_batches.epoch(0):
            each.train_step(*batch, NoObserver())
    weights = by_hand(training(f"sparsity={method}"), norm=0.08, value=0.01)
    assert one.sparsifier.updates == 2
    assert all(torch.equal(*pair) for pair in zip(one.model.parameters(), weights, strict=True))
    assert not any(torch.equal(*pair) for pair in zip(plain.model.parameters(), weights, strict=True))


@pytest.mark.parametrize(("method", "steps"), [("rigl", 19), ("rigl_itop", 21)])
def test_steps_that_an_update_replaces_are_not_counted(training, method, steps):
    """An epoch of 21 steps with updates at 10 and 20."""
    one = training(f"sparsity={method}", "schedule.clip_norm=0.1")
    for batch in one.train_batches.epoch(0):
        one.train_step(*batch, NoObserver())
    assert one.clipping.state_dict()["sums"][0] == steps


def test_scaled_gradients_are_unscaled_first_and_a_vetoed_step_counts_for_nothing(training):
    limits = (*LIMITS, "schedule.update_every=40")
    exact, scaled = training(*limits), training(*limits, "hardware.precision=fp16")
    scaled.precision.load_state_dict({**scaled.precision.state_dict(), "scale": 2.0**35})
    inputs, labels = next(exact.train_batches.epoch(0))
    before = [p.detach().clone() for p in scaled.model.parameters()]
    vetoed = 0
    while all(torch.equal(*pair) for pair in zip(before, scaled.model.parameters(), strict=True)):
        assert not scaled.clipping.state_dict()["sums"].any()
        scaled.train_step(inputs, labels, NoObserver())
        vetoed += 1
    assert 5 < vetoed < 40  # where an update would come
    exact.train_step(inputs, labels, NoObserver())
    assert scaled.clipping.state_dict()["sums"][0] == 1
    assert scaled.clipping.figures() == pytest.approx(exact.clipping.figures(), rel=0.02)


# -- whole runs --------------------------------------------------------------------------------------------------------

BOTH = (*LIMITS, *TINY, "tracking.every_steps=10")
NAMES = ("train/gradient_norm", "train/clipped", "train/clipped_values")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_kill_in_the_middle_of_a_log_interval_changes_nothing(precision, tmp_path):
    options = ("sparsity=rigl", f"hardware.precision={precision}", *BOTH, "checkpoint.every_steps=7")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(*options, cwd=whole).code == 0
    for step in (9, 16):
        assert run(*options, cwd=killed, fault=f"kill:step:{step}").code == -9
    assert run(*options, cwd=killed).code == 0
    assert traces(run_folder(killed / "outputs")) == traces(run_folder(whole / "outputs"))
    metrics = read_metrics(run_folder(killed / "outputs"))
    assert [row["step"] for row in metrics] == [10, 20, 21, 30, 40, 42]
    assert all(0 < row[NAMES[0]] < 5 and 0 <= row[NAMES[1]] <= 1 and 0 < row[NAMES[2]] < 1 for row in metrics)


def test_two_processes_clip_the_gradients_of_the_whole_batch(tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    assert run("sparsity=set_itop", *BOTH, cwd=alone).code == 0
    for faults in (("kill:step:15", "kill:step:15"), ("", "")):
        options = ("sparsity=set_itop", *BOTH, "hardware.processes=2", "checkpoint.every_steps=7")
        results = run_together(*options, cwd=together, faults=faults)
        assert [result.code for result in results] == ([-9, -9] if faults[0] else [0, 0]), results
    one, two = (read_metrics(run_folder(folder / "outputs")) for folder in (alone, together))
    for ours, theirs in zip(one[:3], two[:3], strict=True):  # later on, rounding has made them two trainings
        assert [ours[name] for name in NAMES] == pytest.approx([theirs[name] for name in NAMES], rel=0.02)


@pytest.mark.parametrize("limit", ["schedule.clip_norm=0.1", "schedule.clip_value=0.01"])
def test_clipping_hides_no_divergence(limit, tmp_path):
    assert run("sparsity=rigl_itop", *TINY, limit, cwd=tmp_path, fault="nan:gradient:15").code == 3
    assert "not finite at step 15" in read_status(run_folder(tmp_path / "outputs"))["error"]


def test_limits_of_zero_or_less_are_refused(tmp_path):
    result = run(*TINY, "schedule.clip_norm=0", "schedule.clip_value=-1", cwd=tmp_path)
    assert result.code == 2
    assert "schedule.clip_norm=0.0: must be > 0" in result.output
    assert "schedule.clip_value=-1.0: must be > 0" in result.output
