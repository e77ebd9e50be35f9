"""Levels of pruning: how many, which densities, what a network goes back to, what it costs, what a stop leaves."""

import copy
from fractions import Fraction
from functools import cache
from math import ceil, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst.config.checks import check
from dst.config.schema import ConfigError, complete
from dst.options import OptionError
from dst.procedures.imp import imp
from dst.procedures.method import Length, Method
from dst.procedures.options import counts_after_levels, levels_problems
from dst.run.build import build
from dst.run.feasible import check as check_feasible
from dst.run.forecast import planned_ledger
from dst.sparsity import UpdatePlan
from dst.sparsity.update import topology_update
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.composed import compose_cells
from tests.sparsity.test_catalogue import CONF, assert_inactive_is_zero
from tests.states import plain, same, states_of

# -- how many levels, and how many weights each leaves -----------------------------------------------------------------


def test_sixteen_levels_from_three_tenths_to_a_hundredth():
    counts = counts_after_levels(79_860, 266_200, 0.01, 0.8)  # LeNet-300-100
    assert counts == [
        *(63_888, 51_110, 40_888, 32_711, 26_169, 20_935, 16_748, 13_398),
        *(10_719, 8_575, 6_860, 5_488, 4_390, 3_512, 2_810, 2_662),
    ]
    assert counts[-1] == round(0.01 * 266_200)


@pytest.mark.parametrize("size", [1000, 99_999, 2**20 + 1])
@pytest.mark.parametrize(("keep", "levels"), [(0.5, 3), (0.8, 7), (0.9, 2)])
def test_an_exact_power_makes_no_further_level(size, keep, levels):
    """Also where the counts were rounded, and ``0.8 ** 7`` is no float."""
    end = float(Fraction(1, 2) * Fraction(str(keep)) ** levels)
    counts = counts_after_levels(round(0.5 * size), size, end, keep)
    assert len(counts) == levels
    assert counts[-1] == round(end * size)


@given(st.integers(2, 10**8), st.floats(0.001, 0.999), st.floats(0.01, 1), st.floats(0.05, 0.95))
def test_levels_fall_by_the_share_and_end_exactly(size, density, start, keep):
    active, end = max(1, round(start * size)), round(density * size)
    if problems := list(levels_problems(active, size, density, keep)):
        assert active <= end or "would prune none" in problems[0] or "more than 1000 levels" in problems[0]
        return
    counts = counts_after_levels(active, size, density, keep)
    assert counts[-1] == end
    assert all(before > after for before, after in zip([active, *counts], counts, strict=False))
    wanted = [active * Fraction(str(keep)) ** level for level in range(1, len(counts))]
    assert counts[:-1] == [round(count) for count in wanted]
    assert all(count >= end + 1 for count in wanted)
    assert active * Fraction(str(keep)) ** len(counts) < end + 1
    if end * (1 - keep) > 1:  # else a level may prune less than the weight by which counts are rounded
        assert abs(len(counts) - ceil(log(end / active) / log(keep))) <= 1


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((10, 1000, 0.01, 0.8), r"^density=0.01: must be less than the density at the start, 0.01, or there would be"),
        ((100, 1000, 0.5, 0.8), "density=0.5: must be less than the density at the start, 0.1"),
        ((10**6, 10**7, 0.01, 0.9999), "keep=0.9999: would take more than 1000 levels to density=0.01"),
        ((12, 1000, 0.001, 0.99), "keep=0.99: level 1 would prune none of its 12 weights"),
    ],
)
def test_levels_that_cannot_be(given, told):
    with pytest.raises(OptionError, match=told):
        counts_after_levels(*given)


# -- phases ------------------------------------------------------------------------------------------------------------


def method(first=(500, 1000), every=None):
    def update(steps):
        return None if every is None else topology_update(UpdatePlan(every=every, total_steps=steps))

    return Method(lr=lambda steps: lambda step: 1 - step / steps, update=update, first=first)


def phases(of=None, steps=55, **options):
    return imp(Length(6, 10, steps, 32), of or method(), **{"density": 0.1, "keep": 0.5, **options})


