"""What a user types and sees: exit codes, messages, records; the promise that the same command is the same run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dst.files import file_sha256
from dst.records.catalog import find_runs
from dst.records.read import read_json, read_layers, read_metrics, read_status, read_summary
from dst.training.checkpoint import Checkpoints
from tests.processes import REPOSITORY, run, run_folder

SILENT = ("tracking=none", "tracking.progress=none", "hardware.threads=1")
TINY = ("model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10", *SILENT)
STEPS, BATCH, TRAIN = 42, 64, 1294
"""Two epochs of 21 steps: 1797 digits, less 20 % for the test (359), less 10 % of the rest for validation (144)."""
OWN_COUNTS = "sparsity=static sparsity.density=null sparsity.distribution.name=none"
"""A static method whose init says itself how many weights are kept."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    result = run("sparsity=rigl_itop", *TINY, cwd=folder)
    assert result.code == 0, result.output
    return folder, run_folder(folder / "outputs"), result.output


# -- one run -----------------------------------------------------------------------------------------------------------


def test_the_record_is_complete(finished):
    _, folder, _ = finished
    assert sorted(path.name for path in folder.iterdir() if path.name != "lock") == [
        "attempts.jsonl",
        "checkpoints",
        "config.yaml",
        "layers.jsonl",
        "metrics.jsonl",
        "run.json",
        "status.json",
        "summary.json",
    ]
    about = read_json(folder / "run.json")
    assert about["id"] == folder.name
    assert about["config"]["schedule.optimizer.momentum"] == 0.9
    assert len(about["dataset"]["digest"]) == 64
    assert about["versions"]["torch"]
    status = read_status(folder)
    assert (status["state"], status["step"], status["total_steps"], status["attempt"]) == ("done", STEPS, STEPS, 1)


def test_histories_hold_every_metric_of_the_contract(finished):
    _, folder, _ = finished
    first, last = read_metrics(folder)
    assert (first["step"], first["epoch"], last["step"], last["epoch"]) == (21, 1.0, 42, 2.0)
    assert set(last) == {
        *("step", "epoch", "attempt", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"),
        *("sparsity/density", "sparsity/active", "sparsity/rs", "sparsity/drop_fraction"),
        *("flops/train", "time/seconds", "time/samples_per_second"),
    }
    layers = read_layers(folder)
    assert sorted({row["step"] for row in layers}) == [0, 10, 20, 30, 40]
    assert [row["layer"] for row in layers if row["step"] == 40] == ["fc1", "fc2"]
    for row in layers:
        assert row["dropped"] == row["grown"]


def test_flops_are_exact(finished):
    """64-16-10 at density 0.1: 118 of 1184 weights, 2 FLOPs each; dense gradients at the four updates."""
    _, folder, _ = finished
    summary = read_summary(folder)
    assert (summary["model/maskable"], summary["sparsity/active"]) == (1184, 118)
    assert summary["flops/test"] == 2 * 118
    samples = 2 * TRAIN
    # Updates after steps 10, 20, 30, 40, all on full batches.
    assert summary["flops/train"] == 3 * 2 * 118 * samples + 4 * BATCH * 2 * (1184 - 118)
    assert summary["flops/train_ratio"] == pytest.approx(summary["flops/train"] / (3 * 2 * 1184 * samples), rel=1e-12)
    assert summary["flops/test_ratio"] == pytest.approx(118 / 1184, rel=1e-12)


def test_the_report_shows_the_figures(finished):
    _, folder, output = finished
    summary = read_summary(folder)
    assert f"test accuracy   {summary['test/accuracy']:.4f}" in output
    assert "density         0.0997 (118 of 1,184)" in output
    assert f"Rs              {summary['sparsity/rs']:.4f}" in output
    assert output.count("  layer  weights  active  density      Rs") == 2  # at the start and at the end


def test_the_same_command_again_trains_nothing(finished):
    cwd, folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = run("sparsity=rigl_itop", *TINY, cwd=cwd)
    assert result.code == 0
    assert f"run {folder.name} is done already, nothing was trained" in result.output
    assert f"{read_summary(folder)['test/accuracy']:.4f}" in result.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_is_found_wherever_it_lies(finished):
    cwd, _, _ = finished
    result = run("sparsity=rigl_itop", *TINY, "output.group=other/place", cwd=cwd)
    assert "is done already" in result.output
    assert len(find_runs(cwd / "outputs")) == 1


def test_resume_never_starts_a_new_attempt_folder_with_the_same_result(finished, tmp_path):
    cwd, folder, _ = finished
    for number in (2, 3):
        result = run("sparsity=rigl_itop", *TINY, "output.resume=never", cwd=cwd)
        assert result.code == 0
        again = folder.with_name(f"{folder.name}.{number}")
        figures, expected = read_summary(again), read_summary(folder)
        for values in (figures, expected):
            for name in ("time/seconds", "time/samples_per_second"):
                values.pop(name)
        assert figures == expected


def test_dense_training_costs_what_dense_training_costs(tmp_path):
    assert run("sparsity=dense", *TINY, cwd=tmp_path).code == 0
    summary = read_summary(run_folder(tmp_path / "outputs"))
    assert summary["flops/train_ratio"] == summary["flops/test_ratio"] == 1.0
    assert summary["sparsity/density"] == summary["sparsity/rs"] == 1.0


@pytest.mark.parametrize("method", ["static", "dense"])
def test_doubled_training_shows_as_doubled(method, tmp_path):
    ratios = []
    for multiplier in (1, 2):
        cwd = tmp_path / str(multiplier)
        cwd.mkdir()
        assert run(f"sparsity={method}", f"schedule.multiplier={multiplier}", *TINY, cwd=cwd).code == 0
        ratios.append(read_summary(run_folder(cwd / "outputs"))["flops/train_ratio"])
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=1e-12)


