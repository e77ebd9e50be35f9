"""Whatever kills a run, the same command ends it bit-identical to an undisturbed one (atol = 0)."""

import json
import random
import shutil
from pathlib import Path

import pytest

from dst.files import file_sha256
from dst.records.catalog import find_runs
from dst.records.read import read_attempts, read_layers, read_metrics, read_run, read_status, read_summary
from dst.training.checkpoint import Checkpoints
from tests.old_records import BEFORE_PHASES, unpack
from tests.processes import REPOSITORY, run, run_folder, traces
from tests.states import plain

pytestmark = pytest.mark.slow

SMALL = (
    "model.hidden=[32]",
    "schedule.epochs=6",
    "schedule.update_every=10",
    "checkpoint.every_steps=7",
    "tracking.every_steps=10",
    "tracking=none",
    "tracking.progress=none",
    "hardware.threads=1",
)
STEPS = 126  # 6 epochs of 21


def undisturbed(tmp_path_factory, method, *more):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(f"sparsity={method}", *SMALL, *more, cwd=folder)
    assert result.code == 0, result.output
    return traces(run_folder(folder / "outputs"))


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    known = {}

    def reference(method, *more):
        key = (method, *more)
        if key not in known:
            known[key] = undisturbed(tmp_path_factory, method, *more)
        return known[key]

    return reference


def assert_same(folder: Path, reference):
    found = traces(run_folder(folder / "outputs"))
    for part, content in reference.items():
        assert found[part] == content, f"{part} differ"


@pytest.mark.parametrize("method", ["dense", "set_itop", "rigl", "edge_popup"])
def test_ten_kills_at_random_steps(method, tmp_path, references):
    steps = sorted(random.Random(method).sample(range(1, STEPS), 10))
    for step in steps:
        assert run(f"sparsity={method}", *SMALL, cwd=tmp_path, fault=f"kill:step:{step}").code == -9
    assert run(f"sparsity={method}", *SMALL, cwd=tmp_path).code == 0
    assert_same(tmp_path, references(method))
    status = read_status(run_folder(tmp_path / "outputs"))
    assert (status["state"], status["attempt"], status["step"]) == ("done", 11, STEPS)


def test_kills_around_updates_that_regroup_rows(tmp_path, references):
    """Every other update regroups; within one, just after one, and between two, with the optimizer's momentum."""
    blocks = ("model.hidden=[64,32]", "sparsity.pattern.regroup_every_updates=2", "sparsity.density=0.3")
    for fault in ("kill:update:2", "kill:step:21", "kill:update:5", "kill:step:63"):
        assert run("sparsity=dsb", *SMALL, *blocks, cwd=tmp_path, fault=fault).code == -9
    assert run("sparsity=dsb", *SMALL, *blocks, cwd=tmp_path).code == 0
    assert_same(tmp_path, references("dsb", *blocks))
    state = Checkpoints(run_folder(tmp_path / "outputs") / "checkpoints").load_newest()["sparsifier"]
    for name, pattern in state["patterns"].items():
        rows, mask = pattern["rows"], state["masks"][name].flatten(1)
        assert sorted(rows.flatten().tolist()) == list(range(len(mask)))
        assert (mask[rows] == mask[rows[:, :1]]).all()


ADAM = ("schedule.optimizer.name=adamw", "schedule.lr.peak=0.01")


def test_kills_while_adam_knows_the_ages_of_weights(tmp_path, references):
    """Between updates (every 10 steps), and in one; the ages are in the checkpoints, and make a difference."""
    options = ("sparsity=rigl_itop", *SMALL, *ADAM)
    for fault in ("kill:step:26", "kill:update:5", "kill:step:93"):
        assert run(*options, cwd=tmp_path, fault=fault).code == -9
    assert run(*options, cwd=tmp_path).code == 0
    assert_same(tmp_path, references("rigl_itop", *ADAM))
    state = Checkpoints(run_folder(tmp_path / "outputs") / "checkpoints").load_newest()["sparsifier"]
    births = {name: set(born.tolist()) for name, born in state["births"].items()}
    assert births.keys() == state["masks"].keys()
    assert all({0, 10, 20} <= born <= set(range(0, STEPS, 10)) for born in births.values())
    by_tensor = references("rigl_itop", *ADAM, "sparsity.update.adam_age=tensor")
    assert by_tensor != references("rigl_itop", *ADAM)


