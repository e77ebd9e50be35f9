"""The states that a run can be in, their groups, and their exit codes."""

from dst.records import states
from dst.records.states import ENDED, OBSERVED, OVER, RECORDED, REQUEUED, STOPPED, UNFINISHED, WITHOUT_RECORD, State


def test_every_state_is_recorded_or_seen_from_outside_and_the_groups_are_of_those_that_can_be_in_them():
    assert [state.value for state in RECORDED] == [
        *("submitting", "not submitted", "queued", "running", "preempted", "done", "failed", "diverged", "cancelled")
    ]
    assert set(OBSERVED) - set(RECORDED) == {State.LOST, State.UNKNOWN, State.UNREADABLE, State.MISSING}
    assert set(UNFINISHED) == set(RECORDED) - ENDED
    assert OVER < ENDED < set(RECORDED)
    assert set(REQUEUED) <= set(OBSERVED)
    assert set(STOPPED) <= set(UNFINISHED)
    assert not set(WITHOUT_RECORD) & set(RECORDED)


def test_exit_codes_are_those_of_the_contract():
    codes = {state.value: state.exit_code for state in State}
    assert {name: codes[name] for name in ("done", "failed", "refused", "diverged", "preempted", "cancelled")} == {
        **{"done": 0, "failed": 1, "refused": 2, "diverged": 3},
        **{"preempted": 75, "cancelled": 75},
    }
    assert codes["lost"] == codes["queued"] == codes["not started"] == 1  # none of them is an end


def test_the_worst_code_is_chosen_by_what_it_means_and_not_by_its_number():
    assert states.worst([0, 75, 3, 2, 1]) == 1
    assert states.worst([75, 3, 2]) == 2
    assert states.worst([75, 0, 3]) == 3
    assert states.worst([75, 0]) == 75
    assert states.worst([130, 75]) == 75
    assert states.worst([130, 0]) == 130
    assert states.worst([0]) == states.worst([]) == 0
