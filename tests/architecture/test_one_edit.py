"""One edit adds an option: in the one file of its member or group, and everything else knows of it."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.processes import REPOSITORY

SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path
from dst.cli import main

told = []
for arguments in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(arguments, Path("conf"))
    told.append((code, out.getvalue()))
assert "torch" not in sys.modules
import torch
from functools import partial
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.drop import magnitude
model = torch.nn.Linear(8, 8)
try:
    exec(sys.argv[2])
    told.append((0, ""))
except ValueError as error:
    told.append((1, str(error)))
print(json.dumps(told))
"""
TINY = ["model.hidden=[8]", "schedule.epochs=1", "schedule.update_every=5", "hardware.threads=1", "tracking=none"]
SPARSIFIER = "Sparsifier(model, torch.optim.SGD(model.parameters(), 0.1), density=0.5, {})"

EDITS = {
    "an option of a member": {
        "file": "dst/sparsity/drop.py",
        "old": "def magnitude(layer: LayerView) -> Tensor:\n",
        "new": "def magnitude(\n    layer: LayerView,\n    *,\n"
        '    power: Annotated[float, Range(0, 4, "(]"), "of the magnitude"] = 1.0,\n) -> Tensor:\n',
        "then": ("return layer.weight.abs()\n", "return layer.weight.abs() ** power\n"),
        "key": "sparsity.drop.power",
        "shown": ["    value: null\n", "    power: null\n"],
        "keys": "sparsity.drop.power: float = 1.0   [in (0, 4]]\n    magnitude: of the magnitude\n",
        "good": "2.0",
        "bad": ("5", "sparsity.drop.power=5.0: must be in (0, 4]"),
        "elsewhere": ("sparsity.drop.name=random", "power=2.0 would be ignored: drop 'random' takes no options"),
        "core": SPARSIFIER.format(
            "plan=UpdatePlan(every=1, total_steps=9), grow='random', drop=partial(magnitude, power=5)"
        ),
        "told": "drop: power=5: must be in (0, 4]",
    },
    "an option of a curve": {
        "file": "dst/sparsity/drop_fraction.py",
        "old": "initial: Initial, floor: Floor = 0.0, horizon: Horizon",
        "new": 'initial: Initial, floor: Floor = 0.0, cycles: Annotated[int, Range(1, 9), "of"] = 1, horizon: Horizon',
        "then": ("math.cos(math.pi * ", "math.cos(cycles * math.pi * "),
        "key": "sparsity.drop_fraction.cycles",
        "shown": ["    floor: 0.005\n", "    cycles: null\n"],
        "keys": "sparsity.drop_fraction.cycles: int = 1   [in [1, 9]]\n    cosine, linear: of\n",
        "good": "2",
        "bad": ("0", "sparsity.drop_fraction.cycles=0: must be in [1, 9]"),
        "elsewhere": (
            "sparsity.drop_fraction.name=constant",
            "cycles=2 would be ignored: drop_fraction 'constant' takes initial",
        ),
        "core": "from dst.sparsity.drop_fraction import cosine\n"
        "cosine(UpdatePlan(every=1, total_steps=9), initial=0.3, cycles=10)",
        "told": "cosine: cycles=10: must be in [1, 9]",
    },
    "a field of a group": {
        "file": "dst/sparsity/options.py",
        "old": "    regrow: Annotated[bool,",
        "new": '    patience: Annotated[int, Range(0, 9), "of updates"] = 0\n    regrow: Annotated[bool,',
        "then": ("", ""),
        "key": "sparsity.update.patience",
        "shown": ["    order: after_step\n", "    patience: 0\n"],
        "keys": "sparsity.update.patience: int = 0   [in [0, 9]]\n    of updates\n",
        "good": "3",
        "bad": ("10", "sparsity.update.patience=10: must be in [0, 9]"),
        "elsewhere": ("sparsity=static", "sparsity.update.patience=3 would be ignored: sparsity 'static"),
        "core": "UpdatePlan(every=1, total_steps=9, patience=10)",
        "told": "patience=10: must be in [0, 9]",
    },
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_one_edit_adds_an_option(edit, tmp_path):
    for name in ("dst", "conf", "run.py"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tmp_path / name)
    path = tmp_path / edit["file"]
    source = path.read_text()
    for old, new in ((edit["old"], edit["new"]), edit["then"]):
        assert old in source
        source = source.replace(old, new)
    path.write_text(source)
    key, (bad, refused), (elsewhere, ignored) = edit["key"], edit["bad"], edit["elsewhere"]
    good = f"{key}={edit['good']}"
    commands = [["--cfg", "job"], ["--keys", key], [f"{key}={bad}"], [good, elsewhere]]
    script = [sys.executable, "-c", SCRIPT, json.dumps(commands), edit["core"]]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown, keys, out_of_range, of_another, core = json.loads(done.stdout)
    assert shown[0] == keys[0] == 0
    assert all(line in shown[1] for line in edit["shown"]), shown[1]
    assert keys[1] == edit["keys"]
    assert (out_of_range[0], of_another[0]) == (2, 2)
    assert refused in out_of_range[1]
    assert ignored in of_another[1]
    assert core == [1, edit["told"]]
    run = [sys.executable, "run.py", *TINY, good]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = tmp_path.glob("outputs/default/*/run.json")
    assert json.loads(record.read_text())["config"][key] == json.loads(edit["good"])
