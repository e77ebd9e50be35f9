"""What is wrong with many cells is said once, with what is swept and no more."""

import re
import shlex
from pathlib import Path

import pytest

from dst.config.launcher import LauncherSettings
from dst.config.overrides import own_overrides
from dst.config.schema import Config, ConfigError
from dst.launcher import sweep
from dst.launcher.executors import Submission
from dst.launcher.grouped import grouped, listed
from dst.launcher.submit import Submitted
from dst.launcher.sweep import run_cells
from dst.run.cell import Cell
from tests.messages import malformed
from tests.processes import REPOSITORY

CONF = REPOSITORY / "conf"


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        run_cells(CONF, overrides, multirun=True)
    assert [text for text in error.value.problems if malformed(text)] == []
    return error.value.problems


def test_a_hundred_bad_cells_are_one_line():
    same = ["model=mlp", "tracking.notes=long and the same in all cells", "schedule.epochs=3"]
    (told,) = problems(*same, "sparsity.density=0.1,1.5", "seed=range(0,100)")
    assert told.startswith(
        "sparsity.density=1.5: must be in (0, 1) (in 100 of 200 cells: sparsity.density=1.5 seed=0, "
    )
    assert told.endswith("sparsity.density=1.5 seed=7, and 92 more)")
    assert "notes" not in told
    assert len(told) < 400


def test_what_is_wrong_with_all_cells_names_none():
    assert problems("schedule.epochs=0", "seed=0,1") == ["schedule.epochs=0: must be >= 1"]


def test_what_only_the_data_shows_is_grouped_too(tmp_path):
    (told,) = problems("model=mlp,lenet_5", "seed=0,1", f"output.root={tmp_path}/out", "hardware.threads=1")
    assert re.match(r"model lenet_5 needs images of at least 16x16", told)
    assert told.endswith("(in 2 of 4 cells: model=lenet_5 seed=0, model=lenet_5 seed=1)")


def test_what_tells_cells_apart():
    assert own_overrides([["a=1", "b=2"], ["a=1", "b=3"]]) == [["b=2"], ["b=3"]]
    assert own_overrides([["a=1"]]) == [[]]
    assert own_overrides([]) == []
    assert grouped([("a=1", "x"), ("a=2", "x"), ("a=2", "y")], 3) == [
        "x (in 2 of 3 cells: a=1, a=2)",
        "y (in 1 of 3 cells: a=2)",
    ]
    assert grouped([("", "x"), ("", "x")], 1) == ["x"]
    assert listed([str(i) for i in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, and 2 more"


def test_commands_that_are_printed_can_be_pasted():
    root = "/tmp/a b/it's"
    config = Config()
    config.output.root = root
    submitted = Submitted([], [], Submission(["7"], Path("/logs")), {})
    lines = sweep._summary([Cell(config, None)], submitted, LauncherSettings("local")).splitlines()
    pasted = [shlex.split(line.partition(": ")[2]) for line in lines if "python -m" in line]
    assert pasted == [["python", "-m", f"dst.launcher.{name}", root] for name in ("status", "cancel")]
    (told,) = problems("data=image_folder", "data.root=/no such/folder", "data.size=8")
    command = told.partition("as python")[2].partition(" prints it there")[0]
    assert shlex.split(command) == ["-m", "dst.run.sources", "image_folder", "/no such/folder"]