PLACES = [
    *[f"kill:rename:{n}" for n in (1, 2, 7)],  # of the config, of run.json, and later
    *[f"kill:checkpoint:{n}" for n in (1, 2, 8)],  # around a checkpoint's data and its manifest
    "kill:half_written:1",
    "kill:half_written:4",
    *[f"kill:update:{n}" for n in (1, 2, 11)],
    *[f"kill:evaluate:{n}" for n in (1, 3, 8)],
    "kill:test:1",
    "kill:summary:1",
]


@pytest.mark.parametrize("fault", PLACES)
def test_kills_inside_writing_updating_and_evaluating(fault, tmp_path, references):
    options = ("sparsity=rigl_itop", "schedule.select=best_val", *SMALL)
    assert run(*options, cwd=tmp_path, fault=fault).code == -9
    result = run(*options, cwd=tmp_path)
    assert result.code == 0, result.output
    assert_same(tmp_path, references("rigl_itop", "schedule.select=best_val"))


CORRECTED = ("correction=agent", "correction.gamma=1", "schedule.epochs=3", "checkpoint.every_steps=5")


@pytest.mark.parametrize("fault", ["kill:pass:7", "kill:pass:50", "kill:step:21", "kill:step:33", "kill:end_epoch:2"])
@pytest.mark.parametrize("method", ["rigl", "set_itop"])
def test_kills_around_a_corrected_gradient(method, fault, tmp_path, references):
    """Inside the pass over an epoch of 21 batches, before the first, and within a period."""
    options = (f"sparsity={method}", *SMALL, *CORRECTED)
    assert run(*options, cwd=tmp_path, fault=fault).code == -9
    result = run(*options, cwd=tmp_path)
    assert result.code == 0, result.output
    assert_same(tmp_path, references(method, *CORRECTED))


@pytest.mark.parametrize(("batch", "step"), [(1, 0), (9, 0), (30, 21), (63, 42)])
def test_a_stop_inside_the_pass_over_an_epoch_repeats_it(batch, step, tmp_path, references):
    options = ("sparsity=rigl", *SMALL, *CORRECTED)
    result = run(*options, cwd=tmp_path, fault=f"signal:SIGTERM:pass:{batch}")
    assert result.code == 75, result.output
    assert f"stopped by SIGTERM after step {step}; run the same command to continue" in result.output
    status = read_status(run_folder(tmp_path / "outputs"))
    assert (status["state"], status["step"]) == ("preempted", step)
    result = run(*options, cwd=tmp_path)
    assert result.code == 0, result.output
    assert (f"continuing from step {step}" in result.output) == (step > 0)
    assert_same(tmp_path, references("rigl", *CORRECTED))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2"])
@pytest.mark.parametrize("step", [1, 42, 100])
def test_signals_save_and_exit_75(name, step, tmp_path, references):
    result = run("sparsity=set_itop", *SMALL, cwd=tmp_path, fault=f"signal:{name}:{step}")
    assert result.code == 75
    assert f"stopped by {name} after step {step}; run the same command to continue" in result.output
    status = read_status(run_folder(tmp_path / "outputs"))
    assert (status["state"], status["step"]) == ("preempted", step)
    result = run("sparsity=set_itop", *SMALL, cwd=tmp_path)
    assert f"continuing from step {step}" in result.output
    assert_same(tmp_path, references("set_itop"))


