"""Runs with packed weights that are killed, again and again: bit-identical to undisturbed ones."""

import shutil

import pytest

from dst.records.read import read_layers
from tests.chaos.test_distributed import codes
from tests.chaos.test_resume import ADAM, CORRECTED, SMALL, assert_same
from tests.processes import run, run_folder, run_together, traces

pytestmark = pytest.mark.slow

PACKED = (*SMALL, "model.hidden=[64,32]", "sparsity.compute=packed")
RAMP = ("sparsity.density_schedule.end=0.9",)
CASES = {
    "rigl": (("sparsity=rigl",), ("step:16", "update:4", "step:93")),
    "rigl_itop, adam": (("sparsity=rigl_itop", *ADAM), ("step:26", "update:5", "checkpoint:8")),
    "granet within its ramp": (("sparsity=granet", *RAMP), ("step:12", "update:3", "step:71", "half_written:2")),
    "gmp within its ramp": (("sparsity=gmp", *RAMP), ("step:1", "step:40", "step:65", "evaluate:2")),
    "dsb": (
        ("sparsity=dsb", "sparsity.pattern.regroup_every_updates=2"),
        ("step:16", "update:4", "update:5", "step:93"),
    ),
    "snfs, corrected": (("sparsity=snfs", *CORRECTED), ("update:2", "step:21", "pass:30")),
}


@pytest.fixture
def places(tmp_path, folder, kernels):
    """Two folders to run in, where kernels are built already."""
    for name in ("undisturbed", "killed"):
        shutil.copytree(folder, tmp_path / name / "outputs" / ".kernels")
        (tmp_path / name / "outputs" / ".kernels").chmod(0o700)
    return tmp_path / "undisturbed", tmp_path / "killed"


@pytest.mark.parametrize("name", CASES)
def test_kills_leave_no_trace(name, places):
    options, faults = CASES[name]
    undisturbed, killed = places
    result = run(*PACKED, *options, cwd=undisturbed)
    assert result.code == 0, result.output
    for fault in faults:
        assert run(*PACKED, *options, cwd=killed, fault=f"kill:{fault}").code == -9, fault
    result = run(*PACKED, *options, cwd=killed)
    assert result.code == 0, result.output
    assert_same(killed, traces(run_folder(undisturbed / "outputs")))
    counts = {row["active"] for row in read_layers(run_folder(killed / "outputs")) if row["layer"] == "fc1"}
    assert len(counts) > 5 if "ramp" in name else counts


def test_kills_of_one_of_two_processes(places, tmp_path):
    options = (*PACKED, "sparsity=granet", *RAMP, "hardware.processes=2", f"data.cache={tmp_path / 'cache'}")
    undisturbed, killed = places
    assert codes(run_together(*options, cwd=undisturbed)) == [0, 0]
    assert codes(run_together(*options, cwd=killed, faults=("", "kill:step:30"))) == [1, -9]
    assert codes(run_together(*options, cwd=killed, faults=("kill:update:3", ""))) == [-9, 1]
    assert codes(run_together(*options, cwd=killed)) == [0, 0]
    assert_same(killed, traces(run_folder(undisturbed / "outputs")))
