"""Repairs of first masks in whole runs: told, on record, done once, refused before anything trains."""

import pytest

from dst.records.catalog import find_runs
from dst.records.read import read_layers, read_run, read_summary
from tests.processes import run, run_folder, traces

pytestmark = pytest.mark.slow

SMALL = (
    *("sparsity.density=0.02", "schedule.epochs=4", "schedule.update_every=10", "checkpoint.every_steps=7"),
    *("tracking=none", "tracking.progress=none", "hardware.threads=1"),
)
BOTH = ("sparsity.repair.orthogonal=true", "sparsity.update.grown_weights=initial")


@pytest.mark.parametrize("flow", ["add", "move"])
def test_a_repaired_run_goes_on_bit_identical_after_kills(flow, tmp_path):
    options = ("sparsity=rigl_itop", *SMALL, f"sparsity.repair.flow={flow}", *BOTH)
    (tmp_path / "undisturbed").mkdir()
    first = run(*options, cwd=tmp_path / "undisturbed")
    assert first.code == 0, first.output
    assert first.output.count("repair.flow: ") == first.output.count("repair.orthogonal: ") == 1
    (tmp_path / "killed").mkdir()
    told = []
    for step in (3, 30, 50):  # the first one before there is a checkpoint with a step in it
        result = run(*options, cwd=tmp_path / "killed", fault=f"kill:step:{step}")
        assert result.code == -9
        told.append(result.output.count("repair.flow: "))
    last = run(*options, cwd=tmp_path / "killed")
    assert last.code == 0, last.output
    assert (told, last.output.count("repair.flow: ")) == ([1, 1, 0], 0)
    folders = [run_folder(tmp_path / name / "outputs") for name in ("undisturbed", "killed")]
    assert traces(folders[0]) == traces(folders[1])
    assert read_run(folders[0])["repair"] == read_run(folders[1])["repair"]


def test_what_was_mended_is_on_record_and_adds_up(tmp_path):
    folders = {}
    for flow in ("none", "add", "move"):
        (tmp_path / flow).mkdir()
        options = [] if flow == "none" else [f"sparsity.repair.flow={flow}"]
        result = run("sparsity=static", *SMALL, *options, cwd=tmp_path / flow)
        assert result.code == 0, result.output
        folders[flow] = run_folder(tmp_path / flow / "outputs")
    rows = {
        flow: {row["layer"]: row["active"] for row in read_layers(folder) if row["step"] == 0}
        for flow, folder in folders.items()
    }
    assert "repair" not in read_run(folders["none"])
    for flow in ("add", "move"):
        (kind,) = read_run(folders[flow])["repair"].items()
        assert kind[0] == "flow"
        for layer in kind[1]:
            assert layer["added"] - layer["removed"] == rows[flow][layer["layer"]] - rows["none"][layer["layer"]]
    totals = {flow: sum(counts.values()) for flow, counts in rows.items()}
    assert totals["none"] == totals["move"] == 1_690 < totals["add"]
    assert read_summary(folders["add"])["sparsity/active"] == totals["add"]
    # The paths of one sample, forward and backward, through the full network, the given masks and the mended ones.
    trained = {flow: read_summary(folder)["flops/train"] for flow, folder in folders.items()}
    assert trained["move"] - trained["none"] == 9 * 2 * 84_480


def test_too_few_edges_to_move_are_refused_before_anything_trains(tmp_path):
    result = run("sparsity=static", *SMALL, "sparsity.density=0.002", "sparsity.repair.flow=move", cwd=tmp_path)
    assert result.code == 2
    told = "sparsity.repair.flow=move: 169 active weights are too few at first: the units of the 3 layers need 768 to"
    assert told in result.output
    assert find_runs(tmp_path / "outputs") == []


def test_tickets_are_superposed_at_the_density_that_a_repair_has_raised_them_to(tmp_path):
    cycles = ("procedure=sup_tickets", "procedure.pretrain_epochs=2", "procedure.cycle_epochs=1")
    options = ("sparsity=rigl_itop", *SMALL, "sparsity.repair.flow=add", *cycles)
    result = run(*options, cwd=tmp_path)
    assert result.code == 0, result.output
    folder = run_folder(tmp_path / "outputs")
    first = sum(row["active"] for row in read_layers(folder) if row["step"] == 0)
    assert read_summary(folder)["sparsity/active"] == first > 1_690
