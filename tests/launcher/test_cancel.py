"""Cancelling: whom it stops, and what is on record of those that waited."""

import socket
import subprocess

import pytest

from dst.launcher import cancel
from dst.launcher import observe as observing
from dst.launcher.slurm import SlurmJob
from dst.records.lock import locked
from dst.records.read import read_status
from dst.records.store import Record


@pytest.fixture
def cancelled(tmp_path, monkeypatch):
    """Return a function: cancel a run in a state whose job waits, shared by so many; what was asked of SLURM."""

    def act(state, runs):
        record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
        record.write_status(state, attempt=1, step=5, error="time limit after step 5; to be requeued as job 7_1")
        record.write_launch({"cluster": "slurm", "job": "7_1", "submitted": 0, "runs": runs})
        asked = []
        monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {"7_1": SlurmJob("PENDING")})
        monkeypatch.setattr(observing.slurm, "cancel", asked.extend)
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
    monkeypatch.setattr(observing.slurm, "cancel", lambda ids: "Access/permission denied")
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
