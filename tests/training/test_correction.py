"""AGENT: what it does to the gradient, what it estimates, what it costs, and that it leaves no other trace."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dst.run.forecast import planned_ledger
from dst.sparsity import UpdatePlan
from dst.training.checkpoint import Checkpoints
from dst.training.coefficient import Coefficient, Covariances
from dst.training.determinism import seed_torch
from dst.training.distributed import ALONE
from dst.training.gradients import Batch
from dst.training.snapshot import _copy
from dst.training.stopping import StopFlag, StopRequestedError
from tests.states import same
from tests.training import ranks
from tests.training.ranks import BATCH_SIZE, EPOCHS, Watcher, digest, training

EQUAL = 4 * BATCH_SIZE
STEPS = EPOCHS * 4
ONE = {"gamma": 1, "alpha": 0, "initial": 1}
"""With these the coefficient is exactly 1 at all times."""
STATIC = {"plan": None}
RANDOM = {"grow": "random", "plan": UpdatePlan(every=3, total_steps=STEPS, order="after_step", start=0.1)}
DENSE = {"plan": None, "density": None, "distribution": "dense"}


def no_tick():
    pass


def batches_of(run, epoch):
    """Return the batches of an epoch as its steps meet them."""
    batches = enumerate(run.train_batches.epoch(epoch), start=epoch * len(run.train_batches) + 1)
    return [Batch(*batch, len(batch[1]), step) for step, batch in batches]


def gradients_at(network, batch):
    """Return the gradients of the mean loss, computed from scratch, and the loss."""
    network = copy.deepcopy(network).train()
    seed_torch(0, "step", batch.step)
    loss = F.cross_entropy(network(batch.inputs), batch.labels, label_smoothing=0.1)
    return torch.autograd.grad(loss, list(network.parameters())), loss.item()


def vector(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def active(run, masks=None):
    """Return which parameters are active, as one vector."""
    layers = run.sparsifier.topology.layers
    masks = dict(zip((id(layer.weight) for layer in layers), masks or run.sparsifier.topology.masks, strict=True))
    parameters = run.model.parameters()
    return torch.cat([masks.get(id(p), torch.ones_like(p, dtype=torch.bool)).flatten() for p in parameters])


def snapshot(run):
    return run.correction._snapshot


def mean(run):
    return vector(snapshot(run)._mean)


def take(run, batch):
    run.train_step(batch.inputs, batch.labels, Watcher(run), batch.samples)


def state_of(run):
    return copy.deepcopy(run.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# The gradient


@pytest.mark.parametrize("optimizer", ranks.OPTIMIZERS)
@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True, "accumulate": 2}, {"batch_norm": True, "precision": "bf16"}]
)
def test_gamma_0_is_training_without_correction_bit_by_bit(optimizer, options):
    digests, states = [], {}

    class Saver(Watcher):
        def on_step(self, step):
            super().on_step(step)
            states.setdefault(step, state_of(self.run))

    for correction in (None, {"gamma": 0}):
        run = training(ALONE, optimizer=optimizer, correction=correction, **options)
        states.clear()
        run.run(watcher := Saver(run), StopFlag())
        digests.append(watcher.digests)
    assert len(digests[0]) == STEPS
    assert digests[0] == digests[1]
    for step in (4, 6):
        run = training(ALONE, optimizer=optimizer, correction={"gamma": 0}, **options)
        run.load_state_dict(states[step])
        run.run(watcher := Watcher(run), StopFlag())
        assert watcher.digests == digests[0][step:]
    run = training(ALONE, optimizer=optimizer, correction={"gamma": 1}, **options)
    run.run(watcher := Watcher(run), StopFlag())
    assert watcher.digests[:2] != digests[0][:2]  # what is compared does change


def test_a_coefficient_of_0_leaves_all_bits_of_the_gradient_alone():
    """The sign of a zero, and what a gradient of the snapshot that is no number would spoil."""
    run = training(ALONE, correction={"gamma": 0})
    run.correction.begin_epoch(0, no_tick)
    (batch, *_) = batches_of(run, 0)
    run.gradients.of(batch, run.ledger.training, run.active)
    for ours, theirs in zip(run.model.parameters(), snapshot(run).network.parameters(), strict=True):
        ours.grad.view(-1)[:2] = torch.tensor([-0.0, 0.0])
        theirs.grad = torch.full_like(theirs, math.nan)
        theirs.grad.view(-1)[:2] = 0
    before = vector(p.grad for p in run.model.parameters()).view(torch.int32).clone()
    snapshot(run).correct(run.correction._coefficient.value)
    assert torch.equal(vector(p.grad for p in run.model.parameters()).view(torch.int32), before)


@pytest.mark.parametrize("method", [{}, RANDOM, DENSE], ids=["rigl", "set", "dense"])
@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True, "accumulate": 3}, {"batch_norm": True, "precision": "bf16"}, {"double": True}]
)
def test_with_a_coefficient_of_1_the_first_gradient_of_a_period_is_the_full_one(method, options):
    run = training(ALONE, correction=ONE, method=method, **options)
    for epoch in range(EPOCHS):
        run.correction.begin_epoch(epoch, no_tick)
        batches = batches_of(run, epoch)
        run.gradients.of(batches[0], run.ledger.training, run.active)
        run.correction.correct(batches[0])
        run.sparsifier.mask_gradients()
        full = mean(run)
        assert torch.equal(vector(p.grad for p in run.model.parameters()), full)
        assert torch.count_nonzero(full[~active(run)]) == 0
        assert torch.count_nonzero(full) > 0.5 * active(run).sum()
        for batch in batches:
            take(run, batch)


def test_the_full_gradient_is_that_of_the_epoch_at_the_weights():
    """A mean of the means of batches, a short one alike; with running statistics and weights as before."""
    run = training(ALONE, correction={}, batch_norm=True, double=True)
    before = digest(run)
    run.correction.begin_epoch(0, no_tick)
    assert digest(run) == before
    batches = batches_of(run, 0)
    assert [batch.samples for batch in batches] == [50, 50, 50, 44]
    expected = torch.stack([vector(gradients_at(run.model, batch)[0]) for batch in batches]).mean(0)
    torch.testing.assert_close(mean(run), expected * active(run), rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", [STATIC, {}], ids=["static", "rigl"])
def test_the_mean_of_the_subtracted_gradients_over_an_epoch_is_the_full_one(method, monkeypatch):
    """So the correction adds nothing on the whole: batches, augmentation, dropout and batch norm are the same."""
    run = training(ALONE, correction=ONE, batch_norm=True, double=True, samples=EQUAL, method=method)
    found, correct = [], type(snapshot(run)).correct

    def spy(self, coefficient):
        correct(self, coefficient)
        found.append(vector(p.grad for p in self.network.parameters()) * active(run, self._masks))

    monkeypatch.setattr(type(snapshot(run)), "correct", spy)
    for epoch in range(EPOCHS):
        run.correction.begin_epoch(epoch, no_tick)
        found.clear()
        batches = batches_of(run, epoch)
        for batch in batches:
            take(run, batch)
            if len(found) < batch.step - batches[0].step + 1:  # an update has replaced it
                found.append(vector(gradients_at(snapshot(run).network, batch)[0]) * active(run, snapshot(run)._masks))
        assert len(found) == len(batches)
        torch.testing.assert_close(torch.stack(found).mean(0), mean(run), rtol=0, atol=1e-14)


def test_weights_that_grow_are_corrected_from_the_next_snapshot_on():
    run = training(ALONE, correction=ONE, method=RANDOM, double=True)
    run.correction.begin_epoch(0, no_tick)
    first = active(run)
    batches = batches_of(run, 0)
    for batch in batches[:3]:
        take(run, batch)
    grown, stayed = active(run) & ~first, active(run) & first
    assert grown.sum() > 10
    uncorrected = vector(gradients_at(run.model, batches[3])[0])
    theirs = vector(gradients_at(snapshot(run).network, batches[3])[0])
    run.gradients.of(batches[3], run.ledger.training, run.active)
    run.correction.correct(batches[3])
    corrected = vector(p.grad for p in run.model.parameters())
    assert torch.equal(corrected[grown], uncorrected[grown])
    torch.testing.assert_close(corrected[stayed], (uncorrected - theirs + mean(run))[stayed], rtol=0, atol=1e-13)
    run.correction.begin_epoch(1, no_tick)
    assert torch.count_nonzero(mean(run)[grown]) > 10


@pytest.mark.parametrize("grow", ["gradient", "momentum"])
def test_growth_reads_the_gradient_without_correction(grow):
    """Where it grows is that of a run without correction: what drops is chosen at random."""
    plan = UpdatePlan(every=2, total_steps=STEPS, order="after_step", start=0)
    found = []
    for correction in (None, ONE):
        run = training(ALONE, correction=correction, method={"drop": "random", "grow": grow, "plan": plan})
        first, second, *_ = batches_of(run, 0)
        take(run, first)
        run.correction.begin_epoch(0, no_tick)
        before = active(run)
        take(run, second)
        assert not torch.equal(active(run), before)
        found.append((active(run), vector(run.model.parameters())))
    (masks, weights), (masks_of_corrected, corrected_weights) = found
    assert torch.equal(masks, masks_of_corrected)
    assert not torch.equal(weights, corrected_weights)


def test_a_step_that_an_update_replaces_is_neither_corrected_nor_booked():
    run = training(ALONE, correction=ONE)  # every second step
    run.correction.begin_epoch(0, no_tick)
    booked = [run.ledger.correction.total]
    for batch in batches_of(run, 0):
        take(run, batch)
        booked.append(run.ledger.correction.total)
    assert np.sign(np.diff(booked)).tolist() == [1, 0, 1, 0]


def test_what_a_correction_reads_stays_where_it_is_over_updates_and_snapshots():
    """As a step that was captured goes on reading it there; what else it goes by is told."""
    run = training(ALONE, correction={"gamma": 1}, method=RANDOM)  # an update at every third step
    assert run.correction.step_tensors == []
    assert run.correction.state_of_step == ()
    addresses, states = [], []
    for epoch in range(EPOCHS):
        run.correction.begin_epoch(epoch, no_tick)
        for batch in batches_of(run, epoch):
            run.correction.prepare()
            tensors = run.correction.step_tensors
            take(run, batch)
            assert [*map(id, run.correction.step_tensors)] == [*map(id, tensors)]  # the step makes none of them
            addresses.append([tensor.data_ptr() for tensor in tensors])
            states.append(run.correction.state_of_step)
    moved = [has_moved for _, has_moved in states]
    assert moved[:5] == [False, False, True, True, False]
    assert len({coefficient for coefficient, _ in states}) == EPOCHS > 1
    first = moved.index(True) + 1  # its masks are read from the step after the update on
    factors = len(run.sparsifier.weights.masks)
    assert all(found == addresses[0] for found in addresses[:first])
    assert all(found == addresses[-1] for found in addresses[first:])
    assert len(addresses[-1]) == len(addresses[0]) + factors
    for mask, factor in zip(snapshot(run)._filled_by, snapshot(run)._factors, strict=True):
        assert torch.equal(mask.to(factor.dtype), factor)


def test_the_device_and_the_host_share_a_correction():
    runs = [training(ALONE, correction=ONE, batch_norm=True) for _ in range(2)]
    for run in runs:
        run.correction.begin_epoch(0, no_tick)
        (batch, *_) = batches_of(run, 0)
        run.gradients.of(batch, run.ledger.training, run.active)
        booked = run.ledger.correction.total
        if run is runs[0]:
            run.correction.correct(batch)
        else:
            snapshot(run).gradients.seed(batch.step)
            run.correction.change(batch)
            assert run.ledger.correction.total == booked
            run.correction.book_step(batch.samples)
        assert run.ledger.correction.total > booked
    one, other = (vector(p.grad for p in run.model.parameters()) for run in runs)
    assert torch.equal(one, other)
    assert runs[0].ledger.state_dict() == runs[1].ledger.state_dict()


def test_a_restart_forgets_everything_until_the_next_epoch():
    run = training(ALONE, correction={"gamma": 1}, double=True)
    for epoch in (0, 1):
        run.correction.begin_epoch(epoch, no_tick)
        batch = batches_of(run, epoch)[0]
        take(run, batch)
    assert run.correction.figures(1)["correction/estimate"] != 0
    booked = run.ledger.correction.total
    run.correction.restart()
    assert run.correction.figures(1)["correction/coefficient"] == 0
    take(run, batch)
    run.correction.end_epoch(1, is_last=True)
    assert run.ledger.correction.total == booked
    fresh = training(ALONE, correction={"gamma": 1}, double=True)
    fresh.load_state_dict({**state_of(run), "correction": fresh.correction.state_dict()})
    for again in (run, fresh):
        again.correction.begin_epoch(1, no_tick)
    assert same(run.state_dict(), fresh.state_dict())
    assert run.correction.figures(1)["correction/coefficient"] == 0.1


def test_what_cannot_be_corrected_is_refused():
    with pytest.raises(ValueError, match=r"^precision=fp16: the gradients of the model and of a snapshot are read bef"):
        training(ALONE, correction={}, precision="fp16")
    with pytest.raises(ValueError, match=r"^AGENT estimates a covariance .* there is one only: choose a smaller batch"):
        training(ALONE, correction={}, samples=BATCH_SIZE)


# ---------------------------------------------------------------------------------------------------------------------
# The estimate


def covariances(ours, theirs):
    found = Covariances()
    for pair in zip(ours, theirs, strict=True):
        found.add(*(torch.tensor(value, dtype=torch.float64) for value in pair))
    return found.found()


def coefficient(clip=False, variance_floor=0.0):
    return Coefficient(gamma=0.1, alpha=0.3, initial=0.1, clip=clip, variance_floor=variance_floor)


def test_the_estimate_of_constructed_losses():
    assert covariances([1, 2, 4], [1, 2, 3]) == (pytest.approx(7 / 3, abs=1e-15), 1.5, 1.0)
    learned = coefficient()
    assert learned.value == pytest.approx(0.01, abs=1e-17)
    learned.learn(1.5, 1.0)
    assert learned.estimate == 1.5
    assert learned.smoothed == pytest.approx(0.7 * 0.1 + 0.3 * 1.5, abs=1e-16)
    assert learned.value == pytest.approx(0.052, abs=1e-16)
    learned.learn(-2.0, 4.0)
    assert learned.smoothed == pytest.approx(0.7 * 0.52 + 0.3 * -0.5, abs=1e-16)
    assert covariances([3, 1, 2], [3, 1, 2]) == (1, 1, 1)  # of the same weights


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=2, max_size=30),
    st.floats(-1e6, 1e6),
)
def test_covariances_are_those_of_numpy(pairs, offset):
    ours, theirs = (offset + np.array(series) for series in zip(*pairs, strict=True))
    expected = np.cov(ours, theirs)
    found = covariances(ours, theirs)
    assert found == pytest.approx((expected[0, 0], expected[0, 1], expected[1, 1]), rel=1e-9, abs=1e-6)


def test_covariances_of_vectors_are_summed_over_coordinates():
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(size=(2, 5, 7))
    expected = sum(np.cov(ours[:, i], theirs[:, i]) for i in range(7))
    assert covariances(ours, theirs) == pytest.approx((expected[0, 0], expected[0, 1], expected[1, 1]), rel=1e-12)


def test_what_is_clipped_and_what_is_left_out():
    for clip, expected in ((False, [1.5, -0.5, 0.25]), (True, [1, 0, 0.25])):
        learned = coefficient(clip=clip)
        for covariance, estimate in zip([3, -1, 0.5], expected, strict=True):
            learned.learn(covariance, 2)
            assert learned.estimate == estimate
    learned = coefficient(clip=True, variance_floor=0.5)
    for covariance, variance in [(0.2, 0.4), (math.nan, 1), (math.inf, 1), (math.nan, math.nan)]:
        learned.learn(covariance, variance)
        assert learned.estimate is None
        assert learned.smoothed == 0.1
    learned.learn(0.2, 0.5)
    assert learned.estimate == 0.4


def test_constant_losses_give_no_estimate():
    _, covariance, variance = covariances([0.1, 0.2, 0.3], [0.7, 0.7, 0.7])
    assert variance == 0
    learned = coefficient()
    learned.learn(covariance, variance)
    assert (learned.estimate, learned.smoothed) == (None, 0.1)
    assert all(map(math.isnan, covariances([1], [2])))


@pytest.mark.parametrize("proxy", ["loss", "gradient"])
def test_the_estimate_is_that_of_the_batches_at_the_weights_and_at_the_last_snapshot(proxy):
    run = training(ALONE, correction={"proxy": proxy}, batch_norm=True, double=True, method=RANDOM)
    run.correction.begin_epoch(0, no_tick)
    old, then = copy.deepcopy(run.model), active(run)
    for batch in batches_of(run, 0):
        take(run, batch)
    assert "correction/estimate" not in run.correction.figures(1)
    both = active(run) & then
    assert both.sum() < then.sum()
    pairs = [[gradients_at(network, batch) for network in (run.model, old)] for batch in batches_of(run, 1)]
    if proxy == "loss":
        expected = np.cov([(ours[1], theirs[1]) for ours, theirs in pairs], rowvar=False)
    else:
        series = torch.stack([torch.stack([vector(found)[both] for found, _ in pair]) for pair in pairs], 2)
        expected = sum(np.cov(coordinate) for coordinate in series.transpose(0, 1).numpy())
    run.correction.begin_epoch(1, no_tick)
    figures = run.correction.figures(1)
    estimate = expected[0, 1] / expected[1, 1]
    assert figures["correction/estimate"] == pytest.approx(estimate, rel=1e-9)
    assert figures["correction/coefficient"] == pytest.approx(0.1 * (0.7 * 0.1 + 0.3 * estimate), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# What it costs


class Costs(Watcher):
    """Looks at the logged figures at the end of every epoch."""

    def __init__(self, run):
        super().__init__(run)
        self.epochs = []

    def on_metrics(self, step, epoch, values):
        if "train/loss" in values and step % len(self.run.train_batches) == 0:
            self.epochs.append(values)


def costs(correction, method):
    run = training(ALONE, correction=correction, method=method)
    run.run(watcher := Costs(run), StopFlag())
    return watcher.epochs, run


@pytest.mark.parametrize("method", [STATIC, RANDOM, DENSE], ids=["static", "set", "dense"])
def test_an_epoch_costs_three_and_then_ten_thirds(method):
    epochs, run = costs({}, method)
    assert [values["train/compute_epochs"] for values in epochs] == pytest.approx([3, 3 + 10 / 3, 3 + 20 / 3])
    assert ["correction/estimate" in values for values in epochs] == [False, True, True]
    plain = costs(None, method)[1].ledger.total
    assert run.ledger.training.total == plain
    assert 3 * run.ledger.correction.total == (2 * 3 * 3 + 2) * plain / 3
    assert run.finish(run.val_batches)["train/compute_epochs"] == epochs[-1]["train/compute_epochs"]


def test_longer_periods_and_gradients_as_the_proxy_cost_what_they_take():
    """Of a plain epoch's 3 F: q adds 3 at each step; a pass 3 at the weights and 1 or 3 at the old snapshot."""
    for correction, expected in [
        ({"every_epochs": 2}, [3, 5, 8 + 1 / 3]),
        ({"every_epochs": 3}, [3, 5, 7]),
        ({"proxy": "gradient"}, [3, 7, 11]),
        ({"gamma": 0}, [3, 3 + 10 / 3, 3 + 20 / 3]),  # what the config says is what runs
    ]:
        epochs, _ = costs(correction, STATIC)
        assert [values["train/compute_epochs"] for values in epochs] == pytest.approx(expected), correction


