"""Cancelling: whom it stops, and what is on record of those that waited."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from dst.launcher import cancel, local, node
from dst.launcher import observe as observing
from dst.launcher.observe import observe
from dst.launcher.slurm import SlurmJob
from dst.records.lock import holder, locked
from dst.records.read import read_launch, read_status
from dst.records.store import Record
from dst.run.environment import JOB
from tests.processes import REPOSITORY


def waiting(folder, cluster, job, **launch):
    """Return the record of a run that waits for a job."""
    record = Record.create(folder, config_yaml="", run={"name": "a run"})
    record.write_status("queued", attempt=0, step=0)
    record.write_launch({"cluster": cluster, "job": job, "submitted": 0, "runs": 1, **launch})
    return record


@pytest.fixture
def cancelled(tmp_path, monkeypatch):
    """Return a function: cancel a run in a state whose job waits, shared by so many; what was asked of SLURM."""

    def act(state, runs):
        record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
        record.write_status(state, attempt=1, step=5, error="time limit after step 5; to be requeued as job 7_1")
        record.write_launch({"cluster": "slurm", "job": "7_1", "submitted": 0, "runs": runs})
        asked = []
        monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {"7_1": SlurmJob("PENDING")})
        monkeypatch.setattr(observing.slurm, "cancel", lambda ids: asked.extend(ids) or {})
        assert cancel.main([str(tmp_path)]) == 0
        assert asked == ["7_1"]
        return read_status(record.folder)

    return act


@pytest.mark.parametrize("state", ["queued", "preempted", "running"])  # the last: killed, and requeued by SLURM
def test_a_run_that_waits_for_its_job_is_on_record_as_cancelled(cancelled, state, capsys):
    status = cancelled(state, 1)
    assert status["state"] == "cancelled"
    assert status["error"].startswith("cancelled while it was queued")
    assert (status["attempt"], status["step"]) == (1, 5)
    assert capsys.readouterr().out == "cancelled 1 jobs of 1 runs\n"


def test_neighbours_in_a_job_are_told(cancelled, capsys):
    cancelled("queued", 4)
    assert "with them stop up to 3 runs elsewhere, which share their jobs" in capsys.readouterr().out


def test_what_could_not_be_cancelled_is_not_on_record_as_such(cancelled, monkeypatch, tmp_path, capsys):
    record = Record.create(tmp_path / "other", config_yaml="", run={"name": "another user's"})
    record.write_status("queued", attempt=0, step=0)
    record.write_launch({"cluster": "slurm", "job": "8", "submitted": 0, "runs": 1})
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {"8": SlurmJob("PENDING")})
    monkeypatch.setattr(observing.slurm, "cancel", lambda ids: dict.fromkeys(ids, "Access/permission denied"))
    assert cancel.main([str(record.folder)]) == 1
    assert read_status(record.folder)["state"] == "queued"
    told = capsys.readouterr()
    assert (told.out, told.err) == ("cancelled 0 jobs of 0 runs\n", "error: Access/permission denied\n")


def test_nobody_is_signalled_who_only_has_the_number_of_a_job_that_has_ended(tmp_path, capsys):
    """The run is carried out by hand; its last job was a process of this machine."""
    stranger = subprocess.Popen(["sleep", "60"])
    record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
    record.write_status("running", attempt=1, step=5)
    launch = {"cluster": "local", "job": str(stranger.pid), "host": socket.gethostname(), "process_started": "1"}
    record.write_launch(launch)
    with locked(record.folder):
        assert cancel.main([str(tmp_path)]) == 0
    assert f"left alone, since no job carries it out: {record.folder}" in capsys.readouterr().out
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


# -- whom it signals ---------------------------------------------------------------------------------------------------


def process_of_this_machine(number):
    return {"host": socket.gethostname(), "process_started": observing.process_started(number)}


@pytest.mark.parametrize("job", ["-1", "0", "1", "own", "+5", "5 ", "1_0", "4294967295", 5, True, None])
def test_no_process_is_signalled_but_that_of_the_job(tmp_path, monkeypatch, job):
    """-1 are all processes of the user, 0 those of this terminal, 1 the machine's first; one is this very command."""
    signalled = []
    monkeypatch.setattr(os, "kill", lambda *asked: signalled.append(asked) if asked[1] else None)
    job = str(os.getpid()) if job == "own" else job
    started = os.getpid() if job == str(os.getpid()) else 1
    record = waiting(tmp_path / "run", "local", job, **process_of_this_machine(started))
    cancel.main([str(tmp_path)])
    assert signalled == []
    assert read_status(record.folder)["state"] == "queued"


