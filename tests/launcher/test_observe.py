"""What is said of a run in every way its job can end, with and without SLURM to ask."""

import itertools
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst.launcher import observe as observing
from dst.launcher import slurm, status
from dst.launcher.observe import observe
from dst.launcher.slurm import SlurmJob
from dst.launcher.status import show
from dst.records.lock import locked
from dst.records.read import read_status
from dst.records.store import Record
from tests.processes import REPOSITORY, run, run_folder

JOB = "7_1"


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Return a function: what ``observe`` says of a run in a state, given what SLURM says of its job."""

    def ask(state, jobs, *, launch=None, **status):
        monkeypatch.setattr(observing.slurm, "jobs", lambda ids: jobs)
        record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
        record.write_status(state, attempt=1, step=5, **status)
        record.write_launch(launch or {"cluster": "slurm", "job": JOB, "submitted": 0})
        (found,) = observe([record.folder])
        return found

    return ask


def slurm_says(state):
    return {JOB: SlurmJob(state)}


@pytest.mark.parametrize(
    ("recorded", "slurm", "state", "is_taken"),
    [
        ("queued", "PENDING", "queued", True),
        ("queued", "RUNNING", "queued", True),
        ("queued", "CANCELLED", "cancelled", False),
        ("queued", "FAILED", "lost", False),
        ("running", "TIMEOUT", "lost", False),
        ("running", "NODE_FAIL", "lost", False),
        ("running", "OUT_OF_MEMORY", "lost", False),
        ("running", "PENDING", "queued", True),  # killed, and requeued by SLURM
        ("running", "RUNNING", "queued", True),  # killed, requeued, and about to go on
        ("preempted", "PENDING", "preempted", True),
        ("preempted", "SPECIAL_EXIT", "preempted", True),
        ("preempted", "CANCELLED", "preempted", False),
        ("cancelled", "PENDING", "cancelled", True),  # it has not heard of it yet, and may begin
        ("cancelled", "COMPLETING", "cancelled", True),
        ("cancelled", "CANCELLED", "cancelled", False),
        ("failed", "FAILED", "failed", False),
        ("failed", "RUNNING", "failed", False),  # its neighbours in the job go on
    ],
)
def test_the_record_and_slurm(told, recorded, slurm, state, is_taken):
    found = told(recorded, slurm_says(slurm), error="why" if recorded in ("preempted", "failed") else None)
    assert (found.state, found.is_taken, found.slurm) == (state, is_taken, slurm)
    if (state in ("lost", "cancelled") and recorded != state) or (recorded, slurm) == ("preempted", "CANCELLED"):
        assert f"SLURM says {slurm}" in found.why


def test_a_run_that_was_cancelled_is_taken_until_its_local_job_has_ended(told):
    process = os.getpid()
    job = {"cluster": "local", "job": str(process), "host": os.uname().nodename}
    found = told("cancelled", {}, launch={**job, "process_started": observing.process_started(process)})
    assert (found.state, found.is_taken) == ("cancelled", True)
    Record.open(Path(found.folder)).write_launch({**job, "process_started": "never"})
    (found,) = observe([Path(found.folder)])
    assert (found.state, found.is_taken) == ("cancelled", False)


@pytest.mark.parametrize(
    ("recorded", "age", "state", "is_taken"),
    [
        ("running", 0, "lost", True),  # it may have ended just now, and its job with it
        ("running", 61, "lost", False),
        ("queued", 61, "queued", True),  # a job has many runs, and they wait for each other
        ("preempted", 61, "preempted", True),
    ],
)
def test_a_local_job_elsewhere_is_gone_when_its_run_has_not_been_heard_of(told, recorded, age, state, is_taken):
    launch = {"cluster": "local", "job": "5", "host": "elsewhere", "process_started": "1"}
    folder = Path(told(recorded, {}, launch=launch).folder)
    status = read_status(folder)
    (folder / "status.json").write_text(json.dumps({**status, "heartbeat": status["heartbeat"] - age}))
    (found,) = observe([folder])
    assert (found.state, found.is_taken, found.has_job) == (state, is_taken, is_taken)


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


SUBMITTER = """
import sys, time
from pathlib import Path
from dst.records.lock import locked
from dst.records.restate import restate
root, run = map(Path, sys.argv[1:])
with locked(root / ".launch"):
    restate(run, "submitting")
    print("frozen", flush=True)
    time.sleep(600)