def test_best_val_reports_the_figures_of_the_selected_weights(tmp_path):
    """Training at an absurd rate gets worse, so that the last weights are not the best."""
    options = ("schedule.select=best_val", "schedule.lr.name=constant", "schedule.lr.peak=2", "schedule.epochs=6")
    result = run("sparsity=rigl_itop", *TINY, *options, cwd=tmp_path)
    assert result.code == 0, result.output
    folder = run_folder(tmp_path / "outputs")
    summary, metrics = read_summary(folder), read_metrics(folder)
    best = max((row for row in metrics if "val/accuracy" in row), key=lambda row: row["val/accuracy"])
    assert summary["selected_step"] == best["step"] < metrics[-1]["step"]
    for name in ("val/accuracy", "val/loss", "sparsity/rs", "sparsity/density"):
        assert summary[name] == best[name]


def test_best_val_selects_at_the_final_density_only(tmp_path):
    """A network early in GMP's ramp is denser, and better, than the one that was asked for."""
    options = ("schedule.select=best_val", "schedule.epochs=6", "sparsity.density=0.05", "sparsity.update.every=5")
    assert run("sparsity=gmp", *TINY, *options, cwd=tmp_path).code == 0
    folder = run_folder(tmp_path / "outputs")
    summary, metrics = read_summary(folder), read_metrics(folder)
    densities = {row["step"]: row["sparsity/density"] for row in metrics if "sparsity/density" in row}
    evaluated = {row["step"]: row["val/accuracy"] for row in metrics if "val/accuracy" in row}
    final = {step: accuracy for step, accuracy in evaluated.items() if densities[step] == pytest.approx(0.05, abs=1e-3)}
    assert 2 <= len(final) < len(evaluated)
    assert summary["selected_step"] == max(final, key=final.get)
    assert summary["sparsity/density"] == pytest.approx(0.05, abs=1e-3)


def test_best_val_with_a_ramp_to_the_end_has_nothing_to_select(tmp_path):
    options = ("schedule.select=best_val", "sparsity.density_schedule.end=1.0")
    result = run("sparsity=gmp", *TINY, *options, cwd=tmp_path)
    assert result.code == 2
    assert "schedule.select=best_val would be ignored: the density still falls at step" in result.output


