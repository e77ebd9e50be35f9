"""Pretraining, cycles and superposing: lengths, rates, updates, and what the final network is."""

import copy
from functools import cache

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from dst.config.checks import check
from dst.config.schema import ConfigError, complete
from dst.options import OptionError
from dst.procedures.method import Length, Method
from dst.procedures.options import budget
from dst.procedures.sup_tickets import sup_tickets
from dst.run.build import build, final_density
from dst.run.feasible import check as check_feasible
from dst.run.forecast import planned_ledger
from dst.sparsity import UpdatePlan
from dst.sparsity.drop_fraction import cosine
from dst.sparsity.select import count_true
from dst.sparsity.update import topology_update
from dst.training import batch_norm
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.composed import compose_cells
from tests.sparsity.test_catalogue import CONF, METHODS, assert_inactive_is_zero
from tests.states import plain, same

# -- phases ------------------------------------------------------------------------------------------------------------

SPLITS = [
    ((250, 8, 0.1), (226, 24, 3)),
    ((250, 4, 0.2), (202, 48, 12)),  # of 50 epochs for cycles, two are left over
    ((10, 1, 0.3), (7, 3, 3)),
    ((20, 4, 0.2), (16, 4, 1)),
]


def method(*, every=10, grow="gradient", fraction=None, rate=0.1, **options):
    """Return a method with updates, whose rate falls from 1 by 1 / steps at each step."""

    def update(steps):
        plan = UpdatePlan(every=every, total_steps=steps, **options)
        return topology_update(plan, grow=grow, drop_fraction=fraction(plan) if fraction else 0.3)

    return Method(lr=lambda steps: lambda step: 1 - step / steps, update=update, density=rate)


def phases(of=None, epochs=10, per_epoch=6, **options):
    return sup_tickets(Length(epochs, per_epoch, epochs * per_epoch), of or method(), **options)


@pytest.mark.parametrize(("given", "expected"), SPLITS)
def test_splits(given, expected):
    epochs, cycle, rate = given
    pretrain, cyclic, cycles = expected
    parts = budget(epochs, cycle_rate=rate, cycle_epochs=cycle)
    assert (parts.pretrain_epochs, parts.cycles * cycle, parts.cycles) == expected
    made = phases(epochs=epochs, per_epoch=3, cycle_rate=rate, cycle_epochs=cycle)
    assert [phase.steps for phase in made] == [3 * pretrain, *[3 * cycle] * cycles]
    assert [phase.name for phase in made] == ["pretrain", *(f"cycle {c}" for c in range(1, cycles + 1))]
    assert sum(phase.steps for phase in made) == 3 * (pretrain + cyclic) == 3 * epochs


def test_pretraining_epochs_of_ones_own():
    made = phases(epochs=100, per_epoch=1, pretrain_epochs=92, cycle_epochs=2)
    assert [phase.steps for phase in made] == [92, 2, 2, 2, 2]


def test_rates_at_given_steps():
    """U = step / steps of the cycle; exact, since all these numbers are sums of powers of two."""
    options = {"lr_at_ticket": 0.25, "lr_mid_cycle": 2.25, "cycle_epochs": 2, "cycle_rate": 0.4}
    pretrain, *cycles = phases(epochs=10, per_epoch=8, **options)
    assert (pretrain.lr(0), pretrain.lr(24)) == (1, 0.5)  # its own curve, over its own steps
    assert len(cycles) == 2
    for cycle in cycles:
        found = [cycle.lr(step) for step in range(16)]
        assert found == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5]
    *_, published = phases(epochs=250, per_epoch=391, cycle_epochs=8, cycle_rate=0.1)
    assert published.steps == 8 * 391
    assert published.lr(published.steps - 1) == pytest.approx(0.001 + 0.004 * 2 / (8 * 391), rel=1e-12)
    assert published.lr(4 * 391) == 0.005


def test_the_constant_rate_is_the_last_of_pretraining():
    pretrain, cycle, *_ = phases(epochs=10, per_epoch=6, lr="constant", cycle_epochs=1)
    assert pretrain.lr(47) == 1 - 47 / 48
    assert {cycle.lr(step) for step in range(6)} == {1 - 47 / 48}