def test_phases():
    *levels, train = phases(level_epochs=3, rewind="epoch", rewind_epoch=2)
    assert [phase.name for phase in levels] == ["level 1", "level 2", "level 3"]
    assert [phase.steps for phase in levels] == [30, 30, 30]
    assert (train.name, train.steps) == ("train", 55)  # which may end within an epoch
    assert [phase.lr(15) for phase in levels] == [0.5, 0.5, 0.5]
    assert train.lr(11) == 0.8
    assert [phase.begin and phase.begin.count for phase in (*levels, train)] == [None, 250, 125, 100]
    assert [phase.midway and phase.midway[0] for phase in (*levels, train)] == [20, None, None, None]


def test_a_level_that_is_too_short_for_an_update_has_none():
    level, *_, train = phases(method(every=25), level_epochs=2)
    assert level.update is None
    assert train.update.plan.updates() == 2
    level, *_ = phases(method(every=25), level_epochs=3)
    assert [step for step in range(1, 31) if level.update.plan.due(step)] == [25]
    with pytest.raises(OptionError, match="there is no update in all 55 steps"):
        phases(method(every=100))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"rewind": "epoch", "rewind_epoch": 2, "level_epochs": 2},
            "rewind_epoch=2: would rewind to an epoch that was",
        ),
        (
            {"rewind": "epoch", "rewind_epoch": 1, "level_epochs": 1},
            "rewind_epoch=1: would rewind to an epoch that was",
        ),
        ({"rewind": "epoch"}, "rewind_epoch is missing: rewind=epoch needs it"),
        ({"rewind_epoch": 1}, "rewind_epoch=1: needs rewind=epoch, not none"),
        ({"rewind": "last"}, "rewind=last: allowed: epoch, init, none"),
        ({"criterion": "magnitud"}, "did you mean 'magnitude'"),
        ({"keep": 1.0}, r"keep=1.0: must be in \(0, 1\)"),
        ({"level_epochs": 0}, "level_epochs=0: must be >= 1"),
        ({"density": 0.5}, "density=0.5: must be less than the density at the start, 0.5"),
    ],
)
def test_what_cannot_be_is_refused(options, told):
    with pytest.raises(OptionError, match=told):
        phases(**options)


IMP = "procedure=imp"
WRONG = {
    f"{IMP} procedure.density=0.1": "procedure.density=0.1: must be less than the density at the start, 0.1, or",
    f"{IMP} procedure.keep=0": "procedure.keep=0.0: must be in (0, 1)",
    f"{IMP} procedure.level_epochs=0": "procedure.level_epochs=0: must be >= 1",
    f"{IMP} procedure.rewind=epoch": "procedure.rewind_epoch is missing: procedure.rewind=epoch needs it; with "
    "procedure.level_epochs=2 choose 1, or longer levels",
    f"{IMP} procedure.rewind=epoch procedure.rewind_epoch=2": "procedure.rewind_epoch=2: would rewind to an epoch that "
    "was never trained before the end of the first level, which has procedure.level_epochs=2",
    f"{IMP} procedure.rewind=none procedure.rewind_epoch=1": "procedure.rewind_epoch=1: needs procedure.rewind=epoch, "
    "not none",
    f"{IMP} sparsity=gmp": "sparsity.density_schedule.name=cubic does not go with procedure.name=imp: both say how",
    f"{IMP} sparsity=granet": "sparsity.density_schedule.name=cubic does not go with procedure.name=imp: both say how",
    f"{IMP} sparsity=granet procedure.keep=1": "sparsity.density_schedule.name=cubic does not go with procedure",
    f"{IMP} sparsity=nm_rigl": "sparsity.pattern.name=n_m does not go with procedure.name=imp, since a layer keeps",
    f"{IMP} schedule.lr.warmup_epochs=2": "schedule.lr.warmup_epochs=2.0 must be less than the 2 epochs of a level",
    f"{IMP} schedule.epochs=1 schedule.lr.warmup_epochs=1": "must be less than the 1 epochs of training",
}


