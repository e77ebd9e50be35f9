"""Cancelling: whom it stops, and what is on record of those that waited."""

import pytest

from dst.launcher import cancel, seen
from dst.launcher.slurm import SlurmJob
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
        monkeypatch.setattr(seen.slurm, "jobs", lambda ids: {"7_1": SlurmJob("PENDING")})
        monkeypatch.setattr(seen.slurm, "cancel", asked.extend)
        assert cancel.main([str(tmp_path)]) == 0
        assert asked == ["7_1"]
        return read_status(record.folder)

    return act


@pytest.mark.parametrize("state", ["queued", "preempted"])
def test_a_run_that_waits_for_its_job_is_on_record_as_cancelled(cancelled, state, capsys):
    status = cancelled(state, 1)
    assert status["state"] == "preempted"
    assert status["error"].startswith("cancelled while it was queued")
    assert (status["attempt"], status["step"]) == (1, 5)
    assert capsys.readouterr().out == "cancelled 1 jobs of 1 runs\n"


def test_neighbours_in_a_job_are_told(cancelled, capsys):
    cancelled("queued", 4)
    assert "with them stop up to 3 runs elsewhere, which share their jobs" in capsys.readouterr().out
