"""Published commands have presets, and what the READMEs of the experiments tell people to type is valid."""

import csv
import re
import shlex
from collections import Counter

import pytest

from dst.config.checks import check
from dst.config.compose import compose_command, groups
from dst.config.overrides import EXPERIMENT
from tests.processes import REPOSITORY

CONF, FOLDER = REPOSITORY / "conf", REPOSITORY / "experiments"
with (FOLDER / "commands.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))
READMES = sorted(FOLDER.rglob("README.md"))
OTHERS = ("Base", "Variant")
"""What the note of a row begins with that is no command of the five papers, or none that stands in its README."""


def name_of(row):
    return f"{row['paper']}/{row['name']}"


def commands(text):
    """Return the commands in the fenced blocks of a page, those that go on after a backslash as one."""
    blocks = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [line.strip() for line in blocks.splitlines() if re.match(r"(python|torchrun \S+ \d+) run\.py ", line)]


TYPED = sorted({command for page in READMES for command in commands(page.read_text(encoding="utf-8"))})


def test_all_27_published_commands_are_there():
    rows = [row for row in ROWS if not row["note"].startswith(OTHERS)]
    assert Counter(row["paper"] for row in rows) == {
        **{"itop": 6, "agent": 6, "sup_tickets": 5, "shuffled_blocks": 4, "random_pruning": 6},
    }
    assert len(rows) == 27


def test_every_row_is_complete_and_its_name_its_own():
    assert list(ROWS[0]) == ["paper", "name", "command", "preset", "overrides", "note"]
    assert len({name_of(row) for row in ROWS}) == len(ROWS)
    assert [name_of(row) for row in ROWS if not (row["command"] and row["preset"])] == []
    assert {row["preset"] for row in ROWS} <= set(groups(CONF)[EXPERIMENT])


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_a_published_command_is_served_by_its_preset(row):
    words = [f"+experiment={row['preset']}", *row["overrides"].split()]
    (cell,) = compose_command(CONF, words, multirun=False).cells
    assert check(cell.config) == []


def test_commands_of_two_processes_are_of_two_here():
    assert {name_of(row) for row in ROWS if "--nproc_per_node 2" in row["command"]} == {
        name_of(row) for row in ROWS if "hardware=ddp" in row["overrides"].split()
    }


def test_every_folder_has_a_readme_that_tells_its_mini():
    folders = [path for path in sorted(FOLDER.iterdir()) if path.is_dir()]
    assert [folder.name for folder in folders if not (folder / "README.md").exists()] == []
    lacking = [
        folder.name
        for folder in folders
        if not re.search(rf"\+experiment={folder.name}/\S*mini", (folder / "README.md").read_text(encoding="utf-8"))
    ]
    assert lacking == []


@pytest.mark.parametrize("command", TYPED)
def test_what_a_readme_tells_people_to_type_is_valid(command):
    words = shlex.split(command.partition("run.py ")[2])
    flags = {"-m", "--forecast"}
    cells = compose_command(CONF, [word for word in words if word not in flags], multirun="-m" in words).cells
    assert cells
    assert {problem for cell in cells for problem in check(cell.config)} == set()


def test_readmes_name_presets_that_are_there():
    known = set(groups(CONF)[EXPERIMENT])
    for page in READMES:
        named = set(
            re.findall(rf"`((?:{'|'.join(p.name for p in FOLDER.iterdir() if p.is_dir())})/\w+)`", page.read_text())
        )
        assert named <= known | {f"{page.parent.name}/README"}, page
