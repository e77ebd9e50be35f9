"""What is said of a run in every way its job can end, with and without SLURM to ask."""

import time

import pytest

from dst.launcher import seen, slurm
from dst.launcher.seen import look
from dst.launcher.slurm import SlurmJob
from dst.records.lock import locked
from dst.records.store import Record

JOB = "7_1"


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Return a function: what ``look`` says of a run in a state, given what SLURM says of its job."""

    def ask(state, jobs, *, launch=None, **status):
        monkeypatch.setattr(seen.slurm, "jobs", lambda ids: jobs)
        record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
        record.write_status(state, attempt=1, step=5, **status)
        record.write_launch(launch or {"cluster": "slurm", "job": JOB, "submitted": 0})
        (found,) = look([record.folder])
        return found

    return ask


def slurm_says(state):
    return {JOB: SlurmJob(state)}


@pytest.mark.parametrize(
    ("recorded", "slurm", "state", "is_taken"),
    [
        ("queued", "PENDING", "queued", True),
        ("queued", "RUNNING", "queued", True),
        ("queued", "CANCELLED", "lost", False),
        ("queued", "FAILED", "lost", False),
        ("running", "TIMEOUT", "lost", False),
        ("running", "NODE_FAIL", "lost", False),
        ("running", "OUT_OF_MEMORY", "lost", False),
        ("running", "PENDING", "queued", True),  # killed, and requeued by SLURM
        ("running", "RUNNING", "queued", True),  # killed, requeued, and about to go on
        ("preempted", "PENDING", "preempted", True),
        ("preempted", "SPECIAL_EXIT", "preempted", True),
        ("preempted", "CANCELLED", "preempted", False),
        ("failed", "FAILED", "failed", False),
        ("failed", "RUNNING", "failed", False),  # its neighbours in the job go on
    ],
)
def test_the_record_and_slurm(told, recorded, slurm, state, is_taken):
    found = told(recorded, slurm_says(slurm), error="why" if recorded in ("preempted", "failed") else None)
    assert (found.state, found.is_taken, found.slurm) == (state, is_taken, slurm)
    if state == "lost" or (recorded, slurm) == ("preempted", "CANCELLED"):
        assert f"SLURM says {slurm}" in found.why


def test_while_slurm_does_not_answer_nothing_is_lost(told):
    """Or the same command would submit all of it once more."""
    found = told("queued", None)
    assert (found.state, found.is_taken) == ("queued", True)


def test_without_slurm_to_ask_a_run_whose_process_is_gone_is_lost_but_not_submitted_again(told):
    found = told("running", None)
    assert (found.state, found.is_taken) == ("lost", True)


def test_a_job_that_slurm_does_not_know_any_more_is_gone(told):
    found = told("queued", {})
    assert (found.state, found.is_taken, found.why) == ("lost", False, "its job is gone")


@pytest.mark.parametrize("cluster", ["slurm", "local"])
@pytest.mark.parametrize(("age", "is_taken"), [(0, True), (600, False)])
def test_a_submission_that_was_cut_off_is_not_taken_for_ever(told, cluster, age, is_taken):
    found = told("queued", {}, launch={"cluster": cluster, "job": None, "submitted": time.time() - age})
    assert (found.state, found.is_taken) == ("queued" if is_taken else "lost", is_taken)


def test_the_lock_of_a_run_says_that_it_runs(told, tmp_path):
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run", JOB):
        found = told("running", slurm_says("FAILED"))
    assert (found.state, found.is_taken) == ("running", True)


def test_a_queue_that_cannot_be_asked_is_no_empty_queue(monkeypatch):
    monkeypatch.setattr(slurm, "_output", lambda *command: None if command[0] == "squeue" else "")
    assert slurm.jobs(["7_1"]) is None
    assert slurm.jobs([]) == {}
    monkeypatch.setattr(
        slurm, "_output", lambda *command: "7_1|PENDING\n7_2|RUNNING\n" if command[0] == "squeue" else ""
    )
    assert slurm.jobs(["7_1"]) == {"7_1": SlurmJob("PENDING")}
