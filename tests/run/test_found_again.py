"""Runs whose folders were renamed, copied or emptied, and runs that are nearly the same: what a start makes of them."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from dst.cli import main
from dst.config.schema import with_value
from dst.launcher import requeue
from dst.launcher.submit import superseded
from dst.records.groups import runs_of
from dst.records.read import read_attempts, read_run, read_status
from dst.records.same import called
from dst.run.cell import cells
from dst.run.look import Look, look
from dst.run.notes import _second_tree, notes
from dst.run.twins import twins
from dst.run.verified import frozen_config
from dst.training.loop import Training
from tests.closed import close
from tests.processes import REPOSITORY, run_folder

ANYHOW = (
    *("sparsity=static", "model.hidden=[8]", "schedule.epochs=1", "tracking=none", "tracking.progress=none"),
    "checkpoint.every_steps=4",
)
TINY = (*ANYHOW, "hardware.threads=1")
OTHER = (*TINY, "seed=1")


def start(*overrides, code=0):
    """Run a command in this process, which has to end with this code."""
    assert main([*overrides], conf=REPOSITORY / "conf") == code


def folders(root="outputs"):
    return sorted(path.name for path in Path(root, "default").iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tree with one finished run. Tests work on copies of it."""
    place = tmp_path_factory.mktemp("finished")
    here = Path.cwd()
    os.chdir(place)
    try:
        start(*TINY)
    finally:
        os.chdir(here)
    return place


