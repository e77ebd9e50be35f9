"""Corrections and procedures: what they are called, which run they make, and what they do not go with."""

import pytest

from dst.config.checks import check
from dst.config.identity import identity, run_id, run_name
from dst.config.schema import Config, ConfigError, complete, get
from dst.config.wrappers import method_epochs
from dst.records.label import WRAPPERS, wrapper, wrappers_of
from dst.run import feasible
from tests.composed import compose_cells
from tests.processes import REPOSITORY


def composed(command):
    ((_, config),) = compose_cells(REPOSITORY / "conf", command.split(), multirun=False)
    return config


def problems(command):
    return check(composed(command))


# -- names and identity ------------------------------------------------------------------------------------------------


def test_what_leaves_a_method_as_it_is_is_the_default():
    assert {kind: get(Config(), kind).name for kind in WRAPPERS} == WRAPPERS
    assert run_id(composed("correction=none procedure=single")) == run_id(composed("")) == "3ca3e1323a2e"
    assert not [key for key in identity(complete(composed(""))) if key.startswith(tuple(WRAPPERS))]


@pytest.mark.parametrize(
    ("command", "wrapped"),
    [
        ("", ""),
        ("correction=agent", "correction=agent "),
        ("correction=agent correction.gamma=0.1 procedure=sup_tickets", "correction=agent procedure=sup_tickets "),
        (
            "correction=agent correction.gamma=0.2 correction.clip=true",
            "correction=agent(clip=true, gamma=0.2) ",
        ),
        (
            "procedure=sup_tickets procedure.pretrain_epochs=42 procedure.lr=constant",
            "procedure=sup_tickets(lr=constant, pretrain_epochs=42) ",
        ),
    ],
)
def test_the_name_of_a_run_says_what_wraps_its_method(command, wrapped):
    config = composed(command)
    for one in (config, complete(config)):
        assert run_name(one, {}, identity(one)) == f"digits mlp rigl_itop density=0.1 {wrapped}seed=0"
    told = wrappers_of(identity(config))
    assert "".join(f"{kind}={text} " for kind, text in told.items()) == wrapped
    assert {kind: wrapper(kind, identity(config)) for kind in WRAPPERS} == WRAPPERS | told


def test_a_default_said_aloud_is_the_same_run_and_another_value_another_one():
    agent, tickets = run_id(composed("correction=agent")), run_id(composed("procedure=sup_tickets"))
    assert len({agent, tickets, run_id(composed("")), run_id(composed("correction=agent procedure=sup_tickets"))}) == 4
    assert run_id(composed("correction=agent correction.alpha=0.3 correction.clip=false")) == agent
    assert run_id(composed("procedure=sup_tickets procedure.cycle_rate=0.2 procedure.pretrain_epochs=null")) == tickets
    assert run_id(composed("procedure=sup_tickets procedure.pretrain_epochs=42")) != tickets
    assert run_id(composed("correction=agent correction.alpha=0.4")) != agent


# -- what does not go together -----------------------------------------------------------------------------------------

TICKETS = "procedure=sup_tickets"
MOVING = f"{TICKETS} procedure.re_explore=0.5"

WRONG = {
    # options of one used with another
    "correction.gamma=0.2": "correction.gamma=0.2 would be ignored: correction 'none' takes no options",
    "procedure.cycle_epochs=2": "procedure.cycle_epochs=2 would be ignored: procedure 'single' takes no options",
    f"{TICKETS} procedure.lr=constant procedure.lr_at_ticket=0.002": "procedure.lr_at_ticket=0.002: needs procedure.lr="
    "triangular, not constant: set that, or procedure.lr_at_ticket=0.001",
    f"{TICKETS} procedure.lr=constant procedure.lr_mid_cycle=0.01": "procedure.lr_mid_cycle=0.01: needs procedure.lr=",
    f"{TICKETS} procedure.cima_factor=0.4": "procedure.cima_factor=0.4: needs procedure.superpose=cima, not caa",
    f"{MOVING} procedure.superpose=cima procedure.average_over=active": "procedure.average_over=active: needs "
    "procedure.superpose=caa, not cima",
    f"{TICKETS} procedure.pretrain_epochs=42 procedure.cycle_rate=0.1": "procedure.cycle_rate=0.1: does not go with "
    "procedure.pretrain_epochs=42: leave out one of them (procedure.cycle_rate=0.2)",
    # what is allowed
    "correction=agent correction.variance_batches=1": "correction.variance_batches=1: must be 0 or >= 2",
    "correction=agent correction.gamma=1.5": "correction.gamma=1.5: must be in [0, 1]",
    f"{TICKETS} procedure.superpose=mean": "allowed: caa, cima",
    f"{TICKETS} procedure.cycle_rate=1": "procedure.cycle_rate=1.0: must be in (0, 1)",
    # the rest of the run
    "correction=agent correction.every_epochs=50 correction.alpha=0.5": "correction.alpha=0.5 would be ignored: the "
    "first period makes no estimate, and correction.every_epochs=50 leaves no other. Use 0.3, or shorter periods",
    "correction=agent hardware.precision=fp16": "hardware.precision=fp16 does not go with correction.name=agent: the "
    "gradients of the model and of a snapshot are read before they are unscaled",
    f"{TICKETS} schedule.select=best_val": "schedule.select=best_val does not go with procedure.name=sup_tickets",
    f"{TICKETS} schedule.epochs=10": "procedure.cycle_epochs=4: of 10 epochs procedure.cycle_rate=0.2 leaves 2 for",
    f"{TICKETS} procedure.pretrain_epochs=41": "procedure.pretrain_epochs=41: leaves 9 of 50 epochs for cycles, which "
    "is no positive multiple of procedure.cycle_epochs=4; e.g. procedure.pretrain_epochs=42",
    f"{TICKETS} procedure.pretrain_epochs=50": "leaves 0 of 50 epochs for cycles",
    f"{TICKETS} schedule.epochs=20 procedure.include_pretrained=false": "leaves a single network to superpose",
    f"{TICKETS} schedule.lr.warmup_epochs=42": "schedule.lr.warmup_epochs=42.0 must be less than the 42 epochs of "
    "pretraining",
    # what moves
    f"{TICKETS} sparsity=static procedure.freeze_updates=false": "unfrozen cycles in which nothing would move",
    f"{TICKETS} sparsity=gmp procedure.freeze_updates=false": "unfrozen cycles in which nothing would move",
    f"{TICKETS} sparsity=dense procedure.re_explore=0.5": "procedure.re_explore=0.5 would be ignored: sparsity 'dense' "
    "drops and grows nothing",
    f"{MOVING} sparsity.drop.name=threshold sparsity.drop.value=0.1 sparsity.drop_fraction.name=none": "procedure."
    "re_explore=0.5 would be ignored: sparsity.drop.name=threshold says itself how many leave",
    f"{TICKETS} procedure.pool=layer": "procedure.pool=layer would be ignored: nothing moves in cycles",
    f"{TICKETS} sparsity=static procedure.average_over=active": "procedure.average_over=active would be ignored: ",
    f"{TICKETS} sparsity=dense procedure.prune_back=end": "procedure.prune_back=end would be ignored: nothing moves",
    f"{MOVING} sparsity=srigl procedure.pool=layer": "procedure.pool=layer would be ignored: sparsity.pattern.name="
    "constant_fan_in prunes each layer by itself",
}