@pytest.mark.parametrize(("command", "told"), WRONG.items())
def test_refused(command, told):
    ((_, config),) = compose_cells(CONF, command.split(), multirun=False)
    assert any(told in problem for problem in check(config)), check(config)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("procedure.density=0.001", "model.hidden=[24,1]"),
            "procedure.density=0.001: 2 active weights cannot be shared among 3 layers",
        ),
        (
            ("sparsity.distribution.name=balanced", "sparsity.distribution.clip=true", "procedure.density=0.48"),
            "procedure.density=0.48: must be less than the density at the start, 0.3851, or there would be nothing",
        ),
        (("procedure.keep=0.999",), "procedure.keep=0.999: would take more than 1000 levels"),
    ],
)
def test_what_only_the_model_tells_is_refused_in_terms_of_the_config(options, told):
    ((_, config),) = compose_cells(CONF, [*SHORT, STATIC, *options], multirun=False)
    assert check(config) == []
    with pytest.raises(ConfigError) as error:
        check_feasible(complete(config))
    assert [told in problem for problem in error.value.problems] == [True], error.value.problems


# -- whole runs --------------------------------------------------------------------------------------------------------

SHORT = (
    *("data.val_fraction=0.8", "schedule.batch_size=48", "hardware.threads=1", "tracking=none"),
    *("schedule.epochs=3", "schedule.update_every=4", "schedule.lr.peak=0.05", "model.hidden=[24]"),
    *("procedure=imp", "procedure.rewind=init", "sparsity.density=0.5", "procedure.density=0.1", "procedure.keep=0.5"),
)
PER_EPOCH, SIZE = 6, 1776
COUNTS = [888, 444, 222, 178]
"""Of the first masks, and after each of three levels of two epochs; three epochs follow."""
STEPS = (3 * 2 + 3) * PER_EPOCH
STATIC, RIGL = "sparsity=static", "sparsity=rigl_itop"
ADAM = ("schedule.optimizer.name=adamw", "schedule.lr.peak=0.01")
EPOCH = ("procedure.rewind=epoch", "procedure.rewind_epoch=1")
NONE = ("procedure.rewind=none",)


@cache
def composed(*overrides):
    ((_, config),) = compose_cells(CONF, [*SHORT, *overrides], multirun=False)
    assert check(config) == []
    config = complete(config)
    check_feasible(config)
    return config


def built(*overrides):
    return build(composed(*overrides)).training


def point(training):
    """Return copies of what training goes on from."""
    state = training.state_dict()
    return copy.deepcopy({part: state[part] for part in ("model", "optimizer", "sparsifier")})


class Witness(NoObserver):
    """Keeps what is reported and saved, and the state after every third step and around each pruning."""

    def __init__(self, training):
        self.training = training
        self.networks, self.states, self.layers, self.saved = {}, {}, [], []
        self.after_step, self.seen, self.prunings = {}, 0, []
        self.stop = StopFlag()
        for phase in training.phases:
            if phase.begin is not None and hasattr(phase.begin, "count"):
                object.__setattr__(phase, "begin", Watched(phase.begin, self.prunings))

    def on_step(self, step):
        if step > self.seen and step % 3 == 0:  # else it is told that work between two steps goes on
            self.seen, self.after_step[step] = step, point(self.training)

    def on_network(self, network, state):
        assert network.name not in self.networks
        self.networks[network.name] = network

    def on_layers(self, step, layers):
        self.layers.append((step, sum(report.active for report in layers)))

    def on_checkpoint(self, step, state):
        self.saved.append((state["counters"]["phase"], step, copy.deepcopy(state)))


