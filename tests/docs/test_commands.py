"""Every command of every page is carried out here, or says that it needs a GPU, a cluster, data or a download.

What trains is composed and checked against its data and model, as a shell hands it over; the tour of the README and
what only looks at things is really carried out.
"""

import json
import os
import re
import subprocess
import sys
from functools import cache

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from dst.config.checks import check
from dst.config.compose import compose_command
from dst.config.identity import run_id
from dst.config.schema import ConfigError, complete
from dst.data.dataset import Dataset, Split
from dst.run import build, feasible
from tests.composed import compose_cells
from tests.data.pictures import write_folder
from tests.docs.pages import MARKS, PAGES, PYTHON, SHELL, SHOWN, blocks, clone, commands, name, read
from tests.processes import REPOSITORY, run

CONF = REPOSITORY / "conf"
COMMANDS = [command for page in PAGES for command in commands(name(page))]
TOUR = [command for command in COMMANDS if command.page == "README.md" and not command.is_marked]
RUNS = sorted({command.text for command in COMMANDS if command.is_run})
JUPYTER = [command for command in COMMANDS if command.text.startswith(("%", "!"))]
ELSEWHERE = {"python -m tests.golden.facts --write": "tests/golden/test_facts.py"}
"""Commands that take long, by the test that does what they do."""
LOOKS = sorted(
    {
        (command.page, command.text)
        for command in COMMANDS
        if not (command.is_run or command.is_marked or command in TOUR or command in JUPYTER)
        and command.text not in ELSEWHERE
    }
)
"""Commands that do not train: all pages', but the tour's, which are carried out on its own runs."""


# -- what pages may have -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_code_blocks_are_of_a_known_kind(page):
    assert {language for language, _ in blocks(name(page))} <= SHELL | PYTHON | SHOWN
    assert len(re.findall(r"^ *```", page.read_text(), flags=re.MULTILINE)) == 2 * len(blocks(name(page)))


def test_commands_begin_with_a_program():
    """Whatever is in a block of commands and none is found: what is only shown has a language."""
    programs = r"(%run|!?python|torchrun|make|pip|git|cd|source|pre-commit|apt-get|mkdir|cp|ls)\b"
    assert [command for command in COMMANDS if not re.match(rf"(\w+=\S+ )*{programs}", command.text)] == []


def test_marks_are_explained():
    explained = set(re.findall(r"`# ([\w ]+)`", read("docs/README.md"))) | {"needs several GPUs"}
    assert explained == set(MARKS)


def test_what_another_test_does_is_done_there():
    """The same function as the command's is called."""
    assert {command.text for command in COMMANDS} >= ELSEWHERE.keys()
    for command, test in ELSEWHERE.items():
        module = re.search(r"-m (\S+)", command)[1]
        assert f"from {module} import" in (REPOSITORY / test).read_text()


def test_there_are_commands():
    assert len(RUNS) >= 30
    assert len(TOUR) >= 15


# -- runs --------------------------------------------------------------------------------------------------------------

SIDES = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32}
"""Data sets that commands name and a test cannot download, by the side of their images."""
CLASSES = {"cifar100": 100}
UNSEEN = {"imagenet", "tiny_imagenet"}
"""Data of the reader's own: their commands are checked as on a login node that does not see it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder to run commands in, with what pages have their readers put there.

    The dense run that one of them starts from is there by its id, whatever its own length.
    """
    place = tmp_path_factory.mktemp("commands")
    (table,) = (content for language, content in blocks("docs/data_and_models.md") if language == "csv")
    (place / "people.csv").write_text(table)
    write_folder(place / "FOLDER", {"train": 4000, "test": 4}, height=8, width=8)
    assert run("sparsity=dense", "schedule.epochs=1", cwd=place).code == 0
    (folder,) = (place / "outputs" / "default").iterdir()
    ((_, config),) = compose_cells(CONF, ["sparsity=dense"], multirun=False)
    folder.rename(folder.with_name(run_id(complete(config))))
    for program in ("python", "torchrun"):
        (place / program).write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))")
        (place / program).chmod(0o755)
    return place


