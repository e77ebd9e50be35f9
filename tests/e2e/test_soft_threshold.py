"""STR from the command line: thresholds on record, plain sparse networks at the end, and settings that cannot work."""

import re

import pytest
import torch

from dst.config.checks import check
from dst.config.schema import ConfigError, complete
from dst.records.read import read_layers, read_metrics, read_summary
from dst.run import feasible
from dst.run.build import build
from dst.training.checkpoint import Checkpoints
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag
from tests.composed import compose_cells
from tests.processes import run, run_folder, traces
from tests.sparsity.test_catalogue import ADAMW, CONF, composed

SILENT = ("tracking=none", "tracking.progress=none", "hardware.threads=1")
SHORT = ("model.hidden=[32,16]", "schedule.epochs=4", "schedule.update_every=10", *SILENT)  # 84 steps
STR = ("sparsity=str", "sparsity.reparametrize.threshold_init=-4", *SHORT)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a finished run, and what it printed."""
    folder = tmp_path_factory.mktemp("str")
    result = run(*STR, cwd=folder)
    assert result.code == 0, result.output
    return run_folder(folder / "outputs"), result.output


def saved(folder):
    return Checkpoints(folder / "checkpoints").load_newest()


# -- on record ---------------------------------------------------------------------------------------------------------


def test_thresholds_and_sparsity_of_every_layer_are_on_record(ended):
    folder, output = ended
    rows = read_layers(folder)
    assert sorted({row["step"] for row in rows}) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 84]
    assert {row["layer"] for row in rows} == {"fc1", "fc2", "fc3"}
    first, last = ([row for row in rows if row["step"] == step] for step in (0, 84))
    assert [row["threshold"] for row in first] == pytest.approx([0.0179862] * 3, rel=1e-5)
    assert len({row["threshold"] for row in last}) == 3
    assert sum(row["active"] for row in last) < sum(row["active"] for row in first)
    state = saved(folder)
    thresholds = {name: float(s.sigmoid()) for name, s in state["sparsifier"]["learned"]["s"].items()}
    assert {row["layer"]: row["threshold"] for row in last} == pytest.approx(thresholds, rel=1e-6)
    assert {row["layer"]: row["active"] for row in last} == {
        name: int(state["model"][f"{name}.weight"].count_nonzero()) for name in thresholds
    }
    by_step = read_metrics(folder)
    logged = [row["sparsity/threshold"] for row in by_step if "sparsity/threshold" in row]
    assert logged[-1] == pytest.approx(sum(thresholds.values()) / 3, rel=1e-6)
    summary = read_summary(folder)
    assert summary["sparsity/active"] == sum(row["active"] for row in last)
    table = [line.split() for line in output.splitlines() if line.startswith("  fc") or line.startswith("  layer")]
    assert table[0][-1] == table[4][-1] == "threshold"
    assert [line[-1] for line in table[5:]] == [f"{row['threshold']:.3g}" for row in last]


def test_other_methods_have_no_thresholds(tmp_path):
    result = run("sparsity=rigl", *SHORT, "schedule.epochs=1", cwd=tmp_path)
    folder = run_folder(tmp_path / "outputs")
    assert "threshold" not in result.output
    assert not any("threshold" in row for row in read_layers(folder))
    assert not any("sparsity/threshold" in row for row in read_metrics(folder))


def test_the_final_network_is_plain_weights_and_masks(ended):
    state = saved(ended[0])
    names = [f"fc{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")]
    assert list(state["model"]) == names or sorted(state["model"]) == sorted(names)
    for name, mask in state["sparsifier"]["masks"].items():
        assert torch.equal(mask, state["model"][f"{name}.weight"] != 0)


def test_another_run_goes_on_with_the_network(ended, tmp_path):
    """Its masks and weights, trained by a static method: tested at once it is as good."""
    folder, _ = ended
    start = (f"model.weights={folder}", "sparsity.init.name=file", f"sparsity.init.path={folder}")
    method = ("sparsity=static", "sparsity.density=null", "sparsity.distribution.name=none")
    still = ("schedule.lr.peak=1e-12", "schedule.max_steps=1", "schedule.optimizer.weight_decay=0")
    result = run(*method, *start, *SHORT, *still, cwd=tmp_path)
    assert result.code == 0, result.output
    theirs, mine = read_summary(folder), read_summary(run_folder(tmp_path / "outputs"))
    assert mine["sparsity/active"] == theirs["sparsity/active"]
    assert mine["test/accuracy"] == theirs["test/accuracy"]
    assert mine["flops/test"] == theirs["flops/test"]


def test_ratios_induced_by_str(ended, tmp_path):
    """The layer ratios that thresholds have found, for a random mask."""
    ratios = ("sparsity.distribution.name=from_run", f"sparsity.distribution.path={ended[0]}", "sparsity.density=0.05")
    result = run("sparsity=static", *SHORT, "schedule.epochs=1", *ratios, cwd=tmp_path)
    assert result.code == 0, result.output
    theirs = {row["layer"]: row["active"] for row in read_layers(ended[0]) if row["step"] == 84}
    mine = {row["layer"]: row["active"] for row in read_layers(run_folder(tmp_path / "outputs")) if row["step"] == 0}
    scale = sum(mine.values()) / sum(theirs.values())
    assert mine == pytest.approx({name: count * scale for name, count in theirs.items()}, abs=1)


RESUMED = (*STR, "schedule.epochs=2", "checkpoint.every_steps=4", "tracking.every_steps=3", "correction=agent")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result = run(*RESUMED, cwd=folder)
    assert result.code == 0, result.output
    return traces(run_folder(folder / "outputs"))


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_goes_on_bit_identically(undisturbed, tmp_path):
    """Inside an interval, within a count, after one, and at the end; its records too."""
    for fault in ("step:13", "update:5", "checkpoint:4", "step:40", "evaluate:2", "summary:1"):
        assert run(*RESUMED, cwd=tmp_path, fault=f"kill:{fault}").code == -9, fault
    result = run(*RESUMED, cwd=tmp_path)
    assert result.code == 0, result.output
    found = traces(run_folder(tmp_path / "outputs"))
    for part, content in undisturbed.items():
        assert found[part] == content, part


# -- any network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "more"),
    [("resnet20", ()), ("vit_tiny", ADAMW), ("vit_tiny", ()), ("lenet_300_100", ("correction=agent",))],
)
def test_convolutions_attention_and_corrected_gradients(model, more):
    options = (
        "sparsity.reparametrize.threshold_init=-5",
        "schedule.max_steps=3",
        "sparsity.reparametrize.every=1",
        *more,
    )
    training = build(composed("str", model, options)).training
    sparsifier = training.sparsifier
    first = sparsifier.thresholds
    training.run(NoObserver(), StopFlag())
    sparsifier.verify()
    assert all(now != then for now, then in zip(sparsifier.thresholds, first, strict=True))
    for layer, edges, mask, weight in zip(
        sparsifier.topology.layers,
        sparsifier.weights.masks,
        sparsifier.topology.masks,
        sparsifier.weights.weights,
        strict=True,
    ):
        assert not torch.any(layer.weight[~edges])
        assert torch.equal(mask, weight != 0), layer.name
    assert 0 < sparsifier.density < sparsifier.edge_density


# -- settings ----------------------------------------------------------------------------------------------------------


def outlook(*overrides):
    """Return the warnings about a command that is valid."""
    ((_, config),) = compose_cells(CONF, ["sparsity=str", *SHORT, *overrides], multirun=False)
    assert check(config) == []
    return feasible.check(complete(config))


def test_classic_str_has_no_mask_besides():
    dense = ("sparsity.distribution.name=dense", "sparsity.density=null")
    assert outlook(*dense, "sparsity.reparametrize.threshold_init=-5") == []


def test_a_start_above_the_weights_ends_with_code_2_before_anything_is_recorded(tmp_path):
    result = run(*STR, "sparsity.reparametrize.threshold_init=-1", cwd=tmp_path)
    assert result.code == 2
    told = r"sparsity\.reparametrize\.threshold_init=-1: .* layer fc1 .* choose (\S+) at most"
    most = re.search(told, result.output)
    assert most, result.output
    assert not [*tmp_path.rglob("run.json"), *tmp_path.rglob("config.yaml")]
    assert outlook(f"sparsity.reparametrize.threshold_init={most[1]}") == []


@pytest.mark.parametrize(
    "method",
    [
        "sparsity.distribution.name=snip sparsity.init.name=saliency sparsity.init.criterion=snip",
        "sparsity.repair.flow=add",
    ],
)
def test_masks_that_look_at_data_are_left_to_the_run(method):
    """A start above all weights of a layer is seen beforehand, one above those in its mask when the run is built."""
    start = "sparsity.reparametrize.threshold_init"
    with pytest.raises(ConfigError, match=rf"{start}=-1: "):
        outlook(*method.split(), f"{start}=-1")
    ((_, config),) = compose_cells(CONF, ["sparsity=str", *SHORT, *method.split(), f"{start}=-1"], multirun=False)
    with pytest.raises(ValueError, match=rf"^{start}=-1: .* layer fc1 "):
        build(complete(config))


def test_what_is_looked_at_beforehand_are_the_weights_and_masks_of_the_run():
    ((_, config),) = compose_cells(CONF, list(STR), multirun=False)
    config = complete(config)
    ahead = feasible.learned_masks(config, feasible.load_dataset(config))
    begun = build(config).training.sparsifier
    for ours, edges, now, active in zip(
        ahead._edges.masks, begun.weights.masks, ahead.active(), begun.topology.masks, strict=True
    ):
        assert torch.equal(ours, edges)
        assert torch.equal(now & ours, active)


def test_a_setting_that_cannot_prune_warns_with_values_that_can():
    never = ("sparsity.reparametrize.threshold_init=-200", "sparsity.reparametrize.threshold_decay=1e-3")
    (warning,) = outlook(*never)
    better = re.findall(r"(sparsity\.reparametrize\.threshold_\w+)=(\S+?)(?= or|$)", warning)
    assert [key.rpartition("_")[2] for key, _ in better] == ["decay", "init"]
    for key, value in better:
        assert outlook(*never, f"{key}={value}") == []
    assert len(outlook("sparsity.reparametrize.threshold_decay=0")) == 1


def test_a_sweep_warns_once_of_each_cell(tmp_path):
    """Seeds make no difference, rates do: the warning is about them as well."""
    cells = (
        "seed=0,1",
        "schedule.lr.peak=0.1,0.01",
        "sparsity.reparametrize.threshold_init=-200",
        "schedule.max_steps=1",
    )
    result = run("-m", "sparsity=str", *SHORT, *cells, cwd=tmp_path)
    assert result.code == 0, result.output
    warnings = [line for line in result.output.splitlines() if line.startswith("warning: ") and "hardly" in line]
    assert len(set(warnings)) == len(warnings) in (1, 2)
    assert all(("cells" in line) == (len(warnings) == 2) for line in warnings)
    assert "warning" not in run(*STR, "schedule.max_steps=5", cwd=tmp_path).output


def test_the_best_by_validation_would_be_an_early_one():
    ((_, config),) = compose_cells(CONF, ["sparsity=str", "schedule.select=best_val"], multirun=False)
    (problem,) = check(config)
    assert problem.startswith("schedule.select=best_val: with sparsity.reparametrize.name=soft_threshold ")


def test_the_default_prunes_on_the_default_schedule():
    ((_, config),) = compose_cells(CONF, ["sparsity=str", "hardware.threads=1", "tracking=none"], multirun=False)
    training = build(complete(config)).training
    training.run(NoObserver(), StopFlag())
    assert training.sparsifier.density < 0.26 < training.sparsifier.edge_density
    assert training.counters.val_accuracy > 0.95