class Watched:
    """An action, with the state before and after it."""

    def __init__(self, action, seen):
        self.action, self.seen = action, seen

    def __call__(self, run, observer, tick):
        before, grads = point(run), [plain(p.grad) for p in run.model.parameters()]
        random = torch.get_rng_state()
        self.action(run, observer, tick)
        assert [plain(p.grad) for p in run.model.parameters()] == grads
        assert torch.equal(torch.get_rng_state(), random)
        assert run.active == run.sparsifier.topology.active_by_layer
        run.sparsifier.verify()
        self.seen.append((before, point(run)))

    def __getattr__(self, name):
        return getattr(self.action, name)


@cache
def run_of(*overrides):
    training = built(*overrides)
    object.__setattr__(training.settings, "checkpoint_every_steps", 3)
    witness = Witness(training)
    training.run(witness, witness.stop)
    return training, witness


def resumed(state, *overrides):
    training = built(*overrides)
    training.load_state_dict(copy.deepcopy(state))
    training.run(NoObserver(), StopFlag())
    return training


@pytest.mark.parametrize("options", [(STATIC,), (RIGL,), (STATIC, *NONE), (RIGL, *ADAM, *EPOCH)])
def test_densities_are_exact_and_reported_trained(options):
    training, witness = run_of(*options)
    assert (training.total_steps, training.counters.step, training.is_over) == (STEPS, STEPS, True)
    assert [(n.name, n.step, n.phase, n.active) for n in witness.networks.values()] == [
        (f"level {level}", level * 2 * PER_EPOCH, level - 1, COUNTS[level - 1]) for level in (1, 2, 3)
    ]
    assert [
        sum(int(mask.sum()) for mask in after["sparsifier"]["masks"].values()) for _, after in witness.prunings
    ] == (COUNTS[1:])
    assert training.sparsifier.topology.active == COUNTS[-1]
    assert training.counters.initial_active == COUNTS[0]
    assert training.kept == {}
    assert_inactive_is_zero(training)
    levels = [(step, active) for step, active in witness.layers if step % (2 * PER_EPOCH) == 0 and step <= 36]
    assert [active for _, active in levels][-1] == COUNTS[-1]


def test_counts_and_rates_restart_with_every_level():
    training, witness = run_of(RIGL)
    updates = [step for step, _ in witness.layers]
    assert updates == [4, 8, 12, 16, 20, 24, 28, 32, 36, *range(40, 54, 4)]  # prunings at 12, 24 and 36
    rates = [phase.lr(0) for phase in training.phases]
    assert rates == [0.05] * 4


def test_pruned_weights_never_return_without_growth():
    _, witness = run_of(STATIC)
    for before, after in witness.prunings:
        for name, mask in after["sparsifier"]["masks"].items():
            assert not (mask & ~before["sparsifier"]["masks"][name]).any()
    for step, state in witness.after_step.items():
        level = min(step - 1, 36) // 12
        assert sum(int(mask.sum()) for mask in state["sparsifier"]["masks"].values()) == COUNTS[level]
    *_, ever = witness.after_step.values()
    assert sum(int(mask.sum()) for mask in ever["sparsifier"]["explored"].values()) == COUNTS[0]


def test_the_largest_of_all_layers_stay():
    _, witness = run_of(STATIC, *NONE)
    for before, after in witness.prunings:
        old, new = before["sparsifier"]["masks"], after["sparsifier"]["masks"]
        kept = torch.cat([before["model"][f"{name}.weight"][mask].abs() for name, mask in new.items()])
        lost = torch.cat([before["model"][f"{name}.weight"][old[name] & ~mask].abs() for name, mask in new.items()])
        assert kept.min() >= lost.max()
        assert len(lost)


def masked(state, masks):
    """Return the tensors of a model as they are inside masks."""
    return {
        name: tensor * masks[layer] if (layer := name.removesuffix(".weight")) in masks and layer != name else tensor
        for name, tensor in state["model"].items()
    }


def equal(one, other):
    """As numbers: a zero that a mask makes may have lost its sign."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moments(state, masks):
    """Return the optimizer's state; what it has of sparse weights is multiplied by their masks."""
    order = list(state["model"])
    found = {}
    for i, values in state["optimizer"]["state"].items():
        mask = masks.get(order[i].removesuffix(".weight")) if order[i].endswith("weight") else None
        found |= {
            f"{order[i]} {key}": value * mask if mask is not None and value.shape == mask.shape else value
            for key, value in values.items()
        }
    return found


