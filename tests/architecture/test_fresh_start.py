"""What must start fast imports little: help, a config that is shown, every refusal that needs no data.

How long it takes differs between machines; what is imported does not. PyTorch alone takes seconds.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.architecture.rooms import REPOSITORY
from tests.golden.facts import REFUSED

HEAVY = {"torch", "torchvision", "numpy", "pandas", "sklearn", "matplotlib", "wandb"}
BESIDES = {"hydra", "omegaconf", "yaml", "submitit"}
"""Help and keys do without these as well."""
SOME = (
    # shown
    ("--help", 0),
    ("--cfg job", 0),
    ("sparsity=rigl --cfg job --resolve -p sparsity.update", 0),
    # a bad flag, key, type, value, group; an option that is ignored; what cannot go together
    ("--bogus", 2),
    ("--cfg job -m", 2),
    ("sparsity.densty=0.1", 2),
    ("sparsity.density=many", 2),
    ("sparsity.density=2", 2),
    ("sparsity=rigl_itp", 2),
    ("sparsity=static sparsity.update.every=10", 2),
    ("sparsity=granet sparsity.density_schedule.end=0.9 sparsity.update.stop=0.8", 2),
    # sweeps, launchers, processes, tracking
    ("-m sparsity=static,rigl sparsity.density=0.1,3", 2),
    ("-m hydra/launcher=local hydra.launcher.max_parallel=0", 2),
    ("-m hydra/launcher=local hydra.launcher.runs_per_job=2 hardware=ddp", 2),
    ("hardware=ddp", 2),
    ("tracking=wandb_online tracking.project=a/b", 2),
)
"""Command lines and their exit codes."""

NEED_DATA = {
    "sparsity.update.every=100000",  # the number of training samples says how many steps there are
    "model=resnet20 sparsity=nm_rigl sparsity.pattern.indivisible=error",  # the shape of the images
    "model=lenet_5 data.size=4",
    "sparsity=snip sparsity.distribution.batches=1000",
    "sparsity.density=0.00001",
    "model.weights=nowhere",  # files
    "data=image_folder data.root=nowhere",
}
"""Refusals of the golden facts for which more than the config is looked at."""


def modules(*arguments, cwd, code):
    """Return what ``python run.py`` imports with these arguments, in a process of its own."""
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "run.py"), *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def packages(names):
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(("command", "code"), SOME)
def test_what_needs_no_data_imports_no_torch(command, code, tmp_path):
    found = packages(modules(*command.split(), cwd=tmp_path, code=code))
    assert "dst" in found
    assert not HEAVY & found
    assert list(tmp_path.iterdir()) == []


def test_help_imports_neither_hydra_nor_much_else(tmp_path):
    found = modules("--help", cwd=tmp_path, code=0)
    assert not BESIDES & packages(found)
    assert len(found) < 200, f"{len(found)} modules: each takes about a millisecond"


def test_keys_are_shown_with_neither_torch_nor_hydra(tmp_path):
    assert not (HEAVY | BESIDES) & packages(modules("--keys", cwd=tmp_path, code=0))


ALL = """
import contextlib, io, json, shlex, sys
from pathlib import Path
from dst.cli import main
for command in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = main(shlex.split(command), conf=Path(sys.argv[1]))
    print(json.dumps([command, code, "torch" in sys.modules]))
"""
"""Carries out one command after another; a module that the first one has imported is there ever after."""


def test_all_refusals_of_the_golden_facts_that_need_no_data_import_no_torch(tmp_path):
    """Those that do need data are known one by one, so that none of the others joins them."""
    without_data = [command for command in REFUSED if command not in NEED_DATA]
    assert len(without_data) == len(REFUSED) - len(NEED_DATA)
    command = [sys.executable, "-c", ALL, str(REPOSITORY / "conf")]
    told = {"input": json.dumps(without_data), "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}, "cwd": tmp_path}
    lines = subprocess.run(command, **told, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [[command, 2, False] for command in without_data]