def test_a_layer_that_keeps_next_to_nothing_is_told(tmp_path):
    """The largest of random weights lie in the first layer: the last one is left with fewer than its 10 outputs."""
    ranked = ("sparsity.distribution.name=magnitude", "sparsity.init.name=magnitude", "model.hidden=[256,256]")
    result = run("sparsity=static", *TINY, *ranked, cwd=tmp_path)
    assert result.code == 0
    told = re.findall(r"warning: layer (\w+) is a bottleneck: it keeps (\d+) of ([\d,]+) weights", result.output)
    active = {row["layer"]: row["active"] for row in read_layers(run_folder(tmp_path / "outputs")) if row["step"] == 0}
    assert active["fc3"] < 10
    assert ("fc3", str(active["fc3"]), "2,560") in told
    assert "warning: layer" not in run("sparsity=static", *TINY, cwd=tmp_path).output
    ramp = run("sparsity=gmp", *TINY, "sparsity.density=0.01", "model.hidden=[64,64]", cwd=tmp_path)
    assert len(re.findall(r"warning: layer fc2 is a bottleneck", ramp.output)) == 1  # once, at the update that made it


def test_what_is_outside_the_scope_is_told_in_sweeps_and_recorded(tmp_path):
    swept = run("-m", "sparsity=static", *TINY, "sparsity.scope.exclude=[fc1]", "seed=0,1", cwd=tmp_path)
    assert swept.output.count("outside the scope, dense: 1,024 weights (fc1.weight)") == 2
    for folder in find_runs(tmp_path / "outputs"):
        assert read_json(folder / "run.json")["outside"] == {"fc1.weight": 1024}