@pytest.mark.parametrize(("command", "told"), WRONG.items())
def test_refused(command, told):
    found = problems(command)
    assert any(told in problem for problem in found), found


GOOD = (
    "correction=agent",
    "correction=agent hardware.precision=bf16",
    "correction=agent correction.variance_batches=0",
    "correction=agent procedure=sup_tickets sparsity=dense",
    "procedure=sup_tickets sparsity=granet",
    "procedure=sup_tickets sparsity=srigl",
    "procedure=sup_tickets procedure.lr=constant procedure.lr_at_ticket=0.001",  # the default, said aloud
    "procedure=sup_tickets procedure.cycle_rate=0.2 procedure.pretrain_epochs=46",
    "procedure=sup_tickets schedule.epochs=10 schedule.multiplier=2",
    "procedure=sup_tickets procedure.include_pretrained=false",
    "procedure=sup_tickets procedure.superpose=cima procedure.cima_factor=0.3",
    "procedure=sup_tickets procedure.re_explore=0.5 procedure.pool=layer procedure.average_over=active",
    "procedure=sup_tickets procedure.freeze_updates=false procedure.prune_back=end",
    "procedure=sup_tickets sparsity=granet sparsity.density_schedule.ends_early=true procedure.pool=layer",
    "procedure=sup_tickets sparsity=static sparsity.init.name=bernoulli procedure.pool=layer",
)


@pytest.mark.parametrize("command", GOOD)
def test_allowed(command):
    assert problems(command) == []


def test_epochs_of_the_method():
    assert method_epochs(composed("schedule.multiplier=2"))[0] == 100
    assert method_epochs(composed("procedure=sup_tickets"))[0] == 42
    assert method_epochs(composed("procedure=sup_tickets schedule.multiplier=2"))[0] == 80
    assert method_epochs(composed("procedure=sup_tickets procedure.pretrain_epochs=30"))[0] == 30
    assert method_epochs(composed("procedure=sup_tickets schedule.epochs=10"))[0] == 10  # which is refused


# -- what only the data say --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "correction=agent sparsity=static schedule.batch_size=2000",
            "correction.name=agent estimates a covariance over the batches of an epoch, which needs two of them",
        ),
        ("procedure=sup_tickets procedure.batch_norm=average", "would be ignored: the model has no batch norm"),
        (
            "procedure=sup_tickets sparsity=rigl procedure.freeze_updates=false",
            "procedure.freeze_updates=false: unfrozen cycles in which nothing would move, since they go on with the "
            "last drop fraction of pretraining, which is 0",
        ),
    ],
)
def test_refused_with_the_data(command, told):
    config = composed(command)
    assert check(config) == []
    with pytest.raises(ConfigError) as error:
        feasible.check(config)
    assert [told in problem for problem in error.value.problems] == [True]


@pytest.mark.parametrize(
    "command",
    [
        "correction=agent sparsity=static schedule.batch_size=700",  # two batches an epoch
        "procedure=sup_tickets sparsity=set procedure.freeze_updates=false",
        "procedure=sup_tickets sparsity=rigl_itop procedure.freeze_updates=false",
        "procedure=sup_tickets sparsity=rigl sparsity.drop_fraction.floor=0.1 procedure.freeze_updates=false",
    ],
)
def test_allowed_with_the_data(command):
    feasible.check(composed(command))