def due(phase):
    return [step for step in range(1, phase.steps + 1) if phase.update.plan.due(step)] if phase.update else []


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"re_explore": 0.5}, [1]),
        ({"freeze_updates": False}, [5, 10]),
        ({"freeze_updates": False, "re_explore": 0.5}, [1, 5, 10]),
    ],
)
def test_updates_in_cycles(options, expected):
    """Steps are those of the cycle; ``start`` and ``stop`` are those of pretraining."""
    pretrain, *cycles = phases(method(every=5, start=0.5, stop=0.75), cycle_epochs=2, cycle_rate=0.4, **options)
    assert due(pretrain) == [20, 25]
    assert [due(cycle) for cycle in cycles] == [expected, expected]
    for cycle in cycles:
        assert cycle.update is None or cycle.update.plan.updates() == len(expected)
        assert cycle.update is None or cycle.update.density_curve is None


def test_drop_fractions_in_cycles():
    """The one of re-exploration on the first step only; else the last of pretraining, here the floor."""
    of = method(every=2, fraction=lambda plan: cosine(plan, initial=0.5, floor=0.125))
    *_, cycle = phases(of, re_explore=0.75, freeze_updates=False, cycle_epochs=1)
    assert [cycle.update.drop_fraction(step) for step in (1, 2, 4, 6)] == [0.75, 0.125, 0.125, 0.125]


def test_an_update_in_place_of_a_step_stays_one():
    *_, cycle = phases(method(order="replaces_step"), re_explore=0.5, cycle_epochs=1)
    assert cycle.update.replaces_step
    assert due(cycle) == [1]


def test_cycles_are_updated_by_the_drop_and_growth_of_the_method():
    pretrain, cycle, *_ = phases(method(grow="random"), re_explore=0.5, cycle_epochs=1)
    assert (cycle.update.drop, cycle.update.grow) == (pretrain.update.drop, pretrain.update.grow)
    assert cycle.update.plan.grown_weights == pretrain.update.plan.grown_weights


STILL = Method(lr=lambda steps: lambda step: 0.1, update=lambda steps: None, density=0.1)


@pytest.mark.parametrize(
    ("of", "options", "told"),
    [
        (None, {"cycle_epochs": 3, "cycle_rate": 0.2}, "cycle_epochs=3: of 10 epochs cycle_rate=0.2 leaves 2"),
        (None, {"pretrain_epochs": 10}, "pretrain_epochs=10: leaves 0 of 10 epochs"),
        (None, {"cycle_epochs": 2, "include_pretrained": False}, "leaves a single network to superpose"),
        (None, {"cycle_epochs": 1, "freeze_updates": False}, "a cycle has 6 steps and its first update would come aft"),
        (
            method(every=2, fraction=lambda plan: cosine(plan, initial=0.5)),
            {"cycle_epochs": 1, "freeze_updates": False},
            "last drop fraction of pretraining, which is 0",
        ),
        (STILL, {"cycle_epochs": 1, "freeze_updates": False}, "in which nothing would move, since the method drops"),
        (STILL, {"cycle_epochs": 1, "re_explore": 0.5}, "re_explore=0.5 would be ignored: the method drops and grows"),
        (None, {"cycle_epochs": 1, "batch_norm": "average"}, "batch_norm=average would be ignored: the model has no"),
        (None, {"cycle_epochs": 1, "average_over": "banana"}, "average_over=banana: allowed: active, networks"),
        (None, {"cycle_epochs": 1, "superpose": "caa", "cima_factor": 0.4}, "cima_factor=0.4: "),
        (None, {"cycle_epochs": 1, "lr": "constant", "lr_mid_cycle": 0.4}, "lr_mid_cycle=0.4: "),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(of, options, told):
    with pytest.raises(OptionError, match=told):
        phases(of, **options)


def test_cycles_of_parts_of_epochs_are_refused():
    with pytest.raises(OptionError, match=r"^steps=59: cycles consist of whole epochs, .* all 60 steps; leave it out$"):
        sup_tickets(Length(10, 6, 59), method(), cycle_epochs=1)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ("procedure.freeze_updates=false", "schedule.update_every=6"),
            "procedure.freeze_updates=false: unfrozen cycles in which nothing would move, since a cycle has 6 steps "
            "and its first update would come after 6, with a step to follow",
        ),
        (
            ("procedure.freeze_updates=false", "sparsity.drop_fraction.name=cosine", "sparsity.drop_fraction.floor=0"),
            "which is 0: choose one that ends above 0 (its floor), or procedure.freeze_updates=true",
        ),
        (("procedure.batch_norm=average",), "procedure.batch_norm=average would be ignored: the model has no batch no"),
    ],
)
def test_what_only_data_and_model_tell_is_refused_once_in_terms_of_the_config(overrides, told):
    ((_, config),) = compose_cells(CONF, [*SHORT, "sparsity=rigl_itop", TINY_MODEL, *overrides], multirun=False)
    assert check(config) == []
    with pytest.raises(ConfigError) as error:
        check_feasible(complete(config))
    assert [told in problem for problem in error.value.problems] == [True]