TRANSFORMER = (
    *("model=vit_tiny", "sparsity=rigl_itop", "sparsity.density=0.2", "schedule=vit_cifar"),
    *("schedule.lr.warmup_epochs=0", "data.val_fraction=0.9", "schedule.batch_size=48", "schedule.update_every=2"),
    *("checkpoint.every_steps=2", "tracking=none", "tracking.progress=none", "hardware.threads=1"),
)
WRAPPED = ("correction=agent", "correction.gamma=1", "procedure=sup_tickets", "procedure.cycle_epochs=1")


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (("schedule.epochs=2",), "kill:update:30"),  # in the second of 26 layers' updates: half of attention has moved
        (("schedule.epochs=2", *WRAPPED, "procedure.cycle_rate=0.5"), "kill:superpose:1"),
    ],
    ids=["rigl_itop", "agent and sup_tickets"],
)
def test_kills_of_a_transformer(more, fault, tmp_path, tmp_path_factory):
    """Its attention's fused projections are sparse as any weight; an epoch has three steps."""
    assert run(*TRANSFORMER, *more, cwd=tmp_path, fault=fault).code == -9
    result = run(*TRANSFORMER, *more, cwd=tmp_path)
    assert result.code == 0, result.output
    assert "continuing from step" in result.output
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(*TRANSFORMER, *more, cwd=folder).code == 0
    assert_same(tmp_path, traces(run_folder(folder / "outputs")))


CYCLES = (
    *("sparsity=rigl_itop", "model=resnet20", "procedure=sup_tickets", "procedure.cycle_epochs=1"),
    *("procedure.cycle_rate=0.5", "procedure.re_explore=0.5", "data.val_fraction=0.8", "schedule.batch_size=48"),
    *("schedule.epochs=4", "schedule.update_every=5", "checkpoint.every_steps=7", "output.keep_networks=true"),
    *("tracking.every_steps=10", "tracking=none", "tracking.progress=none", "hardware.threads=1"),
)
"""Pretraining of 12 steps, two cycles of 6; checkpoints after steps 7, 14, 21, and after each phase."""
INSIDE = {
    "kill:step:15": 14,  # inside the first cycle
    "kill:step:13": 12,  # after its re-exploration
    **{"kill:network:1": 7, "kill:network:2": 14, "kill:network:3": 14, "kill:network:5": 21},
    **{"kill:superpose:1": 14, "kill:superpose:2": 21, "kill:prune_back:2": 21},
    **{"kill:batch_norm:3": 14, "kill:batch_norm:8": 21},
    "kill:adopt:1": 21,
    "kill:test:1": 24,
}
"""A kill -> the step of the checkpoint from which the run goes on."""


@pytest.fixture(scope="module")
def superposed(tmp_path_factory):
    """Return what an undisturbed run of cycles leaves behind, and the networks that it kept."""
    folder = tmp_path_factory.mktemp("superposed")
    result = run(*CYCLES, cwd=folder)
    assert result.code == 0, result.output
    return traces(run_folder(folder / "outputs")), kept_networks(folder)


def kept_networks(folder):
    import torch

    files = sorted((run_folder(folder / "outputs") / "networks").glob("*.pt"))
    return {file.name: plain(torch.load(file, weights_only=True)) for file in files}


@pytest.mark.parametrize("fault", INSIDE)
def test_kills_inside_cycles_superposing_and_re_estimation(fault, tmp_path, superposed):
    assert run(*CYCLES, cwd=tmp_path, fault=fault).code == -9
    result = run(*CYCLES, cwd=tmp_path)
    assert result.code == 0, result.output
    assert f"continuing from step {INSIDE[fault]}," in result.output
    assert_same(tmp_path, superposed[0])
    assert kept_networks(tmp_path) == superposed[1]
    names = ["pretrained", "superposed 1", "superposed 2", "ticket 1", "ticket 2"]
    assert list(superposed[1]) == [f"{name}.pt" for name in names]


@pytest.mark.parametrize(("fault", "step"), [("batch_norm:3", 18), ("batch_norm:9", 24), ("superpose:1", 18)])
def test_a_signal_inside_superposing_saves_the_ticket(fault, step, tmp_path, superposed):
    result = run(*CYCLES, cwd=tmp_path, fault=f"signal:SIGTERM:{fault}")
    assert result.code == 75, result.output
    assert f"stopped by SIGTERM after step {step}; run the same command to continue" in result.output
    result = run(*CYCLES, cwd=tmp_path)
    assert f"continuing from step {step}" in result.output
    assert_same(tmp_path, superposed[0])
    assert kept_networks(tmp_path) == superposed[1]


