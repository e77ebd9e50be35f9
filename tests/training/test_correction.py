"""AGENT: what it does to the gradient, what it estimates, what it costs, and that it leaves no other trace."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st

from dst.sparsity import UpdatePlan
from dst.training.coefficient import Coefficient, Covariances
from dst.training.determinism import seed_torch
from dst.training.distributed import ALONE
from dst.training.gradients import Batch
from dst.training.stopping import StopFlag
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


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "seconds")
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other


# ---------------------------------------------------------------------------------------------------------------------
# The gradient


@pytest.mark.parametrize("optimizer", ranks.OPTIMIZERS)
@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True, "accumulate": 2}, {"batch_norm": True, "precision": "bf16"}]
)
def test_gamma_0_is_training_without_correction_bit_by_bit(optimizer, options):
    digests = []
    for correction in (None, {"gamma": 0}):
        run = training(ALONE, optimizer=optimizer, correction=correction, **options)
        watcher = Watcher(run)
        run.run(watcher, StopFlag())
        digests.append(watcher.digests)
    assert len(digests[0]) == STEPS
    assert digests[0] == digests[1]
    run = training(ALONE, optimizer=optimizer, correction={"gamma": 1}, **options)
    run.run(watcher := Watcher(run), StopFlag())
    assert watcher.digests[:2] != digests[0][:2]  # what is compared does change


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