# -- whole runs --------------------------------------------------------------------------------------------------------

SHORT = (
    *("data.val_fraction=0.8", "schedule.batch_size=48", "hardware.threads=1", "tracking=none"),
    *("schedule.epochs=4", "schedule.update_every=2", "schedule.lr.peak=0.05"),
    *("procedure=sup_tickets", "procedure.cycle_epochs=1", "procedure.cycle_rate=0.5"),
)
PER_EPOCH, STEPS = 6, 24
"""Of 287 samples in batches of 48: two epochs of pretraining, two cycles of one."""
TINY_MODEL = "model.hidden=[24]"
WITH_BATCH_NORM = "model=resnet20"


def composed(*overrides):
    ((_, config),) = compose_cells(CONF, [*SHORT, *overrides], multirun=False)
    assert check(config) == []
    config = complete(config)
    check_feasible(config)
    return config


class Witness(NoObserver):
    """Keeps every network that is reported, and what is saved; asks to stop at a tick of the work between steps."""

    def __init__(self, stop_at=None):
        self.networks, self.states, self.saved, self.rows = {}, {}, [], []
        self.stop, self.stop_at, self.steps = StopFlag(), stop_at, []

    def on_step(self, step):
        self.steps.append(step)
        if len(self.steps) == self.stop_at:
            self.stop.requested = "SIGTERM"

    def on_network(self, network, state):
        assert network.name not in self.networks
        self.networks[network.name] = network
        self.states[network.name] = copy.deepcopy(
            {"model": dict(state["model"]), "masks": dict(state["sparsifier"]["masks"])}
        )

    def on_metrics(self, step, epoch, values):
        self.rows.append((step, dict(values)))

    def on_checkpoint(self, step, state):
        self.saved.append((state["counters"]["phase"], step, copy.deepcopy(state)))


def trained(*overrides, stop_at=None, state=None):
    training = build(composed(*overrides)).training
    if state is not None:
        training.load_state_dict(state)
    witness = Witness(stop_at)
    try:
        training.run(witness, witness.stop)
    except StopRequestedError:
        assert stop_at is not None
    return training, witness


@cache
def rigl():
    return trained("sparsity=rigl_itop", TINY_MODEL, "procedure.re_explore=0.5")


NAMES = ["pretrained", "ticket 1", "superposed 1", "ticket 2", "superposed 2"]


def assert_is_the_last_superposed_network(training, witness):
    """The run's network has its weights, masks, statistics and validation figures; its masks were all explored."""
    last, topology = witness.states[NAMES[-1]], training.sparsifier.topology
    assert same(dict(training.model.state_dict()), last["model"])
    assert same(training.sparsifier.state_dict()["masks"], last["masks"])
    network = witness.networks[NAMES[-1]]
    assert (network.loss, network.accuracy) == (training.counters.val_loss, training.counters.val_accuracy)
    assert (network.active, network.density) == (topology.active, training.sparsifier.density)
    assert training.active == {report.layer: report.active for report in topology.reports}
    for mask, explored in zip(topology.masks, topology.explored, strict=True):
        assert not (mask & ~explored).any()
    step, row = witness.rows[-1]
    assert step == STEPS
    assert (row["val/accuracy"], row["sparsity/active"]) == (network.accuracy, topology.active)
    assert training.is_over
    assert training.kept == {}
    phase, step, state = witness.saved[-1]
    assert (phase, step) == (3, STEPS)
    assert same(state["sparsifier"]["masks"], last["masks"])