@pytest.mark.parametrize("method", [STATIC, RIGL])
@pytest.mark.parametrize("optimizer", [(), ADAM], ids=["sgd", "adamw"])
@pytest.mark.parametrize("rewind", [(), EPOCH, NONE], ids=["init", "epoch", "none"])
def test_what_a_pruned_network_goes_on_from(method, optimizer, rewind):
    """The first state, that after the first epoch, or its own, within the new masks, to the last bit."""
    options = (method, *optimizer, *rewind)
    _, witness = run_of(*options)
    start = point(built(*options))
    assert len(witness.prunings) == 3
    for before, after in witness.prunings:
        wanted = {(): start, EPOCH: witness.after_step[PER_EPOCH], NONE: before}[rewind]
        masks = after["sparsifier"]["masks"]
        assert equal(dict(after["model"]), masked(wanted, masks))
        assert equal(moments(after, masks), moments(wanted, masks))
        assert equal(moments(after, {}), moments(after, masks))  # what is pruned has no state
        if not rewind:
            assert not after["optimizer"]["state"] or not any(
                value.any() for values in after["optimizer"]["state"].values() for value in values.values()
            )


def test_norm_statistics_go_back_too():
    training = built(STATIC, "model=resnet20", "model.hidden=null", *EPOCH, "schedule.epochs=1", "procedure.keep=0.2")
    witness = Witness(training)
    training.run(witness, witness.stop)
    ((_, first), *_) = witness.prunings
    wanted = witness.after_step[PER_EPOCH]["model"]
    statistics = [name for name in wanted if "running" in name or "num_batches" in name]
    assert statistics
    assert equal({name: first["model"][name] for name in statistics}, {name: wanted[name] for name in statistics})
    assert not equal(
        {name: training.model.state_dict()[name] for name in statistics}, {name: wanted[name] for name in statistics}
    )


def test_ages_go_back_with_the_weights():
    """A weight that was there at the point is as old as it was then; one that came later is born at the point."""
    _, witness = run_of(RIGL, *ADAM, *EPOCH)
    then = witness.after_step[PER_EPOCH]["sparsifier"]
    seen = set()
    for _, after in witness.prunings:
        now = after["sparsifier"]
        for name, mask in now["masks"].items():
            born = births(now, name)
            stayed = mask & then["masks"][name]
            assert torch.equal(born[stayed], births(then, name)[stayed])
            assert set(born[mask & ~then["masks"][name]].tolist()) <= {PER_EPOCH}
            seen |= set(born[mask].tolist())
    assert seen == {0, 4, PER_EPOCH}


def births(state, name):
    """Return the steps of birth, of a layer's shape; 0 where there was none."""
    mask = state["masks"][name]
    found = torch.zeros(mask.shape, dtype=torch.int32)
    found[mask] = state.get("births", {}).get(name, torch.zeros(int(mask.sum()), dtype=torch.int32))
    return found


def test_weights_that_go_on_keep_their_momentum():
    training, witness = run_of(STATIC, *NONE)
    _, after = witness.prunings[0]
    assert any(value.any() for value in moments(after, {}).values())
    for weight in training.sparsifier.weights.parameters:
        assert states_of(training.optimizer, weight)


# -- any start ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        (("sparsity=dense", "sparsity.density=null"), 4),  # 0.5 0.25 0.125 0.1
        (("sparsity.init.name=bernoulli",), 3),
        (("sparsity.distribution.name=balanced", "sparsity.distribution.clip=true"), 2),  # 0.385: 0.193 0.1
        (("sparsity.repair.flow=add", "sparsity.density=0.12"), 1),
        (
            (*("sparsity.density=null", "sparsity.distribution.name=none"), "sparsity.init.name=prune_global",
             "sparsity.init.rate=0.7"),
            2,
        ),
    ],
)  # fmt: skip
def test_levels_go_by_the_density_that_the_masks_have(options, levels):
    dense = () if options[0] == "sparsity=dense" else (STATIC,)
    training = built(*dense, *options, "procedure.level_epochs=1", "schedule.epochs=1")
    active = training.sparsifier.topology.active
    assert [phase.begin.count for phase in training.phases[1:]] == counts_after_levels(active, SIZE, 0.1, 0.5)
    assert len(training.phases) == levels + 1
    training.run(NoObserver(), StopFlag())
    assert training.sparsifier.topology.active == 178


