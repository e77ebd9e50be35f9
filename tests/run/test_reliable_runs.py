"""Reliable Rs on record: of every kind of run what a count at every step finds, and of no run anything else."""

from pathlib import Path

import pytest
import torch

from dst.cli import main
from dst.records.read import read_layers, read_metrics, read_summary
from dst.training.loop import Training
from tests.composed import last_given
from tests.processes import run, run_folder, traces

CONF = Path(__file__).parents[2] / "conf"
TINY = (
    *("model.hidden=[16]", "schedule.epochs=2", "tracking=none", "tracking.progress=none", "tracking.every_steps=4"),
    *("hardware.threads=1", "output.root=outputs"),
)
EVERY = ("schedule.update_every=5",)
KEY, METRIC = "tracking.reliable_steps", "sparsity/rs_reliable"
RUNS = {
    "dense": ("sparsity=dense",),
    "static": ("sparsity=static",),
    "packed": ("sparsity=rigl_itop", *EVERY, "sparsity.compute=packed"),
    "selected": ("sparsity=rigl_itop", *EVERY, "schedule.select=best_val"),
    "granet": ("sparsity=granet", "sparsity.update.every=5"),
    "edge_popup": ("sparsity=edge_popup", "sparsity.reparametrize.every=5"),
    "imp": ("sparsity=rigl_itop", *EVERY, "procedure=imp", "procedure.level_epochs=1"),
    "anneal": (
        *("sparsity=edge_popup", "sparsity.reparametrize.every=5", "procedure=anneal"),
        *("procedure.levels=2", "procedure.level_epochs=1"),
    ),
    "sup_tickets": (
        *("sparsity=set_itop", *EVERY, "procedure=sup_tickets", "procedure.cycle_epochs=1", "schedule.epochs=3"),
        *("procedure.pretrain_epochs=1",),
    ),
}


@pytest.fixture
def by_steps(monkeypatch, tmp_path):
    """Return the masks of every step that is taken, all layers in one."""
    monkeypatch.chdir(tmp_path)
    take, found = Training.train_step, []

    def train_step(self, *args):
        found.append(torch.cat([mask.bool().flatten().clone() for mask in self.sparsifier.topology.masks]))
        take(self, *args)

    monkeypatch.setattr(Training, "train_step", train_step)
    return found


def reliable_after(masks, steps):
    """Return how many weights were active for so many steps in a row, after each step."""
    streak = torch.zeros(masks[0].shape, dtype=torch.int64)
    longest, found = streak.clone(), [0]
    for mask in masks:
        streak = (streak + 1) * mask
        longest = torch.maximum(longest, streak)
        found.append(int((longest >= steps).sum()))
    return found


@pytest.mark.parametrize("kind", RUNS)
def test_the_record_has_what_a_count_at_every_step_finds(kind, by_steps):
    steps = 9
    assert main(last_given([*TINY, *RUNS[kind], f"{KEY}={steps}"]), conf=CONF) == 0
    folder = run_folder(Path("outputs"))
    summary, truth = read_summary(folder), reliable_after(by_steps, steps)
    size = summary["model/maskable"]
    logged = {row["step"]: row[METRIC] for row in read_metrics(folder) if METRIC in row}
    assert len(logged) > 8
    assert logged == {step: truth[step] / size for step in logged}
    layers = list(read_layers(folder))
    for step in {row["step"] for row in layers}:
        told = {row["layer"]: row["reliable"] for row in layers if row["step"] == step}  # of several, the last
        assert sum(told.values()) == truth[step]
    assert layers[-1]["step"] == len(by_steps)
    assert summary[METRIC] == truth[summary["selected_step"]] / size
    assert 0 < summary[METRIC] <= summary["sparsity/rs"]


def test_what_is_not_asked_for_is_nowhere(by_steps):
    assert main([*RUNS["selected"], *TINY], conf=CONF) == 0
    folder = run_folder(Path("outputs"))
    assert METRIC not in read_summary(folder)
    assert "reliable" not in (folder / "metrics.jsonl").read_text() + (folder / "layers.jsonl").read_text()


# -- kills and resumes -------------------------------------------------------------------------------------------------

KILLED = (
    *("sparsity=rigl_itop", "model.hidden=[32]", "schedule.epochs=3", "schedule.update_every=10", "tracking=none"),
    *("checkpoint.every_steps=7", "tracking.every_steps=10", "tracking.progress=none", "hardware.threads=1"),
    *("schedule.optimizer.name=adamw", "schedule.lr.peak=0.01"),
)
COUNTED = (*KILLED, f"{KEY}=15")


def uncounted(found):
    """Return the traces of a run without what counting adds to them."""
    if isinstance(found, dict):
        return {name: uncounted(value) for name, value in found.items() if name not in (METRIC, "reliable")}
    return [uncounted(value) for value in found] if isinstance(found, list) else found


@pytest.mark.slow
def test_kills_change_nothing_of_what_is_counted_and_counting_nothing_of_the_run(tmp_path):
    """Killed between updates (every 10 steps), in one, and after the last one."""
    folders = [tmp_path / name for name in ("undisturbed", "killed", "uncounted")]
    for folder in folders:
        folder.mkdir()
    assert run(*COUNTED, cwd=folders[0]).code == 0
    for fault in ("kill:step:26", "kill:update:2", "kill:step:61"):
        assert run(*COUNTED, cwd=folders[1], fault=fault).code == -9
    assert run(*COUNTED, cwd=folders[1]).code == 0
    assert run(*KILLED, cwd=folders[2]).code == 0
    records = [run_folder(folder / "outputs") for folder in folders]
    assert len({folder.name for folder in records}) == 1  # it is in no identity
    undisturbed, killed, plain = map(traces, records)
    assert killed == undisturbed
    assert undisturbed["state"]["sparsifier"]["reliable"]["births"]
    steps = [row["step"] for row in undisturbed["layers"]]
    last = [row for row in undisturbed["layers"] if row["step"] < steps[-1]]  # the last rows tell of reliability alone
    assert all(row["dropped"] == row["grown"] == 0 for row in undisturbed["layers"] if row["step"] == steps[-1])
    assert uncounted({**undisturbed, "layers": last}) == plain


def known(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "lock"}


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["5", "16"])
def test_a_run_goes_on_counting_as_it_began_or_not_at_all(asked, tmp_path):
    begun = KILLED if asked == "5" else COUNTED
    assert run(*begun, cwd=tmp_path, fault="kill:step:26").code == -9
    folder = run_folder(tmp_path / "outputs")
    before = known(folder)
    refused = run(*KILLED, f"{KEY}={asked}", cwd=tmp_path)
    so_far = "null" if asked == "5" else "15"
    assert refused.code == 2
    assert f"{KEY}={asked}: run {folder.name} has trained with {KEY}={so_far} so far" in refused.output
    assert "Traceback" not in refused.output
    assert known(folder) == before
    assert run(*KILLED, cwd=tmp_path).code == 0
    assert METRIC not in read_summary(folder)


@pytest.mark.slow
def test_a_run_that_has_saved_nothing_begins_to_count(tmp_path):
    rare = ("checkpoint.every_steps=1000", "checkpoint.every_min=1000")
    assert run(*KILLED, *rare, cwd=tmp_path, fault="kill:step:26").code == -9
    assert run(*COUNTED, cwd=tmp_path).code == 0
    assert 0 < read_summary(run_folder(tmp_path / "outputs"))[METRIC] < 1


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "many", "true"])
def test_values_that_make_no_sense_are_refused_with_the_key(value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([f"{KEY}={value}"], conf=CONF) == 2
    assert KEY in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