METHODS = sorted(path.stem for path in (REPOSITORY / "conf" / "sparsity").glob("*.yaml"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_with_every_optimizer(method, optimizer, tmp_path):
    peak = {"sgd": 0.1, "adamw": 0.01}[optimizer]
    options = (f"schedule.optimizer.name={optimizer}", f"schedule.lr.peak={peak}", "schedule.epochs=10")
    if method == "edge_popup":  # weights stay as they are drawn, so it matters how
        options = (*options, "model.init=signed_constant", "model.init_density=0.2")
    if method in ("dsb", "ssb"):  # of 64 units there are too few for groups of 16
        options = (*options, "sparsity.pattern.block_size=4")
    result = run(f"sparsity={method}", *TINY, *options, "model.hidden=[64]", cwd=tmp_path)
    assert result.code == 0, result.output
    assert read_summary(run_folder(tmp_path / "outputs"))["test/accuracy"] > 0.85


# -- starting from another run -----------------------------------------------------------------------------------------


def masks_of(folder):
    return Checkpoints(folder / "checkpoints").load_newest()["sparsifier"]["masks"]


def test_masks_of_another_run(finished, tmp_path):
    _, folder, _ = finished
    command = (*OWN_COUNTS.split(), "sparsity.init.name=file", f"sparsity.init.path={folder}", *TINY)
    assert run(*command, cwd=tmp_path).code == 0
    mine, theirs = masks_of(run_folder(tmp_path / "outputs")), masks_of(folder)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    (digest,) = read_json(run_folder(tmp_path / "outputs") / "run.json")["sources"].values()
    assert digest == file_sha256(Checkpoints(folder / "checkpoints").newest())


def test_masks_that_do_not_fit_are_refused(finished, tmp_path):
    _, folder, _ = finished
    command = (*OWN_COUNTS.split(), "sparsity.init.name=file", f"sparsity.init.path={folder}", *TINY)
    result = run(*command, "model.hidden=[8]", cwd=tmp_path)
    assert result.code == 2
    assert f"sparsity.init.path={folder}: its masks are of another model" in result.output
    assert re.search(r"fc1 is \d+x64 there and 8x64 here, fc2 is 10x\d+ there and 10x8 here$", result.output.strip())


def test_pruning_plasticity_of_another_runs_weights(finished, tmp_path):
    """Trained weights, pruned at a rate and regrown by gradient: as many weights as before."""
    _, folder, _ = finished
    init = ("sparsity.init.name=prune_and_grow_uniform", "sparsity.init.rate=0.5", f"model.weights={folder}")
    assert run(*OWN_COUNTS.split(), *init, *TINY, cwd=tmp_path).code == 0
    mine, theirs = masks_of(run_folder(tmp_path / "outputs")), masks_of(folder)
    assert {name: int(mask.sum()) for name, mask in mine.items()} == {n: int(m.sum()) for n, m in theirs.items()}
    assert not any(torch.equal(mine[name], theirs[name]) for name in theirs if not theirs[name].all())


def test_weights_of_another_model_are_refused(finished, tmp_path):
    _, folder, _ = finished
    result = run(*TINY, "model.hidden=[17]", f"model.weights={folder}", cwd=tmp_path)
    assert result.code == 2
    told = (
        r"is of another model: fc1.bias is \d+ there and 17 here, fc1.weight is \d+x64 there and 17x64 here, fc2.weight"
    )
    assert re.search(told, result.output)


def test_saliency_counts_its_flops(tmp_path):
    """Training FLOPs are those of the sparse steps and of one dense forward and backward pass of the first batch."""
    assert run("sparsity=snip", *TINY, cwd=tmp_path).code == 0
    summary = read_summary(run_folder(tmp_path / "outputs"))
    dense = 2 * (64 * 16 + 16 * 10)
    assert summary["flops/train"] == 3 * BATCH * dense + 3 * 2 * TRAIN * summary["flops/test"]


# -- refusing ----------------------------------------------------------------------------------------------------------


def tree(folder):
    """Everything below a folder but the cache of prepared data."""
    return sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if ".cache" not in p.parts and p.name != "output.txt"
    )


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("sparsity=rigl_itp", "did you mean 'rigl_itop'"),
        ("+experiment=itop/sett", "did you mean 'itop/set'? allowed: "),
        ("experiment=itop/set", "write +experiment=itop/set"),
        ("sparsity.density=nan", "sparsity.density=nan: must be a finite number in (0, 1)"),
        ("sparsity.update.every=100000", "there is no update in all 42 steps"),
        ("model=lenet_5", "set data.size=16 or more"),
        ("hardware.slurm.partition=gpu", "hardware.slurm.partition=gpu would be ignored: add hydra/launcher=slurm"),
        ("hydra/launcher=local", "hydra/launcher=local submits sweeps: add -m"),
        ("-m hydra/launcher=local hydra.launcher.runs_per_job=0", "hydra.launcher.runs_per_job=0: must be >= 1"),
        ("-m hydra/launcher=local hydra.launcher.wait=maybe", "hydra.launcher.wait=maybe: must be true or false"),
        (
            "sparsity=nm_rigl sparsity.pattern.m=5 sparsity.pattern.indivisible=error",
            "cannot be divided into groups of 5",
        ),
        (
            "sparsity=snip sparsity.init.batches=999",
            "sparsity.init.batches=999: the training set has 21; ask for fewer",
        ),
        (
            "sparsity=snfs sparsity.scope.include=[fc1]",
            "redistribute.name=momentum would be ignored: the model has a sin",
        ),
        (
            f"{OWN_COUNTS} sparsity.init.name=file sparsity.init.path=nowhere",
            "sparsity.init.path=nowhere: there is no checkpoint; give a run's",
        ),
        ("model.weights=nowhere", "model.weights=nowhere: there is no checkpoint; give a run's folder"),
        ("sparsity.density=0.0001", "sparsity.density=0.0001: 0 active weights cannot be shared among 2 layers"),
        ("sparsity.scope.exclude=[fc3]", "sparsity.scope: scope pattern 'fc3' matches no layer"),
        ("data.augment.crop_padding=9", "reflection needs less than the image size"),
        ("data=mnist data.download=false", "train-images-idx3-ubyte"),
    ],
)
def test_wrong_configs_leave_nothing_behind(override, told, tmp_path):
    tiny = [option for option in TINY if not (option.startswith("model.hidden") and "lenet" in override)]
    result = run(*tiny, *override.split(), cwd=tmp_path)
    assert result.code == 2
    assert told in result.output
    assert "Traceback" not in result.output
    assert tree(tmp_path) in ([], ["outputs"])


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    result = run(*TINY, "output.root=file", f"data.cache={tmp_path}/.cache", cwd=tmp_path)
    assert result.code == 2
    assert "output.root=file: " in result.output