def test_the_superposed_network_starts_another_run(tmp_path):
    """Weights and masks of the checkpoint are those of the network that was tested."""
    import torch

    from dst.config.schema import complete
    from dst.records.read import read_networks
    from dst.run.build import build
    from dst.training.checkpoint import Checkpoints
    from tests.composed import compose_cells

    assert run(*CYCLES, cwd=tmp_path).code == 0
    folder = run_folder(tmp_path / "outputs")
    *_, last = read_networks(folder)
    kept = torch.load(folder / "networks" / "superposed 2.pt", weights_only=True)
    state = Checkpoints(folder / "checkpoints").load_newest()
    from_it = ("sparsity=static", "sparsity.init.name=file", f"sparsity.init.path={folder}")
    own = ("sparsity.density=null", "sparsity.distribution.name=none", f"model.weights={folder}")
    setting = ("model=resnet20", "data.val_fraction=0.8", "schedule.batch_size=48", "schedule.epochs=1")
    overrides = [*from_it, *own, *setting, "hardware.threads=1", "tracking=none"]
    ((_, config),) = compose_cells(REPOSITORY / "conf", overrides, multirun=False)
    training = build(complete(config)).training
    assert training.sparsifier.density == last["density"] == read_summary(folder)["sparsity/density"]
    assert (last["val/accuracy"], last["val/loss"]) == (
        read_summary(folder)["val/accuracy"],
        read_summary(folder)["val/loss"],
    )
    for stored in (state, kept):
        assert plain(dict(training.model.state_dict())) == plain(dict(stored["model"]))
        assert plain(training.sparsifier.state_dict()["masks"]) == plain(stored["sparsifier"]["masks"])


