"""What must start fast imports little: help, a config that is shown, every refusal that needs no data.

How long it takes differs between machines; what is imported does not. PyTorch alone takes seconds.
"""

import json
import os
import shlex
import subprocess
import sys

from tests.architecture.rooms import REPOSITORY
from tests.golden.facts import REFUSED

HEAVY = {"torch", "torchvision", "numpy", "pandas", "sklearn", "matplotlib", "wandb"}
BESIDES = {"hydra", "omegaconf", "yaml", "submitit"}
"""Help and keys do without these as well."""
SOME = (
    # shown
    ("--help", 0),
    ("--keys sparsity. --markdown", 0),
    ("--cfg job", 0),
    ("sparsity=rigl --cfg job --resolve -p sparsity.update", 0),
    # a bad flag, prefix, key, type, value, group; an option that is ignored; what cannot go together
    ("--bogus", 2),
    ("--keys modle", 2),
    ("--cfg job -m", 2),
    ("sparsity.densty=0.1", 2),
    ("sparsity.density=many", 2),
    ("sparsity.density=2", 2),
    ("sparsity=rigl_itp", 2),
    ("sparsity=static sparsity.update.every=10", 2),
    ("sparsity=granet sparsity.density_schedule.end=0.9 sparsity.update.stop=0.8", 2),
    # sweeps, launchers, processes, tracking
    ("-m sparsity=static,rigl sparsity.density=0.1,3", 2),
    ("-m hydra/launcher=local seed=-1,-2", 2),
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
    "correction=agent schedule.batch_size=2000 schedule.update_every=5",  # one batch an epoch
    "sparsity=snip sparsity.distribution.batches=1000",
    "sparsity.density=0.00001",
    "sparsity=edge_popup procedure=anneal schedule.max_steps=100",  # the number of steps
    "model.init=fan_in",  # whether the network has convolutions
    "model=resnet18 model.bias_scale=0",  # and biases
    "data=image_folder data.root=nowhere",  # the reader of the set says what it looked for
    "data=tabular data.path=nowhere.csv data.target=y",
    "data=tabular data.path=wine model=vgg_c",  # the number of features
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


def test_help_imports_neither_hydra_nor_much_else(tmp_path):
    found = modules("--help", cwd=tmp_path, code=0)
    assert "dst" in packages(found)
    assert not (HEAVY | BESIDES) & packages(found)
    assert len(found) < 200, f"{len(found)} modules: each takes about a millisecond"


def test_keys_are_shown_with_neither_torch_nor_hydra(tmp_path):
    assert not (HEAVY | BESIDES) & packages(modules("--keys", cwd=tmp_path, code=0))


def test_a_refusal_imports_no_torch_from_its_first_line_on(tmp_path):
    found = packages(modules("sparsity=rigl_itp", cwd=tmp_path, code=2))
    assert "hydra" in found
    assert not HEAVY & found


ALL = """
import contextlib, io, json, sys
from pathlib import Path
from dst.cli import main
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(arguments, conf=Path(sys.argv[1]))
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
"""Carries out one command after another; a module that the first one has imported is there ever after."""


def test_what_needs_no_data_imports_no_torch(tmp_path):
    """With all refusals of the golden facts; those that need data are known one by one, so that no other joins them."""
    without_data = [command for command in REFUSED if command not in NEED_DATA]
    assert len(without_data) == len(REFUSED) - len(NEED_DATA)
    commands = [*SOME, *((command, 2) for command in without_data)]
    result = subprocess.run(
        [sys.executable, "-c", ALL, str(REPOSITORY / "conf")],
        input=json.dumps([shlex.split(command) for command, _ in commands]),
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seen = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(command, code) for (command, _), (code, _) in zip(commands, seen, strict=True)] == commands
    heavy = {command: HEAVY & set(loaded) for (command, _), (_, loaded) in zip(commands, seen, strict=True)}
    assert {command: names for command, names in heavy.items() if names} == {}
    assert list(tmp_path.iterdir()) == []
