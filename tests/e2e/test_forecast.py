"""A forecast is exact where it can be, records nothing, and adds up."""

import re

import pytest

from dst.records.read import read_summary
from tests.e2e.test_command_line import STEPS, TINY, tree
from tests.processes import run, run_folder


def rows(output):
    """Return the lines of the forecast's table as {run name: [cells behind it]}."""
    table = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines() if re.search(r"\d\.\d{3}e\+", line)]
    return {cells[0]: cells[1:] for cells in table}


def test_figures_are_those_of_the_run(tmp_path):
    result = run(*TINY, "--forecast", cwd=tmp_path)
    assert result.code == 0, result.output
    assert tree(tmp_path) in ([], ["outputs"])
    ((name, cells),) = rows(result.output).items()
    assert name == "digits mlp rigl_itop density=0.1 seed=0"
    parameters, active, steps, per_step, flops, ratio, *_ = cells
    assert run(*TINY, cwd=tmp_path).code == 0
    summary = read_summary(run_folder(tmp_path / "outputs"))
    assert (parameters, active, steps) == ("1,210", "118", str(STEPS))
    assert summary["model/parameters"] == 1210
    assert flops == f"{summary['flops/train']:.3e}"
    assert per_step == f"{summary['flops/train'] // STEPS:.3e}"
    assert ratio == f"{summary['flops/train_ratio']:.3f}"


def test_a_sweep_is_summed_and_what_is_done_costs_nothing(tmp_path):
    sweep = ("-m", "seed=0,1", "sparsity=static", *TINY)
    found = rows(run(*sweep, "--forecast", cwd=tmp_path).output)
    assert list(found) == [f"digits mlp static density=0.1 seed={seed}" for seed in (0, 1)] + ["sum of 2"]
    assert found["sum of 2"][0] == str(2 * STEPS)
    one = float(found["digits mlp static density=0.1 seed=0"][4])
    assert float(found["sum of 2"][1]) == pytest.approx(2 * one, rel=1e-3)
    assert run(*sweep, cwd=tmp_path).code == 0
    assert "nothing to train" in run(*sweep, "--forecast", cwd=tmp_path).output


def test_where_there_is_no_gpu_all_is_told_but_memory_and_time(tmp_path):
    without = {"CUDA_VISIBLE_DEVICES": ""}
    result = run("-m", "hardware=slurm", "seed=0,1", *TINY, "--forecast", cwd=tmp_path, env=without)
    assert result.code == 0, result.output
    assert tree(tmp_path) in ([], ["outputs"])
    here = rows(run("-m", "seed=0,1", *TINY, "--forecast", cwd=tmp_path).output)
    found = rows(result.output)
    for name, cells in here.items():
        counted = -3 if len(cells) > 5 else -1
        assert found[name] == [*cells[:counted], *["-"] * -counted]
    assert "not known here, since PyTorch finds no CUDA GPU" in result.output


def test_a_wrong_config_is_refused_before_anything_is_timed(tmp_path):
    result = run(*TINY, "--forecast", "sparsity.density=2", cwd=tmp_path)
    assert result.code == 2
    assert "sparsity.density=2.0" in result.output