@pytest.mark.parametrize("job", ["--user=me", "-u", "0", "7_", "7_1 8", "7,8", "all", 7, None])
def test_slurm_is_given_no_word_but_the_id_of_a_job(tmp_path, monkeypatch, job):
    """``scancel --user=me`` would cancel everything."""
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {job: SlurmJob("PENDING")})
    monkeypatch.setattr(observing.slurm, "cancel", lambda ids: pytest.fail(f"scancel {list(ids)}"))
    waiting(tmp_path / "run", "slurm", job)
    cancel.main([str(tmp_path)])


# -- one run of a sweep on this machine --------------------------------------------------------------------------------

CONTROLLER = """
import signal, subprocess, sys
run = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
print(run.wait(), flush=True)
signal.pause()
"""
NODE = """
import signal, sys, time
from pathlib import Path
from dst.records.lock import holder, locked
with locked(Path(sys.argv[1]), "job"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("holds", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def sweep(tmp_path):
    """A job of this machine that carries out the first of two runs, while the second one waits."""
    folders = [tmp_path / "group" / name for name in ("first", "second")]
    for folder in folders:
        Record.create(folder, config_yaml="", run={"name": "a run"}).write_status("queued", attempt=0, step=0)
    command = [sys.executable, "-c", CONTROLLER, NODE, str(folders[0])]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True, start_new_session=True)
    assert job.stdout.readline() == "holds\n"
    for folder in folders:
        at = {"job": str(job.pid), "runs": 2, **process_of_this_machine(job.pid)}
        Record.open(folder).write_launch({"cluster": "local", "submitted": 0, **at})
    Record.open(folders[0]).write_status("running", attempt=1, step=5)
    yield job, *folders
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()


def test_of_two_runs_of_a_job_only_the_one_that_was_named_stops(sweep, capsys):
    job, first, second = sweep
    assert cancel.main([str(second), "--dry-run"]) == 0
    assert read_status(second)["state"] == "queued"
    assert cancel.main([str(second)]) == 0
    assert (read_status(second)["state"], read_launch(second)["job"]) == ("cancelled", None)  # may be submitted again
    assert observe([first])[0].state == "running"
    assert cancel.main([str(first)]) == 0
    assert job.stdout.readline() == "75\n"
    assert job.poll() is None  # other runs may wait for their turn
    told = capsys.readouterr().out
    assert told.count("other runs of their jobs, if any, go on") == 3
    assert told.count("cancelled 1 jobs of 1 runs") == 2


def test_a_run_that_begins_just_while_it_is_cancelled_is_stopped(sweep, monkeypatch):
    job, first, _ = sweep
    monkeypatch.setattr(local, "mark_cancelled", lambda _: True)  # nobody held its lock yet
    assert cancel.main([str(first)]) == 0
    assert job.stdout.readline() == "75\n"
    assert read_launch(first)["job"] == str(job.pid)


def test_all_runs_of_a_job_stop_with_their_job(sweep, capsys):
    job, first, second = sweep
    assert cancel.main([str(first.parent)]) == 0
    assert capsys.readouterr().out == "cancelled 1 jobs of 2 runs\n"
    assert job.wait() == -signal.SIGTERM
    assert read_status(second)["state"] == "cancelled"


def test_a_run_that_its_job_has_not_started_is_not_signalled(sweep, monkeypatch, capsys):
    """It is run by hand, here or elsewhere; what is on record of its job is old, and that goes on with others."""
    job, first, second = sweep
    with locked(second):
        assert cancel.main([str(second)]) == 1
    assert f"which job {job.pid} has not started: stop it there" in capsys.readouterr().err
    here = holder(first)
    monkeypatch.setattr(local, "holder", lambda _: replace(here, host="elsewhere"))
    assert cancel.main([str(first)]) == 1
    assert f"{first} is carried out by host elsewhere, process {here.pid}" in capsys.readouterr().err
    monkeypatch.setattr(local, "process_lives", lambda _: False)  # its number belongs to another process now
    monkeypatch.setattr(local, "holder", lambda _: here)
    assert cancel.main([str(first)]) == 1
    assert job.poll() is None
    assert holder(first) == here


def test_a_job_does_not_begin_a_run_that_was_cancelled_or_given_to_another(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(JOB, "7")
    record = waiting(tmp_path / "run", "local", None)
    record.write_status("cancelled", attempt=0, step=0)
    assert node.main([str(record.folder), "--digest", ""]) == 75
    record.write_status("queued", attempt=0, step=0)
    record.write_launch({"cluster": "local", "job": "8"})
    assert node.main([str(record.folder), "--digest", ""]) == 75
    assert capsys.readouterr().err == "run run was cancelled\nrun run was given to job 8\n"
    assert read_status(record.folder)["state"] == "queued"
