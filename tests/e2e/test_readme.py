"""The README does what it says: its Python runs, its commands are valid, its recipe for a method works."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from dst.config.checks import check
from dst.config.identity import run_id
from dst.config.schema import ConfigError, complete
from dst.data.dataset import Dataset, Split
from dst.registry import members
from dst.run import build, feasible
from tests.composed import compose_cells
from tests.processes import REPOSITORY, run

README = (REPOSITORY / "README.md").read_text()
COMMANDS = sorted(
    {line.removeprefix("$ ") for line in README.splitlines() if re.match(r"(\$ )?(python|torchrun .*) run\.py", line)}
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_core_trains_in_a_strangers_loop(capsys):
    example, learned = [block for block in blocks("python") if "Sparsifier(" in block]
    names = {}
    exec(example, names)
    assert re.fullmatch(r"density 0\.200, Rs 0\.[2-9]\d\d\n", capsys.readouterr().out)
    assert names["sparsifier"].updates == 9
    assert {"masks", "explored"} <= set(names["checkpoint"]["sparsifier"])
    exec(learned, names)
    for _ in range(50):
        exec("optimizer.zero_grad()\nnn.functional.cross_entropy(model(inputs), labels).backward()", names)
        names["sparsifier"].step()
    names["sparsifier"].count()
    names["sparsifier"].release()
    weights = [layer.weight for layer in names["model"] if hasattr(layer, "weight")]
    assert sum(int(weight.count_nonzero()) for weight in weights) == names["sparsifier"].topology.active < 0.5 * 1408


def test_the_example_with_a_grad_scaler_survives_an_overflow_at_an_update():
    """The scale is such that the gradients of step 50, which has an update, overflow, and those of some steps after."""
    first, scaled = (next(b for b in blocks("python") if text in b) for text in ("Sparsifier(", "GradScaler("))
    names = {}
    exec(first[: first.index("for _ in range")] + scaled, names)
    torch, sparsifier, scaler = (names[name] for name in ("torch", "sparsifier", "scaler"))
    torch.manual_seed(0)
    updates, left_out = [], []
    for step in range(1, 121):
        inputs = torch.randn(64, 20)
        if step == 50:
            scaler.update(2.0**24)
        before = scaler.get_scale()
        if names["train_step"](inputs, (inputs[:, 0] > 0).long()):
            updates.append(step)
        if scaler.get_scale() < before:
            left_out.append(step)
    assert 50 in left_out
    assert 51 in left_out
    assert updates == [min(set(range(due, 121)) - set(left_out)) for due in (50, 100)]
    assert sparsifier.density == pytest.approx(0.2, abs=1e-3)
    sparsifier.verify()
    state = names["optimizer"].state
    assert all(torch.isfinite(p).all() and torch.isfinite(state[p]["momentum_buffer"]).all() for p in state)


def test_the_catalog_example_shows_runs(tmp_path, monkeypatch):
    result = run("schedule.epochs=1", "sparsity=static", "sparsity.scope.dense_last=true", cwd=tmp_path)
    assert result.code == 0
    assert re.search(r"^ +outside the scope: fc3\.weight +2,560 +dense +$", result.output, flags=re.MULTILINE)
    (example,) = [block for block in blocks("python") if "catalog(" in block]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)
    assert len(names["runs"]) == 1


PRETENDED = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
"""Data sets that commands name and a test cannot download, by the shape of their images."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run commands in, with the dense run that one of them starts from, whatever its own length."""
    place = tmp_path_factory.mktemp("readme")
    (table,) = blocks("csv")
    (place / "people.csv").write_text(table)
    assert run("sparsity=dense", "schedule.epochs=1", cwd=place).code == 0
    (folder,) = (place / "outputs" / "default").iterdir()
    ((_, config),) = compose_cells(REPOSITORY / "conf", ["sparsity=dense"], multirun=False)
    folder.rename(folder.with_name(run_id(complete(config))))
    for program in ("python", "torchrun"):
        (place / program).write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))")
        (place / program).chmod(0o755)
    return place