LEVELS = (
    *("sparsity=rigl_itop", "model.hidden=[24]", "procedure=imp", "procedure.rewind=epoch", "procedure.rewind_epoch=1"),
    *("sparsity.density=0.5", "procedure.density=0.1", "procedure.keep=0.5", "schedule.epochs=3"),
    *("schedule.optimizer.name=adamw", "schedule.lr.peak=0.01", "schedule.update_every=4", "checkpoint.every_steps=5"),
    *("data.val_fraction=0.8", "schedule.batch_size=48", "output.keep_networks=true"),
    *("tracking.every_steps=10", "tracking=none", "tracking.progress=none", "hardware.threads=1"),
)
"""Three levels of 12 steps, then 18; weights go back to step 6."""
AROUND = {
    "kill:step:6": 5,  # before the point is kept
    "kill:step:9": 5,
    "kill:step:11": 10,  # inside the first level, after the point
    "kill:network:1": 10,  # at its end
    "kill:update:3": 12,  # in the pruning, once weights went back, before the first of two layers has its mask
    "kill:update:4": 12,
    "kill:step:13": 12,  # the first step after it
    "kill:step:24": 20,
    "kill:network:3": 35,
    "kill:step:37": 36,
    "kill:test:1": 54,
}
"""A kill -> the step of the checkpoint from which the run goes on."""


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Return what an undisturbed run of levels leaves behind, and the networks that it kept."""
    folder = tmp_path_factory.mktemp("pruned")
    result = run(*LEVELS, cwd=folder)
    assert result.code == 0, result.output
    return traces(run_folder(folder / "outputs")), kept_networks(folder)


@pytest.mark.parametrize("fault", AROUND)
def test_kills_around_levels_of_pruning(fault, tmp_path, pruned):
    assert run(*LEVELS, cwd=tmp_path, fault=fault).code == -9
    result = run(*LEVELS, cwd=tmp_path)
    assert result.code == 0, result.output
    assert f"continuing from step {AROUND[fault]}, 54 steps" in result.output
    assert_same(tmp_path, pruned[0])
    assert kept_networks(tmp_path) == pruned[1]
    rows = read_layers(run_folder(tmp_path / "outputs"))
    counted = {step: sum(row["active"] for row in rows if row["step"] == step) for step in (0, 12, 24, 36)}
    assert counted == {0: 888, 12: 444, 24: 222, 36: 178}
    assert [network["name"] for network in pruned[0]["networks"]] == ["level 1", "level 2", "level 3"]
    assert [network["active"] for network in pruned[0]["networks"]] == [888, 444, 222]


@pytest.mark.parametrize(("fault", "step"), [("network:2", 24), ("update:3", 13), ("12", 12)])
def test_a_signal_around_levels_of_pruning(fault, step, tmp_path, pruned):
    result = run(*LEVELS, cwd=tmp_path, fault=f"signal:SIGTERM:{fault}")
    assert result.code == 75, result.output
    result = run(*LEVELS, cwd=tmp_path)
    assert result.code == 0, result.output
    assert f"continuing from step {step}," in result.output
    assert_same(tmp_path, pruned[0])


@pytest.mark.parametrize("fault", ["kill:step:3", "kill:step:20", "kill:step:40"])
@pytest.mark.parametrize("slot", ["init", "distribution"])
def test_levels_from_masks_whose_source_is_gone(slot, fault, tmp_path):
    """How many levels there are is told by the first masks, not by those of the checkpoint."""
    source = ("sparsity=static", "sparsity.density=0.5", "model.hidden=[24]", "schedule.epochs=1", "output.root=source")
    assert run(*source, "data.val_fraction=0.8", "tracking=none", cwd=tmp_path).code == 0
    folder = run_folder(tmp_path / "source")
    given = {
        "init": ("sparsity.init.name=file", f"sparsity.init.path={folder}", "sparsity.density=null",
                 "sparsity.distribution.name=none"),
        "distribution": ("sparsity.distribution.name=from_run", f"sparsity.distribution.path={folder}"),
    }[slot]  # fmt: skip
    assert run(*LEVELS, *given, "output.root=whole", cwd=tmp_path).code == 0
    reference = traces(run_folder(tmp_path / "whole"))
    assert run(*LEVELS, *given, cwd=tmp_path, fault=fault).code == -9
    if fault != "kill:step:3":  # nothing has been saved by then
        digest = read_run(run_folder(tmp_path / "outputs"))["config"][f"sparsity.{slot}.digest"]
        given += (f"sparsity.{slot}.digest={digest}",)
        shutil.rmtree(folder)
    result = run(*LEVELS, *given, cwd=tmp_path)
    assert result.code == 0, result.output
    assert_same(tmp_path, reference)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("step", [25, 30])  # 30 is an update
def test_divergence_stops_before_the_step_and_is_not_tried_again(where, step, tmp_path):
    options = ("sparsity=rigl_itop", *SMALL)
    result = run(*options, cwd=tmp_path, fault=f"nan:{where}:{step}")
    assert result.code == 3
    folder = run_folder(tmp_path / "outputs")
    status = read_status(folder)
    assert status["state"] == "diverged"
    assert f"not finite at step {step}" in status["error"]
    newest = max((folder / "checkpoints").glob("*.json"))
    assert json.loads(newest.read_text())["step"] == (step - 1) // 7 * 7
    again = run(*options, cwd=tmp_path)
    assert again.code == 3
    assert "is diverged already, nothing was trained" in again.output


@pytest.mark.parametrize(("number", "what", "step"), [(2, "validation set", 42), (7, "test set", 126)])
def test_logits_that_are_not_finite_in_evaluation_alone_diverge(number, what, step, tmp_path):
    """Training does not show them: its batches, or its precision, are others."""
    assert run("sparsity=static", *SMALL, cwd=tmp_path, fault=f"nan:evaluation:{number}").code == 3
    folder = run_folder(tmp_path / "outputs")
    status = read_status(folder)
    assert (status["state"], status["step"]) == ("diverged", step)
    assert f"the loss on the {what} is nan: it is not finite at step {step}" in status["error"]
    assert not (folder / "summary.json").exists()
    assert all(row.get("val/loss", 0) is not None for row in read_metrics(folder))


def test_weights_are_untouched_by_a_non_finite_step(tmp_path):
    """The state that a checkpoint after the bad step would hold is the one before it."""
    import torch
    from torch import nn

    from dst.training.guard import DivergedError, Guard

    for optimizer_class in (torch.optim.SGD, torch.optim.AdamW):
        model = nn.Linear(3, 2)
        optimizer = optimizer_class(model.parameters(), 0.1, fused=True)
        guard = Guard(optimizer, model)
        for factor in (1.0, float("nan")):
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3)).sum() * factor
            loss.backward()
            guard.note(1, guard.judge(loss.detach()))
            optimizer.step()
            moved = any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            assert moved == (factor == 1.0)
            if factor == 1.0:
                guard.check()
            else:
                with pytest.raises(DivergedError, match="step 1"):
                    guard.check()


@pytest.mark.parametrize("damage", ["flip", "truncate", "no_manifest", "garbage_manifest"])
def test_newest_valid_checkpoint_wins(damage, tmp_path, references):
    options = ("sparsity=rigl_itop", "schedule.select=best_val", *SMALL)
    assert run(*options, cwd=tmp_path, fault="kill:step:30").code == -9
    folder = run_folder(tmp_path / "outputs") / "checkpoints"
    data, manifest = folder / "step_000000028.pt", folder / "step_000000028.json"
    content = bytearray(data.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "truncate":
        data.write_bytes(content[:100])
    elif damage == "no_manifest":
        manifest.unlink()
    else:
        manifest.write_text("{")
    result = run(*options, cwd=tmp_path)
    assert result.code == 0
    assert "continuing from step 21" in result.output
    assert ("passing over checkpoint step_000000028" in result.output) == (damage != "no_manifest")
    assert_same(tmp_path, references("rigl_itop", "schedule.select=best_val"))


def test_a_checkpoint_that_cannot_be_read_now_stops_the_run_until_it_can(tmp_path, references):
    assert run("sparsity=set_itop", *SMALL, cwd=tmp_path, fault="kill:step:30").code == -9
    folder = run_folder(tmp_path / "outputs")
    data = folder / "checkpoints" / "step_000000028.pt"
    data.rename(tmp_path / "kept")
    data.symlink_to(data)
    before = sorted(path.name for path in data.parent.iterdir())
    for _ in range(2):
        result = run("sparsity=set_itop", *SMALL, cwd=tmp_path)
        assert result.code == 1
        status = read_status(folder)
        assert status["state"] == "failed"
        assert "step_000000028.pt cannot be read now" in status["error"]
        assert sorted(path.name for path in data.parent.iterdir()) == before
    data.unlink()
    (tmp_path / "kept").rename(data)
    result = run("sparsity=set_itop", *SMALL, cwd=tmp_path)
    assert "continuing from step 28" in result.output
    assert_same(tmp_path, references("set_itop"))


def test_a_checkpoint_copied_from_another_seed_is_refused(tmp_path, references):
    for seed in (0, 1):
        assert run("sparsity=set_itop", f"seed={seed}", *SMALL, cwd=tmp_path, fault="kill:step:30").code == -9
    by_seed = {read_run(folder)["config"]["seed"]: folder for folder in find_runs(tmp_path / "outputs")}
    mine, other = by_seed[0] / "checkpoints", by_seed[1] / "checkpoints"
    kept = {path.name: path.read_bytes() for path in mine.iterdir()}
    for path in other.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    result = run("sparsity=set_itop", *SMALL, cwd=tmp_path)
    assert result.code == 1
    assert f"is of run {by_seed[1].name}, not of run {by_seed[0].name}" in read_status(by_seed[0])["error"]
    for name, content in kept.items():
        (mine / name).write_bytes(content)
    assert run("sparsity=set_itop", *SMALL, cwd=tmp_path).code == 0
    shutil.rmtree(by_seed[1])
    assert_same(tmp_path, references("set_itop"))


def test_without_a_status_the_attempts_and_the_history_are_still_those_of_the_run(tmp_path, references):
    assert run("sparsity=set_itop", *SMALL, cwd=tmp_path, fault="kill:step:34").code == -9
    folder = run_folder(tmp_path / "outputs")
    (folder / "status.json").unlink()
    assert run("sparsity=set_itop", *SMALL, cwd=tmp_path).code == 0
    assert (read_status(folder)["attempt"], len(read_attempts(folder))) == (2, 2)
    assert_same(tmp_path, references("set_itop"))


def test_full_disk_fails_clearly_and_loses_nothing(tmp_path, references):
    """Histories and small files still fit under the limit, checkpoints do not."""
    options = ("sparsity=set_itop", *SMALL)
    assert run(*options, cwd=tmp_path, fault="kill:step:30").code == -9
    size = (run_folder(tmp_path / "outputs") / "checkpoints" / "step_000000028.pt").stat().st_size
    result = run(*options, cwd=tmp_path, fault=f"fsize:{size // 2}")
    assert result.code == 1
    status = read_status(run_folder(tmp_path / "outputs"))
    assert status["state"] == "failed"
    assert "step_000000035.pt" in status["error"]
    assert "cannot write checkpoint" in status["error"]
    result = run(*options, cwd=tmp_path)
    assert "continuing from step 28" in result.output
    assert_same(tmp_path, references("set_itop"))


# -- runs that were begun before there were phases ---------------------------------------------------------------------


def test_a_run_goes_on_from_checkpoints_that_know_no_phases(tmp_path, references):
    """As if they were of the code before: neither the manifest nor the counters have one."""
    import torch

    options = ("sparsity=rigl_itop", "schedule.select=best_val", *SMALL)
    assert run(*options, cwd=tmp_path, fault="kill:step:30").code == -9
    for manifest in (run_folder(tmp_path / "outputs") / "checkpoints").glob("*.json"):
        said, data = json.loads(manifest.read_text()), manifest.with_suffix(".pt")
        assert said.pop("phase") == 0
        state = torch.load(data, weights_only=True)
        state["counters"].pop("phase", None)
        torch.save(state, data)
        manifest.write_text(json.dumps(said | {"bytes": data.stat().st_size, "sha256": file_sha256(data)}))
    result = run(*options, cwd=tmp_path)
    assert result.code == 0
    assert "continuing from step 28" in result.output
    assert_same(tmp_path, references("rigl_itop", "schedule.select=best_val"))


def test_a_run_of_the_code_before_phases_goes_on(tmp_path):
    """A real one, of 63 steps, stopped after 40. Not strict: other code may continue it."""
    folder = unpack(tmp_path / "outputs", BEFORE_PHASES) / "f7fa3ea57e6c"
    before = read_metrics(folder), read_layers(folder)
    command = read_run(folder)["command"].replace("'", "").split()[2:]
    result = run(*command, cwd=tmp_path)
    assert result.code == 0, result.output
    assert run_folder(tmp_path / "outputs") == folder
    assert "continuing from step 40, 63 steps" in result.output
    assert "continuing run f7fa3ea57e6c with changed the code (was b2f5aa46f0a51e14 at" in result.output
    status, summary = read_status(folder), read_summary(folder)
    assert (status["state"], status["attempt"], status["step"]) == ("done", 2, 63)
    assert summary["sparsity/active"] == 118
    metrics, layers = read_metrics(folder), read_layers(folder)
    assert metrics[: len(before[0])] == before[0]
    assert layers[: len(before[1])] == before[1]
    assert [row["step"] for row in metrics[len(before[0]) :]] == [42, 50, 60, 63]
    assert [row["step"] for row in layers[len(before[1]) :: 2]] == [50, 60]
    # What is counted, and no rounding changes, is that of a run that was never stopped.
    undisturbed = run(*command, "output.resume=never", "output.root=again", cwd=tmp_path)
    assert undisturbed.code == 0
    other = run_folder(tmp_path / "again")
    counted = ("flops/train", "sparsity/active", "model/parameters", "model/maskable", "flops/test_ratio")
    assert {name: summary[name] for name in counted} == {name: read_summary(other)[name] for name in counted}
    assert [row["step"] for row in metrics] == [row["step"] for row in read_metrics(other)]
