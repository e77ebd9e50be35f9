"""The recipes of docs/extending.md work, in a copy of the repository."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests.docs.pages import read
from tests.processes import REPOSITORY


@pytest.fixture
def copied(tmp_path):
    """Copy what runs into a folder, where it can be added to."""
    for name in ("dst", "conf", "run.py"):
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    return tmp_path


def run(folder, *overrides):
    command = [sys.executable, "run.py", *overrides]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_growth_that_is_added_is_counted_in_training_flops_or_told(copied):
    grow, flops = copied / "dst" / "sparsity" / "grow.py", {}
    with grow.open("a") as file:
        for name, mark in (("unmarked", ""), ("steepest", '@marked("dense_gradient")\n')):
            file.write(f"\n\n{mark}def {name}(layer: LayerView) -> Tensor:\n    return layer.dense_gradient().abs()\n")
    for name, code in (("unmarked", 1), ("steepest", 0), ("gradient", 0)):
        result = run(copied, f"sparsity.grow.name={name}", "schedule.epochs=5", f"output.root={name}")
        assert result.returncode == code, result.stderr
        if code:
            assert '@marked("dense_gradient")' in result.stderr
        else:
            (summary,) = copied.glob(f"{name}/default/*/summary.json")
            flops[name] = json.loads(summary.read_text())["flops/train"]
    assert flops["steepest"] == flops["gradient"] > 0


@pytest.mark.slow
def test_adding_a_method_is_a_function_and_a_yaml(copied):
    """As the text says; then with the option that the text adds to the function."""
    text = read("docs/extending.md")
    function, yaml = (
        re.search(rf"In\s+`({re.escape(path)})`.*?\n```\w+\n(.*?)```", text, flags=re.DOTALL)
        for path in ("dst/sparsity/drop.py", "conf/sparsity/movement.yaml")
    )
    (with_option,) = re.findall(r"```python\n(def movement\(\n.*?)```", text, flags=re.DOTALL)
    (copied / yaml[1]).write_text(yaml[2])
    source = (copied / function[1]).read_text()
    for content, option, name in (
        (function[2], [], "movement"),
        (with_option, ["sparsity.drop.power=2"], "movement drop.power=2.0"),
    ):
        (copied / function[1]).write_text(f"{source}\n\n{content}")
        result = run(copied, "sparsity=movement", "schedule.epochs=1", "schedule.update_every=5", *option)
        assert result.returncode == 0, result.stderr
        assert f"digits mlp {name} density=0.1" in result.stdout
