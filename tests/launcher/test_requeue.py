"""What ``requeue`` does not submit by itself: it says why, and what to do."""

import os
import shlex
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from dst.config.launcher import LauncherSettings
from dst.config.schema import complete
from dst.launcher import observe as observing
from dst.launcher import requeue, status
from dst.launcher import submit as submitting
from dst.launcher.frozen import freeze, frozen_code
from dst.launcher.slurm import SlurmJob
from dst.records.read import read_json
from dst.records.store import Record
from dst.run.cell import cells
from tests.composed import compose_cells
from tests.processes import REPOSITORY


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """An output root with one run, as it is when its command has frozen it; its job may be put back twice."""
    root = tmp_path_factory.mktemp("frozen") / "the first root"
    root.mkdir()
    before = os.getcwd()
    os.chdir(root)
    try:
        overrides = ["model.hidden=[8]", "tracking=none", "hardware.slurm.max_requeues=2"]
        ((_, config),) = compose_cells(REPOSITORY / "conf", overrides, multirun=False)
        freeze(cells([complete(config)])[0], shlex.join(["python", "run.py", "output.group=a b"]))
        frozen_code(root / "outputs")
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def folder(frozen, tmp_path, monkeypatch):
    """A copy of that run; the current folder is that of its command."""
    root = tmp_path / "a b"
    shutil.copytree(frozen, root)
    monkeypatch.chdir(root)
    (found,) = Path("outputs/default").iterdir()
    about = read_json(found / "run.json")
    Record.open(found).write_run({**about, "cwd": str(root)})
    return found


@pytest.fixture
def submitted(monkeypatch):
    """The folders of what would have been submitted."""
    found = []

    def take(runs, *_, **__):
        found.extend(Path(run.folder).name for run, _ in runs)
        return submitting.Submission(["8"], Path("logs"))

    monkeypatch.setattr(submitting, "send", take)
    return found


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_run_that_was_started_by_hand_is_left_with_the_command_that_goes_on_with_it(folder, submitted, capsys, state):
    """Under the word that ``status`` has for it. Nothing was lost, it used to say, with exit code 0."""
    Record.open(folder).write_status(state, attempt=1, step=5, pid=2**22 + 1)
    assert status.main(["outputs"]) == 0
    word = "lost" if state == "running" else "failed"
    assert f"1 runs: 1 {word}" in capsys.readouterr().out
    assert requeue.main(["outputs"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    first, command = told.err.splitlines()
    assert first == f"{word}: {folder} was not submitted as a job; its command goes on with it:"
    pasted = f"python() {{ pwd; printf '%s\\n' \"$@\"; }}; {command}"
    shown = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [str(Path.cwd()), "run.py", "output.group=a b"]
    assert requeue.main(["outputs", "--dry-run"]) == 1
    assert capsys.readouterr().out == "0 runs would be submitted\n"
    assert submitted == []


def begun(folder, state, jobs, cause):
    """Record that a run was begun by these jobs, one attempt after another, and how the last one ended."""
    record = Record.open(folder)
    record.write_status(state, attempt=len(jobs), step=5, error="as it ended")
    settings = asdict(LauncherSettings("slurm"))
    code = str(next(Path("outputs/.code").iterdir()).resolve())
    record.write_launch({"cluster": "slurm", "job": "7", "settings": settings, "cwd": os.getcwd(), "code": code})
    for attempt, job in enumerate(jobs, start=1):
        record.log_attempt(attempt, job=job, **({"cause": cause} if cause else {}))


@pytest.mark.parametrize(
    ("state", "jobs", "cause", "is_used_up"),
    [
        ("preempted", "777", "time limit", True),
        ("preempted", "777", "preemption", True),
        ("preempted", "777", "time limit or preemption", True),
        ("running", "777", None, True),  # lost: killed after the second requeue
        ("preempted", "777", "stop request (SIGTERM)", False),  # by dst.launcher.cancel, say
        ("preempted", "5577", "time limit", False),  # by other jobs: this one may go on
        ("running", "77", None, False),
        ("failed", "777", None, False),  # it may have been mended
    ],
)
def test_who_was_requeued_as_often_as_allowed_is_listed_and_starts_by_force(
    folder, submitted, monkeypatch, capsys, state, jobs, cause, is_used_up
):
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {"7": SlurmJob("TIMEOUT")})
    begun(folder, state, jobs, cause)
    wanted = [folder.name]
    if is_used_up:
        word = "lost" if state == "running" else state
        for options in ([], ["--preempted"]):
            assert requeue.main(["outputs", *options]) == 1
            told = "its job was requeued 2 times (hardware.slurm.max_requeues=2); --force submits it"
            assert capsys.readouterr().err == f"{word}: {folder} is left alone: {told}\n"
        assert submitted == []
        assert requeue.main(["outputs", "--force"]) == 0
    else:
        assert requeue.main(["outputs"]) == 0
        assert submitted == ([] if state == "preempted" else wanted)
        if state == "preempted":
            assert requeue.main(["outputs", "--force"]) == 0  # as used up, not as stopped
            assert submitted == []
            assert requeue.main(["outputs", "--preempted"]) == 0
    assert submitted == wanted