@pytest.fixture
def run(finished, tmp_path, monkeypatch, capsys):
    """The folder of the finished run, below the current folder."""
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    return run_folder(Path("outputs"))


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that lets the next training stop after a step, by a signal."""
    take, steps = Training.train_step, []

    def train_step(self, inputs, labels, observer, *more):
        take(self, inputs, labels, observer, *more)
        if self.counters.step in steps:
            steps.clear()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "train_step", train_step)
    return steps.append


def test_a_finished_run_whose_folder_was_renamed_is_reported_and_told_once(run, capsys):
    about = read_run(run)
    place = run.rename(run.parent / "best\nstatic")
    start(*TINY)
    out, err = capsys.readouterr()
    assert f"run {about['id']} is done already, nothing was trained" in out
    assert f"run {about['id']} done: digits mlp static" in out
    assert err.count(f"note: run {about['id']} is in outputs/default/best\\nstatic, which was renamed") == 1
    assert folders() == ["best\nstatic"]
    assert called(place, about) == about["id"]
    start("-m", *TINY)
    assert "1 runs: 1 finished already, 0 to train" in capsys.readouterr().out


def test_a_new_attempt_lies_beside_one_that_was_renamed_and_copies_are_no_attempts(run, capsys):
    run_id = run.name
    place = run.rename(run.parent / "best")
    shutil.copytree(place, run.parent / f"{run_id}.20260101")
    shutil.copytree(place, run.parent / f"{run_id}.2")
    start(*TINY)
    own = f"outputs/default/{run_id}.2"  # of equal ones the one that has a name of the run's counts
    others = f"outputs/default/best, outputs/default/{run_id}.20260101"
    assert capsys.readouterr().err == f"note: run {run_id} is also in {others}: {own} counts\n"
    start(*TINY, "output.resume=never")
    newest = run.parent / f"{run_id}.3"
    assert (read_run(newest)["attempt_folder"], read_status(newest)["state"]) == (3, "done")
    assert called(newest, read_run(newest)) == newest.name
    by_attempt = {one.attempt: (one.folder.name, len(one.copies)) for one in runs_of(Path("outputs"))}
    assert by_attempt == {1: (f"{run_id}.2", 2), 3: (f"{run_id}.3", 0)}


def test_an_unfinished_run_that_was_renamed_goes_on_and_can_be_requeued(run, stop_at, capsys):
    stop_at(6)
    start(*OTHER, code=75)
    (unfinished,) = {path for path in run.parent.iterdir() if path.is_dir()} - {run}
    run_id = unfinished.name
    place = unfinished.rename(run.parent / "pilot")
    config = frozen_config(place)
    (cell,) = cells([config])
    assert (cell.found, cell.id) == (place, run_id)
    copy = run.parent / f"{run_id} copy"
    shutil.copytree(place, copy)
    (place.parent / f"{run_id}.20260101").symlink_to(copy.resolve())  # a link is no further copy
    frozen = {folder.resolve(): (None, config) for folder in (place, copy)}
    assert superseded(frozen) == {copy.resolve(): place.resolve()}
    assert requeue.main(["outputs", "--preempted", "--dry-run"]) == 1  # it was started by hand, so its command is told
    assert "preempted: outputs/default/pilot was not submitted as a job; its command" in capsys.readouterr().err
    start(*OTHER)
    assert "continuing from step 6" in capsys.readouterr().out
    assert read_status(place)["state"] == "done"


def test_a_run_without_its_checkpoints_says_that_it_begins_again(run, stop_at, capsys):
    stop_at(6)
    start(*OTHER, code=75)
    (unfinished,) = {path for path in run.parent.iterdir() if path.is_dir()} - {run}
    capsys.readouterr()
    shutil.rmtree(unfinished / "checkpoints")
    told = f"it had come to step 6, but there is no checkpoint of it in {unfinished / 'checkpoints'}"
    for command in ((), ("-m",)):
        start(*command, *OTHER, "output.resume=require", code=2)
        assert f"output.resume=require: run {unfinished.name}: {told}; restore one, or" in capsys.readouterr().err
    assert len(read_attempts(unfinished)) == 1
    stop_at(5)
    start(*OTHER, code=75)
    out, err = capsys.readouterr()
    assert f"warning: run {unfinished.name}: {told}; it is trained from step 0 again" in err
    assert "; training, " in out
    assert [attempt.get("restarted") for attempt in read_attempts(unfinished)] == [None, told]
    start(*OTHER, "output.resume=require")  # now there is one again
    out, err = capsys.readouterr()
    assert ("continuing from step 5" in out, "no checkpoint" in err) == (True, False)
    assert frozen_config(unfinished).output.resume == "require"  # a job that begins later keeps to it
    start(*OTHER, "output.resume=require")
    assert "is done already" in capsys.readouterr().out


def test_a_run_that_has_to_go_on_is_not_begun(run, capsys):
    start(*TINY, "seed=5", "output.resume=require", code=2)
    assert "output.resume=require: run " in (err := capsys.readouterr().err)
    assert f"is not below {Path('outputs').resolve()}" in err
    assert folders() == [run.name]
    start(*TINY, "output.resume=require")


def test_a_run_that_differs_only_in_how_it_is_computed_is_named(run, capsys):
    start(*ANYHOW, "hardware.threads=2")
    err = capsys.readouterr().err
    (new,) = set(folders()) - {run.name}
    assert err.splitlines() == [
        f"note: run {new} begins anew: run {run.name} in outputs/default/{run.name} is done, but differs in "
        "hardware.threads (1 there, 2 here), which can change bits; to report that one: hardware.threads=1"
    ]
    start("-m", *ANYHOW, "hardware.threads=1,2")
    assert "begins anew" not in capsys.readouterr().err


def test_twins_of_a_run_are_found_by_their_ids(run):
    config = frozen_config(run)
    (cell,) = cells([config])
    gpu = {"hardware.device": "cuda", "hardware.determinism": "fast", "hardware.precision": "bf16"}
    for others in ({"hardware.threads": 48}, {"hardware.device": "cuda"}, {"sparsity.compute": "packed"}, gpu):
        other = config
        for key, value in others.items():
            other = with_value(other, key, value)
        (twin,) = cells([other])
        assert list(twins(config, cell.identity, {twin.id})) == [(twin.id, others)]
        back = {key: getattr(config.hardware, key.removeprefix("hardware."), "masked") for key in others}
        assert list(twins(other, twin.identity, {cell.id})) == [(cell.id, back)]
    assert list(twins(config, cell.identity, {cell.id, "0" * 12})) == []


def test_a_second_tree_is_told_and_where_a_command_was_given_is_on_record(run, capsys, monkeypatch, tmp_path):
    about = read_run(run)
    assert Path(about["root"]) == Path(about["cwd"]) / "outputs"
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    start(*TINY)
    told = f"note: records go to {tmp_path}/below/outputs, which is new; to go on in another: output.root="
    assert f"{told}{tmp_path}/outputs" in capsys.readouterr().err
    start(*TINY)
    assert capsys.readouterr().err == ""


def test_a_cache_of_decoded_data_is_no_second_tree(tmp_path, monkeypatch):
    (tmp_path / "program" / "outputs" / ".cache").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert [*_second_tree(Path("outputs"), tmp_path / "program")] == []
    (tmp_path / "program" / "outputs" / "default").mkdir()
    assert len([*_second_tree(Path("outputs"), tmp_path / "program")]) == 1


def test_a_source_that_was_renamed_or_moved_is_found(run, capsys):
    given = ("sparsity=dense", *TINY[1:], f"model.weights={run}", "seed=3")
    moved = run.parent.parent / "parents" / "dense one"
    moved.parent.mkdir()
    start(*given, "schedule.max_steps=1")
    before = set(folders())
    for place in (run.parent / "renamed", moved):
        (run if run.exists() else run.parent / "renamed").rename(place)
        start(*given, "schedule.max_steps=1")
        out, err = capsys.readouterr()
        assert f"note: model.weights={run}: that run is in {place} now" in err
        assert "is done already" in out
    assert set(folders()) == before - {run.name}
    shutil.rmtree(moved)
    start(*given, code=2)
    assert f"model.weights={run}: there is no checkpoint" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_stops_no_start(run, capsys, monkeypatch):
    (closed := run.parent.parent / "private").mkdir()
    close(closed, monkeypatch)
    start(*TINY)
    out, err = capsys.readouterr()
    assert "is done already" in out
    assert err == "warning: outputs/private cannot be read (Permission denied): runs in it are not found\n"
    assert list(look(["outputs"]).closed) == [closed]
    assert superseded({run.resolve(): (None, frozen_config(run))}) == {}


def test_of_many_folders_that_cannot_be_read_a_few_are_named():
    """Such as those of another user, one for each run."""
    closed = {Path(f"outputs/{n}"): PermissionError(13, "Permission denied") for n in range(100)}
    told = list(notes([], Look({}, closed), Path()))
    assert len(told) == 9
    assert told[-1] == "warning: and 92 more folders cannot be read"
