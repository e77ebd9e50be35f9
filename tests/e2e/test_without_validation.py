"""Training on all images: nothing is validated, and nothing shows a figure that does not exist."""

from dataclasses import fields

import pytest

from analysis.figures import FIGURES
from analysis.tables import accuracy_table
from dst.data.cache import load
from dst.launcher.status import main as status
from dst.records.catalog import catalog
from dst.records.read import read_metrics, read_summary
from dst.registry import find
from dst.run.build import make_loaders
from dst.training.stopping import StopFlag
from tests.composed import compose_cells
from tests.data.pictures import write_folder
from tests.e2e.test_command_line import TINY
from tests.e2e.test_forecast import rows
from tests.processes import REPOSITORY, run, run_folder, run_together
from tests.training import ranks

ALL = "data.val_fraction=0"
SAMPLES = 1438  # 1797 digits, less 359 for the test
SHOWN = tuple(word.replace("progress=none", "progress=plain") for word in TINY)
COMPUTED = ("time/seconds", "time/samples_per_second")


def validated(folder):
    """Return all names of validation figures in a record."""
    rows = [*read_metrics(folder), read_summary(folder)]
    return [name for row in rows for name in row if "val/" in name]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    result = run(ALL, *SHOWN, cwd=folder)
    assert result.code == 0, result.output
    return folder, run_folder(folder / "outputs"), result.output


def test_training_sees_every_image_once_an_epoch(tmp_path):
    ((_, config),) = compose_cells(REPOSITORY / "conf", [ALL], multirun=False)
    reader = find("data", "digits").load()
    dataset = load("digits", reader, root="", cache=str(tmp_path), download=False, size=None)
    loaders = make_loaders(config, dataset, "cpu")
    assert loaders.val is None
    labels = [label for _, batch in loaders.train.epoch(0) for label in batch.tolist()]
    assert len(labels) == loaders.train.samples == SAMPLES
    assert sorted(labels) == sorted(dataset.train.labels.tolist())


def test_no_figure_of_validation_is_recorded_or_shown(finished, capsys):
    _, folder, output = finished
    assert validated(folder) == []
    assert read_summary(folder)["selected_step"] == 46  # 2 epochs of 23
    lines = [line.split() for line in output.splitlines() if line.startswith("  step ")]
    assert [line[1:2] + line[4:9] for line in lines] == [
        [f"{step}/46", "val", "accuracy", "-", "density", "0.0997"] for step in (23, 46)
    ]
    assert status([str(folder.parent)]) == 0
    assert f"{read_summary(folder)['test/accuracy']:.4f}" in capsys.readouterr().out


def test_status_of_an_unfinished_run_shows_a_dash(tmp_path, capsys):
    assert run(ALL, *TINY, cwd=tmp_path, fault="signal:SIGTERM:30").code == 75
    assert status([str(tmp_path / "outputs")]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  digits mlp")]
    assert line.split()[-6:] == ["1", "30/46", "-", "-", "-", "-"]  # attempt, step, to go, two accuracies, job


def test_tables_and_plots_go_without(finished):
    runs = catalog(finished[1].parent)
    assert list(accuracy_table(runs)["n"]) == ["1"]
    (ax,) = FIGURES["accuracy_flops"](runs).axes
    assert len(ax.containers) == 1
    assert FIGURES["curves"](runs) is None
    assert FIGURES["curves"].needs == "runs with a validation split"


def test_the_forecast_is_exact_without_a_validation(finished, tmp_path):
    _, folder, _ = finished
    ((_, cells),) = rows(run(ALL, *SHOWN, "--forecast", cwd=tmp_path).output).items()
    summary = read_summary(folder)
    assert (cells[2], cells[4]) == ("46", f"{summary['flops/train']:.3e}")
    assert cells[5] == f"{summary['flops/train_ratio']:.3f}"


def test_two_processes_record_what_one_does(finished, tmp_path):
    results = run_together(ALL, *SHOWN, "hardware.processes=2", cwd=tmp_path)
    assert [result.code for result in results] == [0, 0], results
    folder = run_folder(tmp_path / "outputs")
    assert validated(folder) == []
    assert read_summary(folder).keys() == read_summary(finished[1]).keys()
    assert [row["step"] for row in read_metrics(folder)] == [23, 46]


def test_streamed_and_resident_images_train_alike(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 9, "test": 3})
    data = ("data=image_folder", f"data.root={root}", "data.size=8", "data.mean=[0.5,0.5,0.5]")
    options = (ALL, *data, "data.std=[0.25,0.25,0.25]", *TINY, "schedule.batch_size=4", "schedule.update_every=3")
    summaries = []
    for storage in ("resident", "stream"):
        (tmp_path / storage).mkdir()
        result = run(*options, f"data.storage={storage}", cwd=tmp_path / storage)
        assert result.code == 0, result.output
        folder = run_folder(tmp_path / storage / "outputs")
        assert validated(folder) == []
        summaries.append({name: value for name, value in read_summary(folder).items() if name not in COMPUTED})
    assert summaries[0] == summaries[1]
    assert summaries[0]["selected_step"] == 10  # 2 epochs of 18 images in batches of 4


def test_a_kill_in_between_changes_nothing(finished, tmp_path):
    options = (ALL, *SHOWN, "checkpoint.every_steps=7")
    assert run(*options, cwd=tmp_path, fault="kill:step:30").code == -9
    assert run(*options, cwd=tmp_path).code == 0
    mine, theirs = read_summary(run_folder(tmp_path / "outputs")), read_summary(finished[1])
    assert {**mine, **{name: theirs[name] for name in COMPUTED}} == theirs


def test_what_would_be_ignored_is_refused_at_once(tmp_path):
    options = ("schedule.select=best_val", "schedule.eval_every_epochs=2", "data.split_seed=1")
    result = run(ALL, *TINY, *options, cwd=tmp_path)
    assert result.code == 2
    why = "would be ignored: there is no validation split"
    assert f"schedule.select=best_val {why}. Use last, or give data.val_fraction a share, e.g. 0.1" in result.output
    assert f"schedule.eval_every_epochs=2 {why}. Use 1, or give" in result.output
    assert "data.split_seed=1: needs data.val_fraction, which is 0.0" in result.output
    assert not (tmp_path / "outputs").exists()


def test_the_loop_refuses_it_by_itself():
    training = ranks.training(ranks.ALONE, select="best_val")
    parts = {item.name: getattr(training, item.name) for item in fields(training)}
    with pytest.raises(ValueError, match=r"^select=best_val would be ignored: there is no validation split"):
        type(training)(**{**parts, "val_batches": None})
    alone = ranks.training(ranks.ALONE)
    alone.val_batches = None
    watcher = ranks.Watcher(alone)
    alone.run(watcher, StopFlag())
    assert not [name for row in watcher.metrics for name in row if name.startswith("val/")]
    assert (alone.counters.evaluated, alone.counters.step) == (0, alone.total_steps)
