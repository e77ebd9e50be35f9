"""Runs of an older schema: their records are read as ever, their own code carries them on, this one begins anew."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from analysis.figures import FIGURES
from analysis.results import accuracy_figures
from analysis.tables import accuracy_table
from dst.config.identity import SCHEMA_VERSION
from dst.config.schema import ConfigError
from dst.launcher import requeue, status
from dst.launcher import sync as syncing
from dst.records.catalog import catalog, find_runs
from dst.records.provenance import code_version
from dst.records.read import read_attempts, read_launch, read_run, read_status
from dst.records.store import Record
from dst.run.verified import frozen_config
from dst.tracking.described import description
from tests.old_records import FAILED, GROUP, METHODS, PREEMPTED, WITH_CHECKPOINT, unpack
from tests.processes import REPOSITORY, run, run_folder, wait_until

pytestmark = pytest.mark.slow

SHORT = ("model.hidden=[8]", "schedule.epochs=1", "schedule.update_every=5", "tracking=none", "checkpoint.keep=1")
IN_GROUP = (*SHORT, f"output.group={GROUP}")


def lines(name, runs):
    """Return the lines of a figure of one panel."""
    (ax,) = FIGURES[name](runs).axes
    return ax.lines


def containers(name, runs):
    """Return the points with bars of a figure of one panel."""
    (ax,) = FIGURES[name](runs).axes
    return ax.containers


@pytest.fixture
def old(tmp_path):
    """The folder of the group of old runs."""
    return unpack(tmp_path / "outputs")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The output root of old runs, and of new ones that the same commands trained."""
    here = tmp_path_factory.mktemp("mixed")
    unpack(here / "outputs")
    trained = run("-m", *IN_GROUP, "sparsity=static,rigl_itop,dst", "seed=0,1", cwd=here)
    assert trained.code == 0, trained.output
    assert "6 cells are 4 distinct runs: sparsity=rigl_itop, sparsity=dst\n" in trained.output
    assert run("-m", *IN_GROUP, "sparsity=rigl_itop", "sparsity.grow.name=random", "seed=0,1", cwd=here).code == 0
    assert run(*IN_GROUP, "sparsity=dst", "seed=3", cwd=here).code == 0
    return here / "outputs"


# -- reading -----------------------------------------------------------------------------------------------------------


