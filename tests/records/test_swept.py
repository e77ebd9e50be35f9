"""Cells of a sweep have names of their own, in the order of the sweep, wherever they are shown."""

import pytest

from dst.launcher import frozen, status, sweep
from dst.launcher import submit as submitting
from dst.launcher.executors import Submission
from dst.launcher.job import Job
from dst.records.catalog import find_runs
from dst.records.read import read_run
from dst.records.swept import cell_name, recorded_name
from dst.tracking.described import description
from tests.processes import REPOSITORY

NAME = "digits mlp rigl grow=random density=0.1 correction=agent(alpha=0.5) seed=0"


@pytest.mark.parametrize(
    ("swept", "told"),
    [
        ({"sparsity": "rigl", "schedule.lr.peak": "1e-1"}, " schedule.lr.peak=0.1"),  # as the config has it
        ({"experiment": "itop/mini", "model.hidden": "[16]", "seed": "0"}, " experiment=itop/mini model.hidden=[16]"),
        ({"sparsity.density": "0.1", "schedule": "digits", "data": "digits"}, " schedule=digits"),
        ({"sparsity.grow.name": "random"}, ""),  # what is changed in a method is in the name already
        ({"correction": "agent", "model": "mlp_cifar10"}, " model=mlp_cifar10"),  # its network is called mlp, too
        ({"data.name": "digits", "model.hidden": "[16]"}, " model.hidden=[16]"),
        ({}, ""),
    ],
)
def test_a_name_is_given_what_it_does_not_tell_yet(swept, told):
    config = {"schedule.lr.peak": 0.1, "model.hidden": [16], "sparsity.density": 0.1, "seed": 0, "data.name": "digits"}
    config["sparsity.grow.name"] = "random"
    assert cell_name(NAME, swept, config, {"sparsity.grow.name": "random"}) == NAME + told


def test_a_label_tells_nothing_of_what_was_changed():
    changed, swept = {"sparsity.label": "mine", "sparsity.grow.name": "random"}, {"sparsity.grow.name": "random"}
    assert cell_name("digits mlp mine seed=0", swept, {}, changed) == "digits mlp mine seed=0 sparsity.grow.name=random"
    assert recorded_name({"config": {}}, "abc") == "abc"


def test_cells_are_told_apart_in_the_order_of_their_sweep(tmp_path, monkeypatch, capsys):
    """In status, in the queue, on wandb, also when they are submitted again; and in the report of the sweep."""
    sent = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitting, "send", lambda runs, *_, **__: sent.extend(runs) or Submission(["1"], tmp_path))
    command = ["hydra/launcher=local", "sparsity=static", "schedule.lr.peak=0.3,0.1,0.2", "schedule=digits,mnist"]
    assert sweep.run_cells(REPOSITORY / "conf", command, multirun=True) == 0
    wanted = [f"schedule.lr.peak={peak} schedule={name}" for peak in (0.3, 0.1, 0.2) for name in ("digits", "mnist")]
    capsys.readouterr()
    assert status.main(["outputs"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.partition("seed=0 ")[2].split()[:2] for row in rows if "seed=0" in row] == [w.split() for w in wanted]
    titles = [Job((run,)).title for run, _ in sent]
    assert [title.partition(",seed=0,")[2] for title in titles] == [words.replace(" ", ",") for words in wanted]
    for (run, _), words in zip(sent, wanted, strict=True):
        folder = tmp_path / "outputs" / "default" / run.folder.rpartition("/")[2]
        assert description(folder)["name"].endswith(words)
        assert frozen.read_frozen(folder)[0].name == run.name
    assert all("swept" in read_run(folder) for folder in find_runs(tmp_path))