@pytest.mark.parametrize("method", [{}, STATIC, RANDOM, DENSE], ids=["rigl", "static", "set", "dense"])
@pytest.mark.parametrize("every_epochs", [1, 2])
@pytest.mark.parametrize("proxy", ["loss", "gradient"])
def test_a_forecast_books_what_training_will(method, every_epochs, proxy):
    run = training(ALONE, correction={"every_epochs": every_epochs, "proxy": proxy}, method=method)
    ledger = planned_ledger(run)
    run.run(Watcher(run), StopFlag())
    assert ledger.state_dict() == {**run.ledger.state_dict(), "measuring": 0}
    assert ledger.correction.total > 0


def test_a_forecast_knows_that_a_phase_begins_anew():
    """With a phase that changes the weights at its beginning, in the middle of a period or of an epoch."""

    def change(run, observer, tick):
        run.model[0].weight.data.mul_(0.5)

    change.book, change.leaves = (lambda *_: None), (lambda active, _: active)
    for first in (4, 6):
        run = training(ALONE, correction={"every_epochs": 2}, method=STATIC)
        (phase,) = run.phases
        run.phases = [replace(phase, steps=first), replace(phase, steps=STEPS - first, begin=change)]
        ledger = planned_ledger(run)
        run.run(Watcher(run), StopFlag())
        assert ledger.state_dict() == {**run.ledger.state_dict(), "measuring": 0}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


