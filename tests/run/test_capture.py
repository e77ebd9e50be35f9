"""What a run says of its captures, and has on record; tapes stand in for graphs."""

from pathlib import Path

import pytest

from dst.cli import main
from dst.records.read import read_attempts, read_status
from dst.run import build
from dst.training.replays import Capture
from tests.processes import REPOSITORY, run_folder
from tests.training.tape import Tapes

SMALL = ("sparsity=static", "model.hidden=[8]", "schedule.epochs=1", "tracking=none", "hardware.threads=1")


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command with such a capture, and returns exit code, folder and output."""
    monkeypatch.chdir(tmp_path)

    def started(capture):
        monkeypatch.setattr(build, "_capture", lambda *_: capture)
        code = main([*SMALL, "tracking.progress=none"], conf=REPOSITORY / "conf")
        told = capsys.readouterr()
        return code, run_folder(Path("outputs")), told.out + told.err

    return started


def test_replayed_steps_are_told_and_on_record(start):
    code, folder, output = start(Capture(Tapes()))
    assert code == 0
    assert "captured the step in" in output
    (ended,) = [attempt for attempt in read_attempts(folder) if attempt.get("state") == "done"]
    assert 0 < ended["replayed_steps"] < read_status(folder)["step"]


def test_what_stands_in_the_way_ends_a_run_that_asked_for_captures_with_the_key_and_the_remedy(start):
    code, folder, output = start(Capture(None, "packed layers get new tensors at every update", is_required=True))
    assert code == 1
    told = "hardware.capture=always: what was asked for cannot be captured: packed layers get new tensors"
    assert told in output
    assert "use hardware.capture=auto" in output
    assert "Traceback" not in output
    assert read_status(folder)["state"] == "failed"


def test_what_stands_in_the_way_is_told_once_otherwise(start):
    code, folder, output = start(Capture(None, "a step waits for other processes"))
    assert code == 0
    assert output.count("not captured, so that the host launches every kernel: a step waits") == 1
    assert not any("replayed_steps" in attempt for attempt in read_attempts(folder))