@pytest.mark.parametrize("prune_back", ["each_cycle", "end"])
@pytest.mark.parametrize("average_over", ["networks", "active"])
@pytest.mark.parametrize("pool", ["global", "layer"])
def test_the_final_network_has_the_density_exactly(prune_back, average_over, pool):
    options = {"prune_back": prune_back, "average_over": average_over, "pool": pool, "re_explore": 0.5}
    training, witness = trained(
        "sparsity=rigl_itop", TINY_MODEL, *(f"procedure.{name}={value}" for name, value in options.items())
    )
    assert list(witness.networks) == NAMES
    target = round(0.1 * training.sparsifier.topology.size)
    assert training.sparsifier.topology.active == target
    first = witness.networks["superposed 1"].active
    assert first == target if prune_back == "each_cycle" else first > target
    tickets, last = (count_true([*witness.states[name]["masks"].values()]) for name in NAMES[-2:])
    assert pool == "global" or last == tickets
    assert_is_the_last_superposed_network(training, witness)
    assert_inactive_is_zero(training)
    training.sparsifier.verify()


def test_superposed_networks_are_computed_of_tickets_as_the_formula_says():
    """CAA with zeros, by hand: pruned after each cycle, within the union of the networks before and the ticket."""
    training, witness = rigl()
    before = witness.states["pretrained"]
    for c in (1, 2):
        ticket, made = witness.states[f"ticket {c}"], witness.states[f"superposed {c}"]
        for layer, mask in made["masks"].items():
            name = f"{layer}.weight"
            was, new = before["model"][name].double(), ticket["model"][name].double()
            expected = ((1 - 1 / (c + 1)) * was + new / (c + 1)) * mask
            torch.testing.assert_close(made["model"][name].double(), expected, rtol=1e-6, atol=1e-8)
            union = before["masks"][layer] | ticket["masks"][layer]
            assert not (mask & ~union).any()
            assert not torch.equal(mask, ticket["masks"][layer])
        before = made
    assert_is_the_last_superposed_network(training, witness)


def test_cima_moves_by_its_factor():
    options = ("procedure.superpose=cima", "procedure.cima_factor=0.25", "procedure.re_explore=0.5")
    _, witness = trained("sparsity=rigl_itop", TINY_MODEL, *options)
    before, ticket, made = (witness.states[name] for name in ("superposed 1", "ticket 2", "superposed 2"))
    for layer, mask in made["masks"].items():
        name = f"{layer}.weight"
        expected = (0.25 * ticket["model"][name] + 0.75 * before["model"][name]) * mask
        assert torch.equal(made["model"][name], expected)


def test_without_the_pretrained_network_the_first_ticket_is_the_first():
    _, witness = trained("sparsity=rigl_itop", TINY_MODEL, "procedure.include_pretrained=false")
    assert list(witness.networks) == NAMES
    first, ticket = witness.states["superposed 1"], witness.states["ticket 1"]
    assert same(first["masks"], ticket["masks"])
    one, two, made = (witness.states[name]["model"] for name in ("ticket 1", "ticket 2", "superposed 2"))
    for name, tensor in made.items():
        assert torch.equal(first["model"][name], one[name])  # as numbers: a zero may have lost its sign
        assert torch.equal(tensor, one[name] + (two[name] - one[name]) / 2)


def test_dense_with_caa_is_torchs_averaged_model():
    training, witness = trained("sparsity=dense", TINY_MODEL)
    network = copy.deepcopy(training.model)
    averaged = AveragedModel(network)
    for name in ("pretrained", "ticket 1", "ticket 2"):
        network.load_state_dict(witness.states[name]["model"])
        averaged.update_parameters(network)
    assert not same(witness.states["pretrained"]["model"], witness.states["ticket 2"]["model"])
    assert same(dict(averaged.module.state_dict()), dict(training.model.state_dict()))


def going_on(training):
    """Return what training goes on from."""
    state = training.state_dict()
    return [plain(state[part]) for part in ("model", "optimizer", "sparsifier")]


@pytest.mark.parametrize("model", [TINY_MODEL, WITH_BATCH_NORM])
def test_training_goes_on_from_the_ticket(model):
    """Superposing leaves weights, statistics, masks and optimizer as they are, and so the momenta of batch norm."""
    training = build(composed("sparsity=rigl_itop", model, "procedure.re_explore=0.5")).training
    seen, momenta = [], [module.momentum for module in batch_norm.batch_norms(training.model)]

    def watched(action):
        def act(run, observer, tick):
            before = going_on(run)
            action(run, observer, tick)
            seen.append(going_on(run) == before)
            assert run.model.training

        return act

    for phase in training.phases:
        object.__setattr__(phase, "end", watched(phase.end))
    witness = Witness()
    training.run(witness, witness.stop)
    assert seen == [True, True, False]
    assert [module.momentum for module in batch_norm.batch_norms(training.model)] == momenta
    assert model == TINY_MODEL or set(momenta) == {0.1}