@pytest.mark.parametrize("options", [{"batch_norm": True}, {"method": RANDOM}], ids=["rigl", "set"])
def test_the_ratio_of_variances_is_that_of_the_first_batches(options):
    correction = {"gamma": 1, "initial": 0.8, "variance_batches": 3}
    run = training(ALONE, correction=correction, double=True, **options)
    run.correction.begin_epoch(0, no_tick)
    then = active(run)
    batches = batches_of(run, 0)
    for batch in batches:
        take(run, batch)
    now, before = active(run), state_of(run)
    booked = run.ledger.total
    assert "correction/variance_ratio" not in run.correction.figures(1)
    run.correction.end_epoch(0, is_last=False)
    after = state_of(run)
    ours = torch.stack([vector(gradients_at(run.model, batch)[0]) for batch in batches[:3]])
    theirs = torch.stack([vector(gradients_at(snapshot(run).network, batch)[0]) for batch in batches[:3]])
    variance = ours[:, now].var(0).sum()
    corrected = (ours - 0.8 * theirs * then)[:, now].var(0).sum()
    ratio = run.correction.figures(1)["correction/variance_ratio"]
    assert ratio == pytest.approx((corrected / variance).item(), rel=1e-9)
    assert 0 < ratio < 1
    assert run.ledger.total == booked
    assert run.ledger.measuring.total == 150 * 6 * run.ledger.flops.test(run.active)
    for state in (before, after):
        state["ledger"].pop("measuring")
        state["correction"].pop("variance_ratio")
    assert same(before, after)


