"""One edit adds an option: in the one file of its member or group, and everything else knows of it.

The edits are of different files, so that one copy of the package and one process can have them all.
"""

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

def command(arguments):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(arguments, Path("conf"))
    return code, out.getvalue()

def core(text):
    try:
        exec(text)
        return 0, ""
    except ValueError as error:
        return 1, str(error)

asked = json.load(sys.stdin)
told = {name: [command(arguments) for arguments in commands] for name, commands in asked["commands"].items()}
assert "torch" not in sys.modules
import torch
from functools import partial
from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.drop import magnitude
from dst.sparsity.drop_fraction import cosine
model = torch.nn.Linear(8, 8)
for name, text in asked["core"].items():
    told[name].append(core(text))
told["run"] = command(asked["run"])
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
        "core": "cosine(UpdatePlan(every=1, total_steps=9), initial=0.3, cycles=10)",
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


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A copy of the package with all edits, and what its commands, its core and a run with every new option say."""
    place = tmp_path_factory.mktemp("edited")
    for name in ("dst", "conf", "run.py"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, place / name)
    for edit in EDITS.values():
        path = place / edit["file"]
        source = path.read_text()
        for old, new in ((edit["old"], edit["new"]), edit["then"]):
            assert old in source
            source = source.replace(old, new)
        path.write_text(source)
    good = {name: f"{edit['key']}={edit['good']}" for name, edit in EDITS.items()}
    asked = {
        "commands": {
            name: [
                ["--cfg", "job"],
                ["--keys", edit["key"]],
                [f"{edit['key']}={edit['bad'][0]}"],
                [good[name], edit["elsewhere"][0]],
            ]
            for name, edit in EDITS.items()
        },
        "core": {name: edit["core"] for name, edit in EDITS.items()},
        "run": [*TINY, *good.values()],
    }
    script = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(script, cwd=place, input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place, json.loads(done.stdout)


def test_every_edit_is_of_a_file_of_its_own():
    assert len({edit["file"] for edit in EDITS.values()}) == len(EDITS)


@pytest.mark.parametrize("name", EDITS)
def test_one_edit_adds_an_option(name, edited):
    edit, (_, told) = EDITS[name], edited
    shown, keys, out_of_range, of_another, core = told[name]
    assert shown[0] == keys[0] == 0
    assert all(line in shown[1] for line in edit["shown"]), shown[1]
    assert keys[1] == edit["keys"]
    assert (out_of_range[0], of_another[0]) == (2, 2)
    assert edit["bad"][1] in out_of_range[1]
    assert edit["elsewhere"][1] in of_another[1]
    assert core == [1, edit["told"]]


def test_a_run_trains_with_the_new_options(edited):
    place, told = edited
    code, shown = told["run"]
    assert code == 0, shown
    (record,) = place.glob("outputs/default/*/run.json")
    config = json.loads(record.read_text())["config"]
    assert {edit["key"]: config[edit["key"]] for edit in EDITS.values()} == {
        edit["key"]: json.loads(edit["good"]) for edit in EDITS.values()
    }