def test_set_and_rigl_end_with_different_networks():
    masks = [
        trained(f"sparsity={name}", TINY_MODEL, "procedure.re_explore=0.5")[1].states["superposed 2"]["masks"]
        for name in ("set_itop", "rigl_itop")
    ]
    assert all(not torch.equal(masks[0][layer], masks[1][layer]) for layer in masks[0])


# -- batch norm --------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_update_bn_over_the_last_epoch():
    training, witness = trained("sparsity=rigl_itop", WITH_BATCH_NORM, "procedure.re_explore=0.5")
    for name, epoch in (("superposed 1", 2), ("superposed 2", 3)):
        twin = build(composed("sparsity=dense", WITH_BATCH_NORM)).training.model
        twin.load_state_dict(witness.states[name]["model"])
        for module in batch_norm.batch_norms(twin):
            module.reset_running_stats()
        update_bn(training.train_batches.epoch(epoch), twin)
        assert same(dict(twin.state_dict()), witness.states[name]["model"])
    assert_is_the_last_superposed_network(training, witness)
    counted = [
        {layer: int(mask.sum()) for layer, mask in witness.states[name]["masks"].items()} for name in NAMES[2::2]
    ]
    flops = [training.train_batches.samples * training.ledger.flops.test(active) for active in counted]
    assert training.ledger.batch_norm.total == sum(flops)


def test_averaged_statistics_cost_nothing():
    training, witness = trained("sparsity=rigl_itop", WITH_BATCH_NORM, "procedure.batch_norm=average")
    assert training.ledger.batch_norm.total == 0
    before, ticket, made = (witness.states[name]["model"] for name in ("superposed 1", "ticket 2", "superposed 2"))
    for name in made:
        if "running" in name:
            assert torch.equal(made[name], before[name] + (ticket[name] - before[name]) / 3)


def test_a_model_without_batch_norm_is_not_passed_again():
    assert rigl()[0].ledger.batch_norm.total == 0


def test_a_request_to_stop_within_the_pass_leaves_the_ticket_as_it_was():
    """What is saved then is the state after the last step; the run goes on from there as if nothing had happened."""
    options = ("sparsity=rigl_itop", WITH_BATCH_NORM, "procedure.re_explore=0.5")
    whole, seen = trained(*options)
    within = seen.steps.index(3 * PER_EPOCH) + 4  # of one for the last step of the cycle, one, and one a batch
    assert seen.steps[within] == 3 * PER_EPOCH
    stopped, witness = trained(*options, stop_at=within)
    assert list(witness.networks) == NAMES[:2]
    phase, step, state = witness.saved[-1]
    assert (phase, step) == (1, 3 * PER_EPOCH)
    assert same(state["model"], witness.states["ticket 1"]["model"])
    assert stopped.ledger.batch_norm.total == 0
    resumed, again = trained(*options, state=state)
    assert list(again.networks) == NAMES[1:]
    assert same(resumed.state_dict(), whole.state_dict())


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("sparsity=dense",),
        ("sparsity=static",),
        ("sparsity=set_itop", "procedure.re_explore=0.5", "procedure.pool=layer"),
        ("sparsity=rigl", "procedure.re_explore=0.5", "procedure.pool=layer"),
        ("sparsity=nm_rigl", "procedure.re_explore=0.5"),
    ],
)
def test_the_forecast_is_exact_where_layers_keep_their_counts(options):
    training = build(composed(*options, WITH_BATCH_NORM)).training
    expected = planned_ledger(training).total
    witness = Witness()
    training.run(witness, witness.stop)
    assert training.ledger.batch_norm.total > 0
    assert training.ledger.total == expected


# -- any method --------------------------------------------------------------------------------------------------------