def test_masks_that_are_too_sparse_for_any_level_are_refused():
    """Only the drawn masks tell."""
    own = ("sparsity.density=null", "sparsity.distribution.name=none", "sparsity.init.name=prune_global")
    with pytest.raises(
        OptionError, match=r"procedure.density=0.1: must be less than the density at the start, 0.09966"
    ):
        built(STATIC, *own, "sparsity.init.rate=0.9")


# -- criteria ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", ["magnitude", "snip", "synflow", "random"])
def test_criteria_differ_stay_inside_and_cost_what_is_forecast(criterion):
    """Exactly, where all pruned weights are of one layer; the forecast does not know which layers lose more."""
    one = ("sparsity.scope.include=[fc1]", "procedure.density=0.09")
    training = built(STATIC, *one, f"procedure.criterion={criterion}")
    expected = planned_ledger(training).state_dict()
    witness = Witness(training)
    training.run(witness, witness.stop)
    assert training.ledger.state_dict() == expected
    for before, after in witness.prunings:
        assert not (after["sparsifier"]["masks"]["fc1"] & ~before["sparsifier"]["masks"]["fc1"]).any()
    others = [run_of(STATIC, f"procedure.criterion={name}")[0] for name in ("magnitude", "snip", "synflow", "random")]
    assert len({str(plain(other.sparsifier.state_dict()["masks"])) for other in others}) == 4


def test_snip_ranks_by_the_coming_batch_of_the_trained_network():
    _, witness = run_of(STATIC, *NONE, "procedure.criterion=snip", "schedule.label_smoothing=0.1")
    training = built(STATIC)
    before, after = witness.prunings[0]
    training.model.load_state_dict(before["model"])
    inputs, labels = next(iter(training.train_batches.epoch(2)))
    loss = torch.nn.functional.cross_entropy(training.model(inputs), labels, label_smoothing=0.1)
    weights = {name: training.model.get_parameter(f"{name}.weight") for name in after["sparsifier"]["masks"]}
    slopes = torch.autograd.grad(loss, [*weights.values()])
    scores = {name: (w * g).abs() for (name, w), g in zip(weights.items(), slopes, strict=True)}
    kept = torch.cat([scores[name][mask] for name, mask in after["sparsifier"]["masks"].items()])
    assert kept.min() >= torch.cat([s.flatten() for s in scores.values()]).topk(444).values.min() * (1 - 1e-5)


def cut(training, layer):
    """Let the weights of a layer be zero at the end of the first level."""
    report = training.phases[0].end

    def end(run, observer, tick):
        report(run, observer, tick)
        with torch.no_grad():
            run.model.get_parameter(f"{layer}.weight").zero_()

    object.__setattr__(training.phases[0], "end", end)


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_a_layer_without_any_score_does_not_end_the_run(criterion):
    """As the branch of a residual network that is cut off; before training it would be an error."""
    training = built(STATIC, *NONE, f"procedure.criterion={criterion}", "procedure.density=0.05")
    cut(training, "fc1")
    witness = Witness(training)
    training.run(witness, witness.stop)
    assert [network.active for network in witness.networks.values()] == [888, 444, 222, 111]
    assert training.sparsifier.topology.active == round(0.05 * SIZE)