"""


def test_a_submission_is_seen_from_elsewhere_and_so_is_that_it_was_cut_off(tmp_path):
    """Whatever it is on record: frozen, about to be handed over (with a job or not yet), or only just made."""
    record = Record.create(tmp_path / "group" / "run", config_yaml="", run={"name": "a run"})
    new = Record.create(tmp_path / "group" / "new", config_yaml="", run={"name": "without a status"})
    (tmp_path / ".launch").mkdir()
    command = [sys.executable, "-c", SUBMITTER, str(tmp_path), str(record.folder)]
    submitter = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
    submitter.stdout.readline()
    try:
        frozen = observe([record.folder, new.folder])
        record.write_launch({"cluster": "local", "job": "2", "host": os.uname().nodename, "process_started": "0"})
        continued = observe([record.folder])
        record.write_launch({"cluster": "local", "job": None})
        status = read_status(record.folder)
        record.write_status("queued", attempt=0, step=0, pid=status["pid"])
        handed_over = observe([record.folder])
        record.write_status("queued", attempt=0, step=0, pid=1)  # by another command, some time ago
        others = observe([record.folder])
        record.write_status("submitting", attempt=0, step=0, pid=status["pid"])
    finally:
        submitter.kill()
        submitter.communicate()
    assert [(run.state, run.is_taken) for run in [*frozen, *continued, *handed_over]] == [("submitting", True)] * 4
    assert [(run.state, run.is_taken) for run in others] == [("not submitted", False)]
    cut_off, unknown = observe([record.folder, new.folder])
    assert (cut_off.state, cut_off.is_taken) == ("not submitted", False)
    assert f"process {submitter.pid}" in cut_off.why
    assert (unknown.state, unknown.is_taken) == ("unknown", False)


def test_a_run_that_was_submitted_while_it_was_looked_at_is_not_idle(tmp_path, monkeypatch):
    """Its record is read first, and then SLURM is asked of a job that it does not have any more."""
    record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
    record.write_status("queued", attempt=0, step=0)
    record.write_launch({"cluster": "slurm", "job": "6"})
    asked = []

    def jobs(ids):
        asked.append(list(ids))
        record.write_launch({"cluster": "slurm", "job": "7"})
        return {"6": SlurmJob("CANCELLED"), "7": SlurmJob("PENDING")}

    monkeypatch.setattr(observing.slurm, "jobs", jobs)
    (found,) = observe([record.folder])
    assert (found.state, found.job, found.is_taken, asked) == ("queued", "7", True, [["6"], ["7"]])


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
        slurm, "_output", lambda *command: "7_1|PENDING|Priority\n7_2|RUNNING|None\n" if command[0] == "squeue" else ""
    )
    assert slurm.jobs(["7_1", "7_2"]) == {"7_1": SlurmJob("PENDING", reason="Priority"), "7_2": SlurmJob("RUNNING")}


def test_a_reason_with_a_line_in_it_makes_no_job_dead(monkeypatch):
    monkeypatch.setattr(slurm, "_output", lambda *command: "7|PENDING|a|b\n" if command[0] == "squeue" else "")
    assert slurm.jobs(["7"]) == {"7": SlurmJob("PENDING", reason="a|b")}


@pytest.mark.parametrize(
    ("queue", "accounting", "states"),
    [
        # As SLURM 22.05 prints them for an array of six, %2 at a time; the last state is that of a task 7_5.
        ("7_[0-5%2]|CANCELLED", "", ["CANCELLED"] * 6),
        ("7|CANCELLED", "", ["CANCELLED"] * 6),  # each by itself, as dst.launcher.cancel did
        ("7|CANCELLED", "7|CANCELLED by 0|0:0", ["CANCELLED"] * 6),
        ("", "7_[0-5%2]|CANCELLED by 0|0:0", ["CANCELLED"] * 6),  # the queue forgets after minutes
        ("", "7_[0-4:2]|CANCELLED by 0|0:0", ["CANCELLED"] * 6),  # after 1, 3 and 5 were cancelled one by one
        ("7_0|PENDING\n7_2|PENDING", "7_[0,2%2]|PENDING|0:0", ["PENDING", "CANCELLED"] * 2 + ["CANCELLED"] * 2),
        (
            "7|CANCELLED\n7_1|RUNNING\n7_0|COMPLETING",
            "7_0|RUNNING|0:0\n7_1|RUNNING|0:0\n7_[2-5%2]|CANCELLED by 0|0:0",
            ["COMPLETING", "RUNNING", *["CANCELLED"] * 4],
        ),
        (
            "7|CANCELLED\n7_0|COMPLETED",
            "7|CANCELLED by 0|0:0\n7_1|FAILED|1:0",
            ["COMPLETED", "FAILED"] + ["CANCELLED"] * 4,
        ),
        ("7_0|CANCELLED", "7_0|RUNNING|0:0", ["CANCELLED"] * 6),  # the accounting lags
        ("", "7_0|RUNNING|0:0\n7_[1-5]|PENDING|0:0", [None] * 6),  # or has not heard of the end of a controller
        ("71_[0-5]|PENDING\n17|RUNNING", "", [None] * 6),
    ],
)
def test_what_slurm_says_of_the_tasks_of_an_array(monkeypatch, queue, accounting, states):
    queue = "\n".join(f"{line}|None" for line in queue.splitlines())
    monkeypatch.setattr(slurm, "_output", lambda *command: queue if command[0] == "squeue" else accounting)
    found = slurm.jobs([f"7_{task}" for task in range(6)])
    assert [found[job].state if (job := f"7_{task}") in found else None for task in range(6)] == states


def test_without_an_answer_of_the_accounting_nobody_says_how_a_task_ended_that_the_queue_has_forgotten(monkeypatch):
    monkeypatch.setattr(slurm, "_output", lambda *command: "7_0|RUNNING|None" if command[0] == "squeue" else None)
    assert slurm.jobs(["7_0", "7_1"]) == {"7_0": SlurmJob("RUNNING")}


@given(st.sets(st.integers(0, 300), min_size=1), st.integers(1, 9))
def test_the_tasks_that_slurm_lists_are_those_it_means(tasks, step):
    numbered = enumerate(sorted(tasks))
    ranges = [[task for _, task in group] for _, group in itertools.groupby(numbered, lambda pair: pair[1] - pair[0])]
    text = ",".join(f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in ranges)
    assert sorted(slurm._numbers(text)) == sorted(tasks)
    assert list(slurm._numbers(f"{min(tasks)}-{max(tasks)}:{step}")) == list(range(min(tasks), max(tasks) + 1, step))


def test_slurm_is_not_asked_of_no_job(tmp_path, monkeypatch):
    """One record without a job, as of a run whose submission failed, must not spoil the question for all."""
    asked = []
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: asked.extend(ids) or {})
    for job in (None, "7"):
        record = Record.create(tmp_path / f"run_{job}", config_yaml="", run={"name": "a run"})
        record.write_launch({"cluster": "slurm", "job": job})
    observe([tmp_path / "run_None", tmp_path / "run_7"])
    assert asked == ["7"]


@pytest.fixture
def scancel(monkeypatch):
    """Return a function: how ``scancel`` acts on each call; and the calls."""

    def acts(*ends):
        calls = []

        def run(command, **_):
            end = ends[min(len(calls), len(ends) - 1)]
            calls.append(command[1:])
            if isinstance(end, Exception):
                raise end
            return subprocess.CompletedProcess(command, int(bool(end)), "", end)

        monkeypatch.setattr(slurm.subprocess, "run", run)
        return calls

    return acts


def test_jobs_are_cancelled_an_array_at_a_time_and_what_is_refused_is_told_of_those_that_were(scancel):
    calls = scancel("", "scancel: error: Kill job error on job id 9: Access/permission denied\n")
    refused = slurm.cancel(["12_3", "12_10", "9", "12_0", "8"])
    assert calls == [["12_[0,10,3]"], ["8", "9"]]
    assert refused == {"9": "scancel: error: Kill job error on job id 9: Access/permission denied"}


def test_a_slow_scancel_is_waited_for_once_and_told(scancel):
    calls = scancel("", subprocess.TimeoutExpired(["scancel"], 60))
    refused = slurm.cancel(["12_3", "13_0", "14_0", "14_1"])
    assert calls == [["12_[3]"], ["13_[0]"]]
    assert refused == dict.fromkeys(
        ["13_0", "14_0", "14_1"], "scancel: SLURM does not answer within 60 s; look later, and cancel again"
    )
    scancel(FileNotFoundError(2, "no such program"))
    assert slurm.cancel(["9"]) == {"9": "scancel: [Errno 2] no such program"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("StartTime={ago} EndTime={soon} Deadline=N/A", (False, 60)),  # a partition that nothing preempts says no more
        ("StartTime={ago} EndTime=Unknown", (False, float("inf"))),
        ("StartTime={ago} EndTime={soon} PreemptEligibleTime={ago} PreemptTime=None", (False, 60)),
        ("StartTime={ago} EndTime={soon} PreemptEligibleTime={ago} PreemptTime={ago}", (True, 60)),
        ("StartTime={soon} EndTime={soon} PreemptTime={ago}", (False, 60)),  # before it was requeued
    ],
)
def test_a_time_limit_is_told_from_preemption(monkeypatch, text, expected):
    now = datetime.now()
    times = {"ago": now - timedelta(minutes=5), "soon": now + timedelta(minutes=1)}
    told = text.format(**{name: at.isoformat(timespec="seconds") for name, at in times.items()})
    monkeypatch.setattr(slurm, "_output", lambda *command: f"JobId=7 JobState=RUNNING\n   {told}\n")
    found = slurm.notice("7")
    assert (found.is_preemption, found.left_s) == (expected[0], pytest.approx(expected[1], abs=5))


def test_slurm_that_does_not_answer_is_no_notice(monkeypatch):
    monkeypatch.setattr(slurm, "_output", lambda *command: None)
    assert slurm.notice("7") is None


# -- what status says --------------------------------------------------------------------------------------------------


def test_what_a_job_waits_for_is_shown_beside_its_state(told):
    found = told("queued", {JOB: SlurmJob("PENDING", reason="QOSMaxJobsPerUserLimit")})
    assert (found.slurm, found.reason) == ("PENDING", "QOSMaxJobsPerUserLimit")
    assert "  PENDING (QOSMaxJobsPerUserLimit)  " in status.show([found])


def test_a_lost_run_says_where_its_last_words_are(told, tmp_path):
    """SLURM writes into the log of the job why it killed it."""
    launch = {"cluster": "slurm", "job": JOB, "submitted": 0, "logs": str(tmp_path / "logs")}
    assert told("running", slurm_says("OUT_OF_MEMORY"), launch=launch).why == "SLURM says OUT_OF_MEMORY"
    (tmp_path / "logs").mkdir()
    logs = [tmp_path / "run" / "log.txt", tmp_path / "logs" / f"{JOB}_0_log.out"]
    for log in logs:
        log.write_text("Out of memory")
    (lost,) = observe([tmp_path / "run"])
    assert lost.why == f"SLURM says OUT_OF_MEMORY; see {logs[0]}, {logs[1]}"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_that_slurm_could_not_be_asked_is_said_once(told, tmp_path, monkeypatch, capsys, options):
    told("queued", None)
    assert status.main([str(tmp_path), *options]) == 0
    found = capsys.readouterr()
    said, other = (found.err, found.out) if options else (found.out, found.err)
    assert said.count("SLURM cannot be asked from here (squeue)") == 1
    assert "cannot be asked" not in other
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {})
    assert status.main([str(tmp_path), *options]) == 0
    found = capsys.readouterr()
    assert "cannot be asked" not in found.out + found.err


def test_a_failure_elsewhere_is_told_with_its_host(told, monkeypatch):
    found = told("failed", {}, error="CUDA error: uncorrectable ECC error")
    assert f"run failed: {found.why}\n" in status.show([found])
    monkeypatch.setattr(status, "this_host", lambda: "login")
    assert f"run failed on {os.uname().nodename}: {found.why}\n" in status.show([found])


# -- clocks ------------------------------------------------------------------------------------------------------------

RUNNING = {"state": "running", "attempt": 1, "step": 30, "started_step": 10, "total_steps": 50, "started": 1000.0}


@pytest.mark.parametrize(
    ("status", "eta"),
    [
        ({"heartbeat": 1040.0}, 40.0),
        ({"heartbeat": 40.0}, None),  # by dates alone, of earlier versions of this code, nothing can be said then
        ({"heartbeat": 40.0, "elapsed_s": 40.0}, 40.0),
        ({"elapsed_s": 40.0}, 40.0),
        ({}, None),
        ({"heartbeat": 4600.0, "elapsed_s": 10.0}, 10.0),  # it was set forward
        ({"heartbeat": 1000.0, "elapsed_s": 0.0}, None),
    ],
)
def test_the_time_to_go_is_not_one_of_clocks_that_are_set(status, eta):
    assert observing._eta({**RUNNING, **status}) == eta


def test_the_record_of_a_run_whose_clock_is_set_back_has_times_in_order(tmp_path):
    tiny = ("sparsity=static", "model.hidden=[8]", "schedule.epochs=1", "tracking=none", "hardware.threads=1")
    assert run(*tiny, cwd=tmp_path, fault="clock:-7205:10").code == 0
    status = read_status(run_folder(tmp_path / "outputs"))
    assert status["heartbeat"] < status["started"] - 7000
    assert 0 < status["elapsed_s"] < 300
    assert observing._eta({**status, "step": status["total_steps"] // 2}) > 0


def test_accuracies_of_validation_and_test_stand_in_columns_of_their_own(tmp_path):
    unfinished = Record.create(tmp_path / "a", config_yaml="", run={"name": "unfinished"})
    finished = Record.create(tmp_path / "b", config_yaml="", run={"name": "finished"})
    for record, state, accuracy in ((unfinished, "preempted", 0.25), (finished, "running", 0.75)):
        record.log(step=5, epoch=1.0, attempt=1, values={"val/accuracy": accuracy})
        record.write_status(state, attempt=1, step=5)
    finished.write_summary({"val/accuracy": 0.5, "test/accuracy": 0.625})
    finished.write_status("done", attempt=1, step=5)
    observed = observe([unfinished.folder, finished.folder])
    assert [(run.val_accuracy, run.test_accuracy) for run in observed] == [(0.25, None), (0.5, 0.625)]
    header, _, *rows = [re.split(r" {2,}", line.strip()) for line in show(observed).splitlines()]
    columns = [header.index(name) for name in ("val accuracy", "test accuracy")]
    assert [[row[column] for column in columns] for row in rows[:2]] == [["0.2500", "-"], ["0.5000", "0.6250"]]
