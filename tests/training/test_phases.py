"""A run in phases: whose steps count, what actions may do, and what a stop inside one leaves behind."""

import copy

import pytest
import torch

from dst.metrics.flops import Ledger
from dst.sparsity import UpdatePlan
from dst.sparsity.update import topology_update
from dst.training.distributed import ALONE
from dst.training.observer import NoObserver
from dst.training.phase import Phase, total_steps
from dst.training.stopping import StopFlag, StopRequestedError
from dst.training.watch import Watch
from tests.states import same
from tests.training.ranks import training

FIRST, SECOND, THIRD = 5, 3, 4
"""Steps of the phases: they end in the middle of an epoch of four."""


class Halve:
    """An action that halves all weights at its end, and ticks before."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, run, observer, tick):
        run.ledger.batch_norm.dense_forward(7)
        tick()
        self.calls += 1
        run.kept = {"calls": torch.tensor(self.calls), "step": run.counters.step}
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.mul_(0.5)

    def book(self, ledger: Ledger, active, samples):
        ledger.batch_norm.dense_forward(7)


def update(steps):
    return topology_update(UpdatePlan(every=2, total_steps=steps, on_last_step=True))


def phased(**options):
    run = training(ALONE, **options)
    run.phases = [
        Phase("first", FIRST, lambda step: 0.1 + step, update(FIRST), end=Halve()),
        Phase("second", SECOND, lambda step: 0.2 + step, None),
        Phase("third", THIRD, lambda step: 0.3 + step, update(THIRD), begin=Halve(), end=Halve()),
    ]
    run.phases = [  # rates of whole numbers are told apart; they train at a small one
        Phase(phase.name, phase.steps, lambda step, lr=phase.lr: lr(step) / 1000, phase.update, phase.begin, phase.end)
        for phase in run.phases
    ]
    run.total_steps = total_steps(run.phases)
    run.sparsifier.begin(run.phases[0].update)
    return run


class Keeper(NoObserver):
    def __init__(self, run, stop=None, ask_at=None):
        self.run, self.stop, self.ask_at = run, stop, ask_at
        self.saved, self.rates, self.updates, self.ticks = {}, [], [], []

    def on_metrics(self, step, epoch, values):
        if "lr" in values:
            self.rates.append(round(1000 * values["lr"], 6))

    def on_layers(self, step, layers):
        self.updates.append(step)

    def on_step(self, step):
        self.ticks.append(step)
        if (step, self.ticks.count(step)) == self.ask_at:
            self.stop.requested = "SIGTERM"

    def on_checkpoint(self, step, state):
        self.saved[state["counters"]["phase"], step] = copy.deepcopy(state)


def carried_out(run, **options):
    stop = StopFlag()
    keeper = Keeper(run, stop, **options)
    run.run(keeper, stop)
    return keeper


def test_rates_and_updates_are_those_of_the_phase():
    run = phased()
    keeper = carried_out(run)
    assert keeper.rates == [0.1, 1.1, 2.1, 3.1, 4.1, 0.2, 1.2, 2.2, 0.3, 1.3, 2.3, 3.3]
    assert keeper.updates == [2, 4, 10, 12]  # every second step of the first and of the third phase
    assert (run.counters.step, run.counters.phase, run.sparsifier.updates) == (12, 3, 4)
    assert run.is_over


def test_what_an_action_did_is_saved_under_the_next_phase():
    run = phased()
    keeper = carried_out(run)
    assert list(keeper.saved) == [(1, FIRST), (3, 12)]
    assert keeper.saved[1, FIRST]["procedure"]["step"] == FIRST
    assert run.kept["step"] == 12
    assert run.ledger.batch_norm.total == 3 * 7 * run.ledger.flops.dense


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_a_resume_from_any_checkpoint_ends_alike(every):
    whole = phased(batch_norm=True)
    object.__setattr__(whole.settings, "checkpoint_every_steps", every)
    keeper = carried_out(whole)
    assert len(keeper.saved) >= 2 + (12 - 1) // every - 1
    for state in keeper.saved.values():
        run = phased(batch_norm=True)
        run.load_state_dict(copy.deepcopy(state))
        for phase in run.phases:  # actions are pure functions of the state: theirs counts calls, for this test only
            for action in {phase.begin, phase.end} - {None}:
                action.calls = 0
        carried_out(run)
        assert same(run.state_dict(), whole.state_dict())


@pytest.mark.parametrize(("ask_at", "saved"), [((FIRST, 2), (0, FIRST)), ((8, 2), (2, 8)), ((12, 2), (2, 12))])
def test_a_request_to_stop_inside_an_action_leaves_the_state_from_before_it(ask_at, saved):
    """``ask_at``: a step and how often it has been heard of: first as the step itself, then in an action."""
    whole, run = phased(), phased()
    carried_out(whole)
    stop = StopFlag()
    keeper = Keeper(run, stop, ask_at)
    with pytest.raises(StopRequestedError, match=f"stopped by SIGTERM after step {ask_at[0]};"):
        run.run(keeper, stop)
    state = keeper.saved[saved]
    assert list(keeper.saved)[-1] == saved
    assert state["ledger"]["batch_norm"] == 7 * run.ledger.flops.dense * (
        0 if ask_at[0] == FIRST else 1 + (saved[1] > 8)
    )
    again = phased()
    again.load_state_dict(state)
    carried_out(again)
    assert same(again.state_dict(), whole.state_dict())


class Remember:
    """An action that keeps where the run is, and tells when it was carried out."""

    def __init__(self) -> None:
        self.steps = []

    def __call__(self, run, observer, tick):
        tick()
        self.steps.append(run.counters.step)
        run.kept = {"step": run.counters.step}


def with_midway(run):
    """Let the first phase, of five steps in epochs of four, remember what it was after its first epoch."""
    remember = Remember()
    object.__setattr__(run.phases[0], "midway", (4, remember))
    object.__setattr__(run.phases[0], "end", None)
    return run, remember


def test_what_is_done_midway_is_done_between_two_epochs_and_again_after_a_resume_there():
    whole, remember = with_midway(phased())
    object.__setattr__(whole.settings, "checkpoint_every_steps", 1)
    keeper = carried_out(whole)
    assert remember.steps == [4]
    assert (keeper.saved[0, 4]["procedure"], keeper.saved[1, 6]["procedure"]) == ({}, {"step": 4})
    for step, again in ((3, [4]), (4, [4]), (5, [])):
        run, remember = with_midway(phased())
        run.load_state_dict(copy.deepcopy(keeper.saved[0, step]))
        carried_out(run)
        assert remember.steps == again
        for phase in (run.phases[2], whole.phases[2]):
            assert phase.end.calls == 1
        assert same(run.state_dict(), whole.state_dict())


def test_a_checkpoint_says_which_phase_was_begun():
    """A run that goes on from the first step of a phase begins it, unless that was done before it was saved."""
    run, stop = phased(), StopFlag()
    object.__setattr__(run.settings, "checkpoint_every_steps", 1)
    keeper = Keeper(run, stop)
    run.run(keeper, stop)
    begun = {place: state["counters"]["begun"] for place, state in keeper.saved.items()}
    assert {place: begun[place] for place in ((0, 1), (0, 5), (1, 5), (1, 6), (1, 8), (2, 9), (2, 12))} == {
        **{(0, 1): 0, (0, 5): 0, (1, 5): 0, (1, 6): 1},
        **{(1, 8): 1, (2, 9): 2, (2, 12): 2},
    }
    (action,) = {phase.begin for phase in run.phases} - {None}
    assert action.calls == 1
    state = copy.deepcopy(keeper.saved[1, 8])
    again = phased()
    state["counters"].update(phase=2, begun=2)  # as a stop after the beginning saves it
    again.load_state_dict(state)
    carried_out(again)
    assert again.phases[2].begin.calls == 0


def test_a_checkpoint_from_before_phases_is_of_the_first_and_goes_on():
    whole = training(ALONE)
    keeper = Keeper(whole)
    object.__setattr__(whole.settings, "checkpoint_every_steps", 5)
    whole.run(keeper, StopFlag())
    state = copy.deepcopy(keeper.saved[0, 5])
    counters = {**state["counters"], "flops": sum(state.pop("ledger").values())}
    old = {key: value for key, value in state.items() if key not in ("correction", "procedure")}
    old["counters"] = {key: value for key, value in counters.items() if key != "phase"}
    run = training(ALONE)
    run.load_state_dict(old)
    run.run(NoObserver(), StopFlag())
    assert same(run.state_dict(), whole.state_dict())


def test_watch_saves_by_steps_and_time_and_stops_on_request():
    run, stop = training(ALONE), StopFlag()
    object.__setattr__(run.settings, "checkpoint_every_steps", 3)
    watch = Watch(run.settings, ALONE, stop)
    assert [watch.look(step) for step in (1, 2, 3)] == [(False, False), (False, False), (True, False)]
    object.__setattr__(run.settings, "checkpoint_every_s", 1e-9)
    assert watch.look(4) == (True, False)
    stop.requested = "SIGINT"
    assert watch.look(5) == (True, True)
    assert str(watch.stopped(5)).startswith("stopped by SIGINT after step 5;")