@pytest.mark.parametrize("criterion", ["snip", "synflow"])
def test_a_network_without_any_signal_cannot_be_ranked(criterion):
    one = ("sparsity.scope.include=[fc1]", "procedure.density=0.09")
    training = built(STATIC, *NONE, *one, f"procedure.criterion={criterion}")
    cut(training, "fc2")
    with pytest.raises(ValueError, match=f"{criterion}: all scores are zero, so .*trained network.*rank by magnitude"):
        training.run(NoObserver(), StopFlag())


def test_random_pruning_is_of_the_seed_and_of_the_level():
    masks = [
        plain(run_of(STATIC, "procedure.criterion=random", f"seed={seed}")[1].prunings[0][1]["sparsifier"]["masks"])
        for seed in (0, 1)
    ]
    training = built(STATIC, "procedure.criterion=random")
    witness = Witness(training)
    training.run(witness, witness.stop)
    again = witness.prunings[0][1]["sparsifier"]["masks"]
    assert masks[0] != masks[1]
    assert plain(again) == masks[0]


# -- what it costs, which network is tested ----------------------------------------------------------------------------


def test_the_forecast_follows_the_falling_density():
    training = built(STATIC)
    flops = training.ledger.flops
    expected = planned_ledger(training).total
    training.run(NoObserver(), StopFlag())
    assert training.ledger.total == pytest.approx(expected, rel=0.02)
    samples = 287
    dense = flops.dense_training(samples * 9)
    assert expected < 0.3 * dense  # as if all phases were as dense as the first: 0.5


@pytest.mark.parametrize("options", [(STATIC,), (RIGL, *NONE)])
def test_gradients_may_be_corrected(options):
    """The snapshot begins anew after each pruning; what it costs is forecast."""
    one = ("sparsity.scope.include=[fc1]", "procedure.density=0.09", "correction=agent", "correction.gamma=1")
    training = built(*options, *one)
    expected = planned_ledger(training).state_dict()
    training.run(NoObserver(), StopFlag())
    assert training.ledger.correction.total > 0
    found = training.ledger.state_dict()
    assert {**found, "measuring": 0} == {**expected, "measuring": 0}


def test_the_best_network_is_one_of_the_final_density():
    training, _ = run_of(STATIC, *NONE, "schedule.select=best_val")
    assert training.best["step"] > 36
    figures = training.finish(training.val_batches)
    assert figures["sparsity/active"] == COUNTS[-1]
    assert figures["sparsity/initial_density"] == 0.5


# -- stops and resumes -------------------------------------------------------------------------------------------------

KINDS = {
    "static": (STATIC,),
    "none": (STATIC, *NONE, "sparsity.init.name=bernoulli"),
    "rigl with adamw, rewound to an epoch": (RIGL, *ADAM, *EPOCH),
    "agent": (RIGL, "correction=agent", "correction.gamma=1", "procedure.criterion=snip"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_from_any_checkpoint_ends_alike(kind):
    """Of every third step: inside levels, at their ends, at the point that weights go back to, before and after it."""
    whole, witness = run_of(*KINDS[kind])
    assert {(1, 12), (2, 24), (3, 36)} <= {(phase, step) for phase, step, _ in witness.saved}
    for _, _, state in witness.saved:
        assert same(resumed(state, *KINDS[kind]).state_dict(), whole.state_dict())


@pytest.mark.parametrize("tick", [1, 2, 3, 4])
def test_a_stop_around_a_pruning_leaves_one_pruning(tick):
    """In it, and in the pass of a correction after it: a pruning that is saved is not carried out again."""
    whole, _ = run_of(*KINDS["agent"])
    training = built(*KINDS["agent"])
    witness, heard = Witness(training), []

    def on_step(step):
        heard.append(step)
        if heard.count(24) == tick + 2:  # one for the step itself, one for the report of the level
            witness.stop.requested = "SIGTERM"

    witness.on_step = on_step
    with pytest.raises(StopRequestedError):
        training.run(witness, witness.stop)
    phase, step, state = witness.saved[-1]
    assert (phase, step) == (2, 24)
    assert state["counters"]["begun"] == (1 if tick <= 2 else 2)
    assert same(resumed(state, *KINDS["agent"]).state_dict(), whole.state_dict())
