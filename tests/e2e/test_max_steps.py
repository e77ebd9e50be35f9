"""A run of so many steps: they are its length for everything that is a fraction of training, and part of its id."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dst.data.batches import Batches
from dst.data.dataset import Split
from dst.data.loader import samples_of, samples_within
from dst.records.read import read_layers, read_metrics, read_status, read_summary
from dst.training.length import length_problems, steps_of
from tests.data.pictures import write_folder
from tests.e2e.test_command_line import BATCH, SILENT, TINY, TRAIN
from tests.e2e.test_forecast import rows
from tests.processes import run, run_folder, run_together, traces

THREE = ("model.hidden=[16]", "schedule.epochs=3", "schedule.update_every=10", *SILENT)  # 63 steps
WEIGHTS = 1184  # 64-16-10
ENDS = "schedule.max_steps=50"  # two epochs of 21 steps, and 8
SAMPLES = 2 * TRAIN + 8 * BATCH


def train(folder, *options, processes=1, fault=""):
    folder.mkdir(exist_ok=True)
    if processes > 1:
        options = (*options, f"hardware.processes={processes}")
        results = run_together(*options, cwd=folder, faults=[fault] * processes)
    else:
        results = [run(*options, cwd=folder, fault=fault)]
    assert [result.code for result in results] == [-9 if fault else 0] * processes, results
    return run_folder(folder / "outputs")


@given(
    samples=st.integers(1, 40), batch_size=st.integers(1, 12), steps=st.integers(0, 60), max_steps=st.integers(1, 60)
)
def test_samples_of_so_many_steps_are_those_of_their_batches(samples, batch_size, steps, max_steps):
    images, labels = torch.zeros(samples, 1, 1, 1, dtype=torch.uint8), torch.zeros(samples, dtype=torch.int64)
    batches = Batches(Split(images, labels), batch_size=batch_size, mean=[0.0], std=[1.0])
    expected = sum(samples_of(batches, step % len(batches)) for step in range(steps))
    assert samples_within(batches, steps) == expected
    assert steps_of(3, len(batches), max_steps) == min(3 * len(batches), max_steps)
    assert steps_of(3, len(batches)) == 3 * len(batches)


@pytest.mark.parametrize("method", ["rigl", "gmp", "granet"])
def test_it_is_the_run_of_as_many_epochs(method, tmp_path):
    """To the last bit: rates, warm-up, ramps, drop fractions, last update, figures."""
    options = (f"sparsity={method}", *TINY, "schedule.lr.warmup_epochs=0.5", "schedule.update_every=5")
    short = train(tmp_path / "short", *options, "schedule.epochs=7", "schedule.max_steps=42")
    whole = train(tmp_path / "whole", *options, "schedule.epochs=2")
    assert traces(short) == traces(whole)
    assert short.name != whole.name


def test_milestones_are_of_the_steps(tmp_path):
    curve = ("schedule.lr.name=multistep", "schedule.lr.milestones=[0.5,0.9]", "schedule.lr.peak=1")
    folder = train(tmp_path, "sparsity=dense", *THREE, *curve, ENDS, "tracking.every_steps=1")
    rates = [row["lr"] for row in read_metrics(folder)]
    assert rates == pytest.approx([1.0] * 25 + [0.1] * 20 + [0.01] * 5)


def test_the_last_epoch_may_be_incomplete(tmp_path):
    folder = train(tmp_path, "sparsity=dense", *THREE, ENDS)
    summary, metrics = read_summary(folder), read_metrics(folder)
    assert [(row["step"], "train/loss" in row, "val/loss" in row) for row in metrics] == [
        (21, True, True), (42, True, True), (50, True, True)
    ]  # fmt: skip
    assert metrics[-1]["epoch"] == 50 / 21
    assert summary["val/accuracy"] == metrics[-1]["val/accuracy"]
    assert summary["selected_step"] == 50
    assert summary["flops/train"] == 3 * 2 * WEIGHTS * SAMPLES
    assert summary["flops/train_ratio"] == 1.0
    status = read_status(folder)
    assert (status["state"], status["step"], status["total_steps"]) == ("done", 50, 50)


def test_a_longer_training_that_is_cut_short_is_compared_with_the_single_one(tmp_path):
    """The steps beyond those of multiplier=1 cost more than dense training does."""
    options = ("schedule.epochs=1", "schedule.multiplier=2", "schedule.max_steps=30")
    ratio = read_summary(train(tmp_path, "sparsity=dense", *TINY, *options))["flops/train_ratio"]
    assert ratio == (TRAIN + 9 * BATCH) / TRAIN


def test_the_forecast_is_exact(tmp_path):
    options = ("sparsity=rigl_itop", *THREE, ENDS)
    ((_, cells),) = rows(run(*options, "--forecast", cwd=tmp_path).output).items()
    folder = train(tmp_path, *options)
    summary = read_summary(folder)
    assert cells[2:4] == ["50", f"{summary['flops/train'] // 50:.3e}"]
    assert cells[4:6] == [f"{summary['flops/train']:.3e}", f"{summary['flops/train_ratio']:.3f}"]
    assert sorted({row["step"] for row in read_layers(folder)}) == [0, 10, 20, 30, 40]  # 50 is the last step


@pytest.mark.parametrize("processes", [1, 2])
def test_kills_in_the_last_epoch_change_nothing(processes, tmp_path):
    options = ("sparsity=rigl", *THREE, ENDS, "checkpoint.every_steps=7", "tracking.every_steps=10")
    whole = train(tmp_path / "whole", *options, processes=processes)
    for step in (44, 50):
        train(tmp_path / "killed", *options, processes=processes, fault=f"kill:step:{step}")
    assert traces(train(tmp_path / "killed", *options, processes=processes)) == traces(whole)


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
def test_a_stream_is_left_in_the_middle_of_an_epoch(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 33, "test": 5})
    data = ("data=image_folder", f"data.root={root}", "data.size=10", "data.mean=[0.5,0.5,0.5]")
    options = (*data, "data.std=[0.25,0.25,0.25]", *THREE, "schedule.batch_size=8", "schedule.max_steps=11")
    resident = train(tmp_path / "resident", *options, "data.storage=resident")
    streamed = train(tmp_path / "streamed", *options, "data.storage=stream", "hardware.workers=2")
    assert traces(streamed) == traces(resident)
    assert read_status(streamed)["step"] == 11


REFUSED = {
    "schedule.max_steps=0": "schedule.max_steps=0: must be >= 1",
    "schedule.max_steps=63": "schedule.max_steps=63 would be ignored: training has 63 steps in any case",
    "schedule.max_steps=200 schedule.multiplier=3": "=200 would be ignored: training has 189 steps in any case",
    "schedule.max_steps=60 schedule.multiplier=2": "schedule.multiplier=2 would be ignored: schedule.max_steps=60 ends",
    "schedule.max_steps=20 schedule.lr.warmup_epochs=1": "schedule.lr.warmup_epochs=1.0: warmup_steps=21: must be in "
    "[0, schedule.max_steps=20)",
    "schedule.max_steps=9": "sparsity.update.every=10: there is no update in all 9 steps",
}


@pytest.mark.parametrize(("options", "told"), REFUSED.items())
def test_what_would_be_ignored_or_cannot_be_is_refused(options, told, tmp_path):
    result = run(*THREE, *options.split(), cwd=tmp_path)
    assert result.code == 2
    assert told in result.output
    assert not (tmp_path / "outputs" / "default").exists()


def test_what_is_ignored():
    """At 21 steps an epoch, of 3 epochs."""

    def ignored(max_steps, multiplier):
        return [problem.partition("=")[0] for problem in length_problems(max_steps, 3, multiplier, 21)]

    assert [ignored(steps, 1) for steps in (None, 62, 63)] == [[], [], ["max_steps"]]
    assert [ignored(steps, 2) for steps in (None, 63, 64, 125, 126)] == [[], ["multiplier"], [], [], ["max_steps"]]