@cache
def noise(name, side):
    """Return as many images as a data set has, of noise; the same each time, since a process keeps all splits."""
    classes = CLASSES.get(name, 10)
    image = torch.randint(256, (1, 1 if "mnist" in name else 3, side, side), dtype=torch.uint8)
    split = Split(image.expand(60_000, -1, -1, -1), torch.arange(60_000) % classes)
    return Dataset(name, split, split, classes, "")


@pytest.fixture
def pretended(place, monkeypatch):
    """Be in that folder, with noise in place of the images that would be downloaded."""
    monkeypatch.chdir(place)
    load = build._load_once
    monkeypatch.setattr(
        build,
        "_load_once",
        lambda name, **options: (
            noise(name, options.get("size") or SIDES[name]) if name in SIDES else load(name, **options)
        ),
    )


def words(command, place):
    """Return the arguments that ``run.py`` gets, as a shell understands the command."""
    command = command.lstrip("%!").replace("run run.py", "python run.py").partition(" > ")[0]
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=True)
    arguments = json.loads(result.stdout)
    return arguments[arguments.index("run.py") + 1 :]


@pytest.mark.parametrize("command", RUNS)
def test_runs_pass_all_checks_as_a_shell_understands_them(command, place, pretended):
    arguments = words(command, place)
    flags = {text for text in arguments if text.startswith("-")}
    overrides = [text for text in arguments if "=" in text]
    if flags & {"--help", "--keys", "--cfg"}:
        assert run(*arguments, cwd=place).code == 0
    elif "itp" in command:
        with pytest.raises(ConfigError, match="did you mean 'rigl_itop'"):
            compose_command(CONF, overrides, multirun=False)
    else:
        cells = compose_command(CONF, overrides, multirun="-m" in flags).cells
        assert cells
        for config in (cell.config for cell in cells):
            assert check(config) == []
            if config.data.name in UNSEEN:
                config.data.digest = "0" * 64
            feasible.check(complete(config), elsewhere=True)


TOLD = [command for command in COMMANDS if command.is_run and re.match(r"README|docs/(?!gallery)", command.page)]
"""Commands whose needs stand behind them; pages of experiments say what they train on in their text."""


def needs(config, launcher):
    """Return the marks that a command must have, each as those of which one will do."""
    name, found = config.data.name, []
    if name in ("mnist", "fashion_mnist", "cifar10", "cifar100"):
        found.append(("downloads",))
    if name in ("image_folder", "tiny_imagenet", "imagenet"):
        found.append(("needs data",))
    if config.hardware.device == "cuda":
        found.append(("needs several GPUs",) if config.hardware.processes > 1 else ("needs a GPU", "and a GPU"))
    if launcher == "slurm":
        found.append(("needs SLURM",))
    if config.tracking.mode == "online":
        found.append(("needs wandb",))
    return found


@pytest.mark.parametrize("command", TOLD, ids=lambda command: f"{command.page}: {command.text[:60]}")
def test_runs_say_what_they_need(command, place):
    arguments = words(command.text, place)
    if "itp" in command.text or {"--help", "--keys", "--cfg"} & set(arguments):
        return
    found = compose_command(CONF, [text for text in arguments if "=" in text], multirun="-m" in arguments)
    launcher = "slurm" if re.search("hardware=slurm|launcher=slurm", command.text) else ""
    for cell in found.cells:
        for marks in needs(cell.config, launcher):
            assert any(mark in command.comment for mark in marks), marks


def test_what_a_run_needs_is_found():
    (cell,) = compose_command(CONF, ["data=cifar10", "hardware=slurm", "tracking=wandb_online"], multirun=False).cells
    found = needs(cell.config, "slurm")
    assert found == [("downloads",), ("needs a GPU", "and a GPU"), ("needs SLURM",), ("needs wandb",)]
    (cell,) = compose_command(CONF, [], multirun=False).cells
    assert needs(cell.config, "") == []


# -- the tour ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A clean clone, to type commands in."""
    return clone(tmp_path_factory.mktemp("clone") / "dst")