def shell(*arguments):
    """Run the command in a process of its own, as a shell does."""
    command = [sys.executable, "run.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_usage_errors_and_nonsense():
    for arguments in (["--bogus"], ["a b"]):
        result = shell(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_a_run_is_not_continued_by_other_code_or_with_other_data(tmp_path):
    assert run(*TINY, cwd=tmp_path, fault="kill:step:30").code == -9
    about_file = run_folder(tmp_path / "outputs") / "run.json"
    about = json.loads(about_file.read_text())
    for change, told in (
        (
            {"code": {**about["code"], "digest": "0" * 16}},
            "bit-identically: changed the code (was 000",
        ),
        ({"versions": {**about["versions"], "torch": "1.0"}}, "changed torch (was 1.0, is"),
        ({"dataset": {**about["dataset"], "digest": "0" * 64}}, "was begun with other data"),
    ):
        about_file.write_text(json.dumps(about | change))
        result = run(*TINY, cwd=tmp_path)
        assert result.code == 2
        assert told in result.output
        assert "output.resume=never" in result.output
    about_file.write_text(json.dumps(about))
    assert run(*TINY, cwd=tmp_path).code == 0


def test_fast_determinism_continues_with_a_warning(tmp_path):
    options = (*TINY, "hardware.determinism=fast")
    assert run(*options, cwd=tmp_path, fault="kill:step:30").code == -9
    about_file = run_folder(tmp_path / "outputs") / "run.json"
    about = json.loads(about_file.read_text())
    about_file.write_text(json.dumps(about | {"versions": {**about["versions"], "torch": "1.0"}}))
    result = run(*options, cwd=tmp_path)
    assert result.code == 0
    assert "warning: continuing run" in result.output


def test_a_running_run_is_not_started_twice(tmp_path):
    import fcntl

    assert run(*TINY, cwd=tmp_path, fault="kill:step:5").code == -9
    with (run_folder(tmp_path / "outputs") / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run(*TINY, cwd=tmp_path)
    assert result.code == 2
    assert "is being run by host" in result.output


# -- sweeps ------------------------------------------------------------------------------------------------------------


def test_a_sweep_trains_only_what_is_new(tmp_path):
    first = run("-m", "sparsity=static,rigl", "seed=0", *TINY, cwd=tmp_path)
    assert first.code == 0
    assert "2 runs: 0 finished already, 2 to train" in first.output
    second = run("-m", "sparsity=static,rigl", "seed=0,1", *TINY, cwd=tmp_path)
    assert "4 runs: 2 finished already, 2 to train" in second.output
    again = run("-m", "sparsity=static,rigl", "seed=0,1", *TINY, cwd=tmp_path)
    assert "4 runs: 4 finished already, 0 to train" in again.output
    assert len(find_runs(tmp_path / "outputs")) == 4


def test_one_bad_cell_means_that_nothing_runs(tmp_path):
    result = run("-m", "sparsity.density=0.1,2", "seed=0,1", *TINY, cwd=tmp_path)
    assert result.code == 2
    assert "sparsity.density=2.0: must be in (0, 1) (in 2 of 4 cells: " in result.output
    assert tree(tmp_path) == []


def test_a_diverging_cell_does_not_hurt_its_neighbours(tmp_path):
    result = run("-m", "schedule.lr.peak=1e30,0.1", *TINY, cwd=tmp_path)
    assert result.code == 3
    states = sorted(read_status(folder)["state"] for folder in find_runs(tmp_path / "outputs"))
    assert states == ["diverged", "done"]
    assert "diverged" in result.output.splitlines()[-2] + result.output.splitlines()[-1]


def test_a_request_to_stop_ends_the_sweep(tmp_path):
    result = run("-m", "seed=0,1,2", *TINY, cwd=tmp_path, fault="signal:SIGTERM:20")
    assert result.code == 75
    assert result.output.count("not started") == 2
    assert run("-m", "seed=0,1,2", *TINY, cwd=tmp_path).code == 0


def test_cells_that_are_the_same_run_are_run_once(tmp_path):
    result = run("-m", "sparsity=static", "schedule.update_every=10,20", *TINY[:2], *TINY[3:], cwd=tmp_path)
    assert "2 cells are 1 distinct runs" in result.output
    assert len(find_runs(tmp_path / "outputs")) == 1


# -- help --------------------------------------------------------------------------------------------------------------


def test_help_lists_every_group_and_option():
    text = shell("--help").stdout
    for path in (REPOSITORY / "conf").glob("*/*.yaml"):
        if path.parent.name != "experiment":
            assert f"    {path.stem} " in text
            assert f"\n  {path.parent.name}\n" in text
    assert "\n  experiment (added by +experiment=" in text
    for path in (REPOSITORY / "experiments").rglob("*.yaml"):
        about = path.read_text().splitlines()[1].removeprefix("# ")
        name = path.relative_to(REPOSITORY / "experiments").with_suffix("")
        assert re.search(rf"    {name} +{re.escape(about)}\n", text)


def test_cfg_job_shows_the_config_and_parts_of_it():
    assert "every: ${schedule.update_every}" in shell("--cfg", "job").stdout
    assert "every: 50" in shell("--cfg", "job", "--resolve").stdout
    assert shell("--cfg", "job", "-p", "sparsity.drop.name", "sparsity=rigl").stdout.strip() == "magnitude"


def test_hydra_answers_what_only_it_can():
    result = shell("--info", "defaults-tree")
    assert result.returncode == 0
    assert "sparsity: rigl_itop" in result.stdout
    assert not Path(REPOSITORY / "outputs" / "run.log").exists()


# -- what a reviewer found ---------------------------------------------------------------------------------------------


def test_weights_that_overflow_are_never_saved_nor_called_done(tmp_path):
    """Finite gradients at an absurd rate: the bad step is seen before its checkpoint, and at the end of training."""
    options = ("sparsity=static", "schedule.lr.peak=1e300", *(text for text in TINY if "update_every" not in text))
    saving = run(*options, "checkpoint.every_steps=1", "checkpoint.keep=1", cwd=tmp_path)
    assert saving.code == 3
    assert "a weight or running statistic not finite at step 1" in saving.output
    assert not list(tmp_path.glob("outputs/default/*/checkpoints/*.pt"))
    one_step = run(*options, "schedule.batch_size=5000", "schedule.epochs=1", cwd=tmp_path)
    assert one_step.code == 3


def test_a_changed_method_does_not_keep_the_name_of_the_original(tmp_path):
    result = run(*TINY, "sparsity.grow.name=random", "sparsity.density=0.2", cwd=tmp_path)
    assert "digits mlp rigl_itop grow=random density=0.2 seed=0" in result.output
    about = read_json(run_folder(tmp_path / "outputs") / "run.json")
    assert (about["config"]["sparsity.label"], about["changed"]) == ("rigl_itop", {"sparsity.grow.name": "random"})


def test_a_run_that_goes_on_under_another_name_of_its_method_is_the_same_run(tmp_path):
    """And is called as it was called last."""
    begun = run(*TINY, "sparsity=rigl_itop", "checkpoint.every_steps=5", cwd=tmp_path, fault="kill:step:12")
    assert begun.code == -9
    folder = run_folder(tmp_path / "outputs")
    named = ("sparsity=dst", "checkpoint.every_steps=5")
    result = run(*TINY, *named, cwd=tmp_path)
    assert result.code == 0, result.output
    assert f"run {folder.name}: digits mlp dst density=0.1 seed=0; continuing from step 10" in result.output
    about = read_json(run_folder(tmp_path / "outputs") / "run.json")
    assert (about["name"], about["config"]["sparsity.label"]) == ("digits mlp dst density=0.1 seed=0", "dst")
    again = run("-m", *TINY, "sparsity=rigl_itop,dst,static", cwd=tmp_path)
    assert "3 cells are 2 distinct runs: sparsity=rigl_itop, sparsity=dst\n" in again.output
    assert "2 runs: 1 finished already, 1 to train" in again.output


def test_a_default_said_aloud_does_not_change_the_name(tmp_path, finished):
    cwd, folder, _ = finished
    result = run("sparsity=rigl_itop", *TINY, "sparsity.update.stop=1.0", "sparsity.drop.name=magnitude", cwd=cwd)
    assert f"run {folder.name} is done already" in result.output


def test_damaged_records_do_not_stop_a_sweep(tmp_path):
    sweep = ("-m", "seed=0,1,2", *TINY)
    assert run(*sweep, cwd=tmp_path).code == 0
    folders = find_runs(tmp_path / "outputs")
    (folders[0] / "status.json").write_text('{"sta')
    (folders[1] / "summary.json").unlink()
    result = run(*sweep, cwd=tmp_path)
    assert result.code == 1
    assert "status.json is not JSON" in result.output
    assert read_summary(folders[1])["test/accuracy"] > 0  # had again from its last checkpoint
    assert "Traceback" not in result.output


def test_a_cell_that_cannot_be_built_does_not_stop_a_sweep(tmp_path):
    (tmp_path / "outputs" / "default").mkdir(parents=True)
    first = run("-m", "seed=0,1", *TINY, cwd=tmp_path, fault="kill:step:5")
    assert first.code == -9
    (folder,) = find_runs(tmp_path / "outputs")
    (folder / "run.json").write_text("{}")
    result = run("-m", "seed=0,1", *TINY, cwd=tmp_path)
    assert result.code == 2
    assert "run.json is incomplete" in result.output
    assert sorted(read_status(f)["state"] for f in find_runs(tmp_path / "outputs")) == ["done", "running"]


def test_a_request_to_stop_at_the_very_end_of_a_cell_ends_the_sweep(tmp_path):
    result = run("-m", "seed=0,1,2", *TINY, cwd=tmp_path, fault=f"signal:SIGTERM:{STEPS}")
    assert result.code == 75
    assert result.output.count("not started") == 2


def test_batch_norm_and_a_batch_of_one(tmp_path):
    """Three batches of 431 leave a single sample: its maps are enough for ResNet-20, VGG-C comes down to one value."""
    options = ("model=resnet20", "schedule.batch_size=431", "schedule.update_every=1", "schedule.epochs=1", *SILENT)
    assert run(*options, cwd=tmp_path).code == 0
    result = run("model=vgg_c", *options[1:], cwd=tmp_path)
    assert result.code == 2
    assert "schedule.batch_size: with schedule.batch_size=431" in result.output


def test_a_broken_yaml_is_told_and_names_the_file(tmp_path):
    import shutil

    from dst.config.schema import ConfigError
    from tests.composed import compose_cells

    conf = tmp_path / "conf"
    shutil.copytree(REPOSITORY / "conf", conf)
    (conf / "sparsity" / "rigl_itop.yaml").write_text("label: [")
    with pytest.raises(ConfigError, match=r"cannot be read: .*rigl_itop\.yaml"):
        compose_cells(conf, [], multirun=False)


def test_flags_that_would_be_ignored():
    for arguments in (["-p", "sparsity"], ["--resolve"], ["--cfg", "job", "-m"]):
        result = shell(*arguments)
        assert result.returncode == 2
        assert "--cfg job" in result.stderr


def test_all_that_does_not_fit_is_told_at_once(tmp_path):
    result = run(*TINY, "sparsity.update.every=1000", "sparsity.scope.exclude=[fcx]", cwd=tmp_path)
    assert result.code == 2
    assert "there is no update in all" in result.output
    assert "scope pattern 'fcx' matches no layer" in result.output


def test_a_density_that_leaves_nothing_to_grow(tmp_path):
    result = run(*TINY, "sparsity.density=0.99999", cwd=tmp_path)
    assert result.code == 2
    assert "no layer has an inactive weight" in result.output