WITHOUT_LEARNED_MASKS = [
    name for name in METHODS if "reparametrize:" not in (CONF / "sparsity" / f"{name}.yaml").read_text()
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_LEARNED_MASKS)
def test_every_method_can_be_superposed(name):
    """Structured ones keep to their pattern; those with counts of their own keep these, all others the density."""
    few_rounds = ("sparsity.distribution.rounds=3", "sparsity.init.rounds=3") if name == "synflow" else ()
    small = ("sparsity.pattern.block_size=4",) if name in ("dsb", "ssb") else ()  # 16 divides neither 300 nor 100
    options = (f"sparsity={name}", "model=lenet_300_100", *few_rounds, *small)
    config = composed(*options)
    moves = config.sparsity.drop.name not in ("none", "threshold")
    training, witness = trained(*options, *(("procedure.re_explore=0.5",) if moves else ()))
    assert list(witness.networks) == NAMES
    topology, ticket = training.sparsifier.topology, witness.networks["ticket 2"]
    density = final_density(config)
    is_own = density is None or topology.is_structured
    assert topology.active == (ticket.active if is_own else round(density * topology.size))
    for report, mask, pattern in zip(topology.reports, topology.masks, topology.patterns, strict=True):
        assert report.active == report.size or pattern.allows(mask)
    assert_is_the_last_superposed_network(training, witness)
    assert_inactive_is_zero(training)
    if moves:
        assert not same(witness.states["superposed 2"]["masks"], witness.states["ticket 2"]["masks"])


@pytest.mark.parametrize("prune_back", ["each_cycle", "end"])
@pytest.mark.parametrize("name", ["srigl", "nm_rigl"])
def test_structured_methods_stay_in_their_pattern(name, prune_back):
    options = (f"sparsity={name}", TINY_MODEL, "procedure.re_explore=0.5", f"procedure.prune_back={prune_back}")
    training, witness = trained(*options)
    topology = training.sparsifier.topology
    assert topology.is_structured
    for pattern, (layer, mask) in zip(topology.patterns, witness.states["superposed 2"]["masks"].items(), strict=True):
        assert mask.all() or pattern.allows(mask)
        moved = witness.states["ticket 1"]["masks"][layer] ^ witness.states["ticket 2"]["masks"][layer]
        assert mask.all() or moved.any()
    assert training.sparsifier.topology.active == witness.networks["ticket 2"].active
    if prune_back == "end":
        assert witness.networks["superposed 1"].active > witness.networks["ticket 1"].active


def test_a_ticket_that_is_denser_than_the_target_is_pruned_to_it():
    """The published GraNet stops short of its density in training; the superposed network has it."""
    options = ("sparsity=granet", "sparsity.density_schedule.ends_early=true", TINY_MODEL)
    for pool in ("global", "layer"):
        training, witness = trained(*options, "procedure.re_explore=0.5", f"procedure.pool={pool}")
        target = round(0.1 * training.sparsifier.topology.size)
        assert witness.networks["ticket 2"].active > target == training.sparsifier.topology.active


def test_a_distribution_that_falls_short_on_purpose_is_not_filled_up():
    options = ("sparsity=rigl_itop", "sparsity.distribution.name=erk", "sparsity.distribution.clip=true")
    training, witness = trained(*options, "sparsity.density=0.5", TINY_MODEL, "procedure.re_explore=0.5")
    assert training.sparsifier.topology.active == witness.networks["ticket 2"].active
    assert training.sparsifier.topology.active < round(0.5 * training.sparsifier.topology.size)


@pytest.mark.parametrize(
    "options", [("sparsity=dense",), ("sparsity=set_itop", "procedure.re_explore=0.5", "procedure.pool=layer")]
)
def test_gradients_may_be_corrected(options):
    """The passes of both are booked as forecast, and a stop within re-estimation leaves the correction as it was."""
    options = (*options, WITH_BATCH_NORM, "correction=agent")
    training = build(composed(*options)).training
    expected = planned_ledger(training).total
    witness = Witness()
    training.run(witness, witness.stop)
    assert_is_the_last_superposed_network(training, witness)
    assert min(training.ledger.correction.total, training.ledger.batch_norm.total) > 0
    assert training.ledger.total == expected
    within = witness.steps.index(3 * PER_EPOCH) + 4
    _, stopped = trained(*options, stop_at=within)
    assert list(stopped.networks) == NAMES[:2]
    resumed, _ = trained(*options, state=stopped.saved[-1][2])
    assert same(resumed.state_dict(), training.state_dict())


def test_without_a_validation_split_networks_have_no_figures():
    training, witness = trained("sparsity=rigl_itop", TINY_MODEL, "data.val_fraction=0", "schedule.batch_size=240")
    assert list(witness.networks) == NAMES
    assert {(network.loss, network.accuracy) for network in witness.networks.values()} == {(None, None)}
    assert same(dict(training.model.state_dict()), witness.states[NAMES[-1]]["model"])
    assert not [values for _, values in witness.rows if "val/loss" in values]