def test_measuring_changes_nothing():
    runs = []
    for variance_batches in (0, 2, 8):
        run = training(ALONE, correction={"gamma": 1, "variance_batches": variance_batches}, batch_norm=True)
        watcher = Watcher(run)
        run.run(watcher, StopFlag())
        runs.append(watcher.digests)
        has_ratio = "correction/variance_ratio" in run.correction.figures(EPOCHS)
        assert has_ratio == (variance_batches > 0) == (run.ledger.measuring.total > 0)
    assert runs[0] == runs[1] == runs[2]


def test_it_is_measured_at_the_end_of_each_period_and_of_training():
    run = training(ALONE, correction={"every_epochs": 2}, method=STATIC)
    (phase,) = run.phases
    run.phases = [replace(phase, steps=STEPS - 1)]  # the last epoch is cut short
    run.total_steps = STEPS - 1
    totals = []

    class Totals(Watcher):
        def on_step(self, step):
            totals.append((step, run.ledger.measuring.total))

    run.run(Totals(run), StopFlag())
    steps = [step for (step, total), (_, last) in zip(totals[1:], totals, strict=False) if total > last]
    assert steps == [8, 11]


def test_without_correction_the_ratio_is_1():
    run = training(ALONE, correction={"gamma": 0}, batch_norm=True)
    run.run(Watcher(run), StopFlag())
    assert run.correction.figures(EPOCHS)["correction/variance_ratio"] == 1