@pytest.fixture
def pretended(place, monkeypatch):
    """Be in that folder, with images of noise in place of those that would be downloaded."""
    monkeypatch.chdir(place)
    load = build._load_once

    def loaded(name, **options):
        if name not in PRETENDED:
            return load(name, **options)
        split = Split(torch.randint(256, (20_000, *PRETENDED[name]), dtype=torch.uint8), torch.arange(20_000) % 10)
        return Dataset(name, split, split, 10, "")

    monkeypatch.setattr(build, "_load_once", loaded)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_pass_all_checks_as_a_shell_understands_them(command, place, pretended):
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
    arguments = json.loads(result.stdout)
    overrides = arguments[arguments.index("run.py") + 1 :]
    flags = {text for text in overrides if text.startswith("-")}
    if "--help" in flags:
        return
    if "itp" in command:
        with pytest.raises(ConfigError, match="did you mean 'rigl_itop'"):
            compose_cells(REPOSITORY / "conf", overrides, multirun=False)
        return
    cells = compose_cells(REPOSITORY / "conf", [text for text in overrides if "=" in text], multirun="-m" in flags)
    assert cells
    for _, config in cells:
        assert check(config) == []
        feasible.check(complete(config), elsewhere=True)


def test_there_are_commands():
    assert len(COMMANDS) >= 20


def test_the_table_of_methods_is_complete():
    rows = re.findall(r"^\| `(\w+)` \| \S.*\|$", README, flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (REPOSITORY / "conf" / "sparsity").glob("*.yaml"))


def test_every_model_and_data_set_is_mentioned():
    for kind in ("model", "data", "optimizer", "lr"):
        for name in members(kind):
            assert f"`{name}`" in README


def copied(folder):
    """Copy what runs into a folder, where it can be added to."""
    for name in ("dst", "conf", "run.py"):
        source = REPOSITORY / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)


@pytest.mark.slow
def test_growth_that_is_added_is_counted_in_training_flops_or_told(tmp_path):
    copied(tmp_path)
    grow, flops = tmp_path / "dst" / "sparsity" / "grow.py", {}
    with grow.open("a") as file:
        for name, mark in (("unmarked", ""), ("steepest", '@marked("dense_gradient")\n')):
            file.write(f"\n\n{mark}def {name}(layer: LayerView) -> Tensor:\n    return layer.dense_gradient().abs()\n")
    for name, code in (("unmarked", 1), ("steepest", 0), ("gradient", 0)):
        command = [sys.executable, "run.py", f"sparsity.grow.name={name}", "schedule.epochs=5", f"output.root={name}"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        if code:
            assert '@marked("dense_gradient")' in result.stderr
        else:
            (summary,) = tmp_path.glob(f"{name}/default/*/summary.json")
            flops[name] = json.loads(summary.read_text())["flops/train"]
    assert flops["steepest"] == flops["gradient"] > 0


@pytest.mark.slow
def test_adding_a_method_is_a_function_and_a_yaml(tmp_path):
    """As the text says, in a copy of the repository; then with the option that the text adds to the function."""
    copied(tmp_path)
    recipe = README[README.index("## Adding a method") :]
    function, yaml = (
        re.search(rf"In `({re.escape(path)})`.*?\n```\w+\n(.*?)```", recipe, flags=re.DOTALL)
        for path in ("dst/sparsity/drop.py", "conf/sparsity/movement.yaml")
    )
    (with_option,) = re.findall(r"```python\n(def movement\(\n.*?)```", recipe, flags=re.DOTALL)
    (tmp_path / yaml[1]).write_text(yaml[2])
    source = (tmp_path / function[1]).read_text()
    command = [sys.executable, "run.py", "sparsity=movement", "schedule.epochs=1", "schedule.update_every=5"]
    for text, option, name in (
        (function[2], [], "movement"),
        (with_option, ["sparsity.drop.power=2"], "movement drop.power=2.0"),
    ):
        (tmp_path / function[1]).write_text(f"{source}\n\n{text}")
        result = subprocess.run([*command, *option], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert f"digits mlp {name} density=0.1" in result.stdout