def test_old_records_are_read_as_ever(old, capsys):
    frame = catalog(old).set_index("id")
    assert frame["method"].to_dict() == METHODS
    assert set(frame["schema"]) == {1}
    assert frame["state"].drop([FAILED, PREEMPTED]).unique().tolist() == ["done"]
    assert frame.loc[[FAILED, PREEMPTED], "state"].tolist() == ["failed", "preempted"]
    done = catalog(old).query("state == 'done'")
    assert accuracy_table(done)[["method", "n"]].values.tolist() == [
        [method, "2"] for method in ("dst", "rigl_itop", "rigl_itop grow=random", "static")
    ]
    assert len(accuracy_figures(catalog(old))) == 6  # two more compositions, of the runs that are not done
    assert len(containers("accuracy_flops", done)) == 4
    assert len(lines("rs", catalog(old))) == 5  # of six compositions: the run that failed has logged nothing

    assert status.main([str(old)]) == 0
    told = capsys.readouterr().out
    assert "digits mlp rigl_itop grow=random density=0.1 seed=1" in told
    assert told.endswith("10 runs: 8 done, 1 failed, 1 preempted\n")
    assert syncing.main([str(old), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("would send") == 11  # and their number
    sent = description(old / "c06553390ec0")
    assert sent["tags"] == ["mlp", "digits", "rigl_itop grow=random"]
    assert sent["name"] == "digits mlp rigl_itop grow=random density=0.1 seed=0"


def test_old_runs_and_new_ones_are_rows_of_one_table(mixed, capsys):
    frame = catalog(mixed)
    runs = frame.query("state == 'done'")
    table = accuracy_table(runs)
    assert table[["method", "schema", "n"]].values.tolist() == [
        ["dst", "1", "2"],
        ["dst, rigl_itop", "2", "3"],
        ["rigl_itop", "1", "2"],
        ["rigl_itop grow=random", "1", "2"],
        ["rigl_itop grow=random", "2", "2"],
        ["static", "1", "2"],
        ["static", "2", "2/3"],  # a later command adds a seed to its sweep, of another method
    ]
    assert "sparsity.label" not in table
    assert [*runs.groupby("schema").size()] == [8, 7]
    figures = accuracy_figures(runs)
    pd.testing.assert_series_equal(  # what nothing but the composition determines
        figures.query("schema == 1 and method != 'dst'")["flops_train_ratio"],
        figures.query("schema == 2")["flops_train_ratio"],
        check_index=False,
    )
    assert len(containers("accuracy_flops", runs)) == 7
    assert len(lines("rs", runs)) == 7
    assert status.main([str(mixed)]) == 0
    assert "17 runs: 15 done, 1 failed, 1 preempted" in capsys.readouterr().out
    assert syncing.main([str(mixed), "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("17 would send\n")


def test_what_was_changed_is_on_record_and_the_same_by_a_sweep_and_by_a_single_command(mixed):
    (about,) = [
        read_run(folder)
        for folder in find_runs(mixed)
        if (about := read_run(folder))["schema"] == SCHEMA_VERSION
        and about["name"] == "digits mlp rigl_itop grow=random density=0.1 seed=1"
    ]
    assert about["changed"] == {"sparsity.grow.name": "random"}
    assert about["config"]["sparsity.label"] == "rigl_itop"
    assert "sparsity.label" not in about["identity"]
    single = (*IN_GROUP, "sparsity=rigl_itop", "sparsity.grow.name=random", "seed=1")
    told = run(*single, cwd=mixed.parent)
    assert f"run {about['id']} is done already" in told.output
    assert "digits mlp rigl_itop grow=random" in told.output


def test_a_label_that_comes_too_late_is_said_to_name_nothing(mixed):
    """By a single command and in a sweep, whose report shows what is on record."""
    again = (*IN_GROUP, "sparsity=rigl_itop", "sparsity.grow.name=random", "seed=1", "sparsity.label=mine")
    for command in (again, ("-m", *again)):
        told = run(*command, cwd=mixed.parent)
        assert "keeps its name 'digits mlp rigl_itop grow=random density=0.1 seed=1'" in told.output
        assert "digits mlp mine" not in told.output


def test_a_figure_has_one_line_for_two_names_of_one_composition_and_another_for_what_was_changed_in_it(mixed):
    runs = catalog(mixed).query(f"schema == {SCHEMA_VERSION}")
    drawn = lines("rs", runs)
    assert len(drawn) == len(accuracy_figures(runs)) == 3
    looks = [(line.get_color(), line.get_linestyle()) for line in drawn]
    assert len({colour for colour, _ in looks}) == 2
    assert len(set(looks)) == 3


def test_states_of_a_catalog_are_plain_words(mixed):
    assert {type(state) for state in catalog(mixed)["state"]} == {str}


# -- going on ----------------------------------------------------------------------------------------------------------


def test_without_its_own_code_an_old_run_does_not_go_on_and_the_schema_is_why(old, capsys):
    job = Record.open(old / PREEMPTED)
    job.write_launch({**read_launch(job.folder), "host": os.uname().nodename})  # where it can be seen that it has ended
    assert requeue.main([str(old), "--preempted"]) == 2
    told = capsys.readouterr().err.splitlines()
    for name in (FAILED, PREEMPTED):
        (line,) = [line for line in told if f"{name} is left alone" in line]
        assert f"it has schema 1, and this code has schema {SCHEMA_VERSION}" in line
        assert "8c819a46891f90d9 with which it was submitted is in no .code" in line
        (old / name / "launch.json").unlink()
    assert requeue.main([str(old), "--preempted"]) == 2
    assert capsys.readouterr().err.count("it was not submitted as a job") == 2
    with pytest.raises(ConfigError, match=f"run {FAILED}: it has schema 1"):
        frozen_config(old / FAILED)
    assert read_status(old / FAILED)["state"] == "failed"


def test_old_code_that_somebody_changed_submits_nothing(old, capsys):
    code = old.parent / ".code" / "8c819a46891f90d9"
    shutil.copytree(REPOSITORY / "dst", code / "dst", ignore=shutil.ignore_patterns("__pycache__"))
    assert requeue.main([str(old)]) == 2
    assert f"the code in {code} is not what was submitted" in capsys.readouterr().err


def test_a_run_can_start_from_an_old_one(old, tmp_path):
    source = old / WITH_CHECKPOINT
    given = (*SHORT, f"model.weights={source}", "output.group=new")
    masks = ("sparsity=static", "sparsity.density=null", "sparsity.distribution.name=none", "sparsity.init.name=file")
    begun = run(*given, *masks, f"sparsity.init.path={source}", cwd=tmp_path)
    assert begun.code == 0, begun.output
    about = read_run(run_folder(tmp_path / "outputs" / "new"))
    assert about["sources"].keys() == {"model.weights", "sparsity.init.path"}
    # Where the source lies is on record, and no identity, by a sweep as by a single command.
    shutil.copytree(source, tmp_path / "elsewhere")
    moved = (*SHORT, f"model.weights={tmp_path}/elsewhere", f"sparsity.init.path={tmp_path}/elsewhere", *masks)
    for multirun in ([], ["-m"]):
        again = run(*multirun, *moved, "output.group=new", cwd=tmp_path)
        assert again.code == 0
        assert find_runs(tmp_path / "outputs" / "new") == [tmp_path / "outputs" / "new" / about["id"]]


def check_out_older(place: Path) -> None:
    """Put a version of the code into a folder that has schema 1, and a module of another name."""
    for name in ("dst", "conf"):
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run.py", place)
    (place / "dst" / "config" / "identity.py").rename(place / "dst" / "config" / "former.py")
    for path in (place / "dst").rglob("*.py"):
        text = path.read_text().replace("dst.config.identity", "dst.config.former")
        path.write_text(text.replace(f"SCHEMA_VERSION = {SCHEMA_VERSION}", "SCHEMA_VERSION = 1"))


def test_a_sweep_of_an_older_version_finishes_and_is_requeued_by_its_own_code(tmp_path, monkeypatch, capfd):
    """Three queued runs, of which the last one fails; meanwhile today's code takes the place of the older one."""
    monkeypatch.chdir(tmp_path)
    (code := tmp_path / "code").mkdir()
    check_out_older(code)
    options = (*IN_GROUP, "sparsity=static", "hardware.threads=1", "seed=0,1,2")
    sweep = [str(code / "run.py"), "-m", "hydra/launcher=local", "hydra.launcher.max_parallel=1", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, *sweep], env=environment, check=True)
    shutil.rmtree(code)
    shutil.copytree(REPOSITORY / "dst", code / "dst")
    swapped = time.time()
    folders = {read_run(folder)["config"]["seed"]: folder for folder in find_runs(Path("outputs"))}
    (folders[2] / "metrics.jsonl").mkdir()

    def states() -> list[str]:
        return [read_status(folders[seed])["state"] for seed in range(3)]

    wait_until(lambda: states() == ["done", "done", "failed"], "the sweep does not finish")
    assert read_attempts(folders[1])[0]["started"] > swapped
    own = Path(read_launch(folders[0])["code"])
    assert not (own / "dst" / "config" / "identity.py").exists()
    for seed in (0, 1):
        about = read_run(folders[seed])
        assert (about["schema"], about["code"]["digest"]) == (1, own.name)
        assert own.name != code_version()["digest"]
    capfd.readouterr()
    assert status.main(["outputs"]) == 0
    assert capfd.readouterr().out.endswith("3 runs: 2 done, 1 failed\n")
    assert accuracy_table(catalog(Path("outputs")))["n"].tolist() == ["2/3"]

    # What failed goes on by its own code, which this one asks to submit it.
    (folders[2] / "metrics.jsonl").rmdir()
    assert requeue.main(["outputs", "--dry-run"]) == 0
    assert f"{folders[2]}\n1 runs would be submitted" in capfd.readouterr().out
    assert requeue.main(["outputs"]) == 0
    assert "1 runs submitted as job" in capfd.readouterr().out
    wait_until(lambda: states()[2] == "done", "the run that was requeued does not finish")
    assert (read_run(folders[2])["schema"], read_attempts(folders[2])[-1]["attempt"]) == (1, 2)
    assert Path(read_launch(folders[2])["code"]) == own

    # The same command is that of new runs now.
    assert "to train\n" in run("-m", *options[:-1], "seed=0", cwd=tmp_path).output
    table = accuracy_table(catalog(Path("outputs")))
    assert table[["schema", "n"]].values.tolist() == [["1", "3"], ["2", "1"]]  # a command of its own, of one seed