# ---------------------------------------------------------------------------------------------------------------------
# State


@pytest.mark.parametrize("optimizer", ranks.OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [{"method": RANDOM, "batch_norm": True}, {"precision": "bf16"}, {"accumulate": 2, "momentum_growth": True}],
    ids=["set", "rigl-bf16", "momentum"],
)
@pytest.mark.parametrize("correction", [{"gamma": 1}, {"gamma": 1, "every_epochs": 2, "proxy": "gradient"}])
def test_a_continued_training_is_bit_identical(optimizer, options, correction, tmp_path):
    options = {"optimizer": optimizer, "correction": correction, **options}
    whole = training(ALONE, **options)
    whole.run(watcher := Watcher(whole), StopFlag())
    for step in (0, 4, 7):
        begun, saved = training(ALONE, **options), {}

        class Stops(Watcher):
            def on_step(self, now, step=step):
                if now >= step - 1:
                    self.stop.requested = "SIGTERM"

            def on_checkpoint(self, now, state, saved=saved):
                saved["state"] = now, state

        stopping = Stops(begun)
        stopping.stop = StopFlag()
        with pytest.raises(StopRequestedError):
            begun.run(stopping, stopping.stop)
        Checkpoints(tmp_path / str(step)).save(*saved["state"])
        again = training(ALONE, **options)
        again.load_state_dict(Checkpoints(tmp_path / str(step)).load_newest())
        assert again.counters.step == saved["state"][0]
        again.run(rest := Watcher(again), StopFlag())
        assert rest.digests == watcher.digests[again.counters.step - len(rest.digests) :]
        assert same(again.correction.state_dict(), whole.correction.state_dict())
        assert again.ledger.state_dict() == whole.ledger.state_dict()