def typed(command, folder, patience=900):
    """Type a command into a shell whose Python is this one."""
    environment = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "COLUMNS": "200"}
    shell = {"args": ["bash", "-o", "pipefail", "-c", command], "cwd": folder, "env": environment}
    return subprocess.run(**shell, capture_output=True, text=True, timeout=patience, check=False)


def alike(shown, printed):
    """Say whether a line is as shown: figures may differ by a few percent, where ``...`` stands anything may follow."""
    shown, printed = shown.split(), printed.split()
    if shown and shown[-1] == "...":
        shown.pop()
        printed = printed[: len(shown)]
    pairs = list(zip(["", *shown], shown, printed, strict=False))
    return len(shown) == len(printed) and all(_alike(before, *pair) for before, *pair in pairs)


def _alike(before, shown, printed):
    if shown == printed or not re.fullmatch(r"[\d.,e+]+", shown):
        return shown == printed
    within = {"abs": 1.0} if before == "±" else {"rel": 0.05}
    return _number(printed) == pytest.approx(_number(shown), **within)


def _number(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return float("nan")


def missing_lines(command, printed):
    """Return those lines that the page shows and that were not printed, in its order."""
    lines, lost = iter(printed.splitlines()), []
    for shown in command.shown:
        if shown.strip() not in ("", "...") and not any(alike(shown, line) for line in lines):
            lost.append(shown)
    return lost


@pytest.mark.slow
def test_the_tour_goes_as_it_is_told(cloned):
    """Each command of the README, in its order, in a clean clone."""
    for command in TOUR:
        result = typed(command.text, cloned)
        printed = result.stdout + result.stderr
        assert result.returncode == (2 if "itp" in command.text else 0), f"{command.text}\n{printed}"
        assert missing_lines(command, printed) == [], f"{command.text}\n{printed}"
    again = typed("python run.py", cloned)
    assert "is done already, nothing was trained" in again.stdout
    assert len(list((cloned / "outputs" / "first").iterdir())) == 12, "runs, or entries of those begun before"


def test_what_is_not_printed_is_found():
    (command,) = (command for command in TOUR if command.text.startswith("python -m analysis.tables"))
    assert missing_lines(command, "") == list(command.shown)
    assert missing_lines(command, "\n".join(command.shown)) == []
    assert not alike("accuracy 0.9861", "accuracy 0.3")
    assert not alike("dense 3", "dense 2")
    assert not alike("density 0.1", "density 0.2")
    assert alike("97.49 ± 0.00 3", "97.21 ± 0.28 3")
    assert alike("record outputs/a, b, ...", "record outputs/a, b, c")


# -- everything else ---------------------------------------------------------------------------------------------------


GROUPS = ("paper", "study", "cifar", "mnist")
"""Folders of runs that pages name; all but the first have entries of its runs."""


@pytest.fixture(scope="module")
def with_runs(cloned):
    """The clean clone with a small sweep in it, as most other commands look at runs."""
    small = ("model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10", "tracking.progress=none")
    for group in GROUPS:
        assert (
            run("-m", "sparsity=static,rigl_itop", "seed=0,1,2", *small, f"output.group={group}", cwd=cloned).code == 0
        )
    assert run("sparsity=static", "seed=5", *small, "output.root=more/runs", cwd=cloned).code == 0
    return cloned


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), LOOKS)
def test_what_does_not_train_is_carried_out(page, command, with_runs):
    result = typed(command, with_runs)
    assert result.returncode == 0, f"{page}: {command}\n{result.stdout}{result.stderr}"


@pytest.mark.slow
def test_notebooks_run_what_they_are_told_to(cloned, tmp_path, monkeypatch):
    """In a real kernel, in the repository's folder."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")
    cells = [nbformat.v4.new_code_cell(command.text) for command in JUPYTER]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(cloned)}}).execute()
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert len(printed) >= 3
    assert [text for text in printed if not re.search(r"digits mlp \w+ density=0\.1 seed=\d", text)] == []
    assert "is done already, nothing was trained" in printed[-1]