class _EnoughError(Exception):
    pass


@pytest.mark.parametrize("proxy", ["loss", "gradient"])
@pytest.mark.parametrize("ticks", [1, 3])
def test_a_pass_that_ends_early_changes_nothing_but_the_ledger(proxy, ticks):
    run = training(ALONE, correction={"proxy": proxy}, batch_norm=True)
    left = iter(range(ticks))

    def tick():
        if next(left, None) is None:
            raise _EnoughError

    for epoch in range(2):
        before = state_of(run)
        left = iter(range(ticks))
        with pytest.raises(_EnoughError):
            run.correction.begin_epoch(epoch, tick)
        run.ledger.load_state_dict(before["ledger"])  # as the loop does
        assert same(state_of(run), before)
        run.correction.begin_epoch(epoch, no_tick)
        assert not same(state_of(run), before)
        for batch in batches_of(run, epoch):
            take(run, batch)


def test_the_snapshot_is_another_network_without_hooks_and_compiled_as_the_model_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append("forward"))
    model.compile(backend="eager")
    twin = _copy(model)
    assert twin._compiled_call_impl is not None
    assert twin._compiled_call_impl is not model._compiled_call_impl
    assert not twin[0]._forward_hooks
    assert len(model[0]._forward_hooks) == 1
    assert all(ours is not theirs for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True))
    assert _copy(nn.Linear(2, 2))._compiled_call_impl is None
