"""``docs/architecture.md`` tells the way that the density really takes through the rooms, and it leads down only."""

import json
import os
import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from dst.config.schema import complete
from dst.launcher import node
from dst.launcher.frozen import freeze
from dst.run.cell import cells
from tests.architecture.rooms import DOC, REPOSITORY, floor
from tests.composed import compose_cells

DENSITY = "0.0731"
SECTION = DOC[DOC.index("## The way of") :]


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """What a run of the default command is seen to do with a density, in a process of its own."""
    command = [sys.executable, "-m", "tests.architecture.way", DENSITY, "tracking=none"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    place = tmp_path_factory.mktemp("way")
    shown = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    return json.loads(shown.stdout.splitlines()[-1])


def first_of_each_file(functions):
    """Return the functions by which a way comes into a file for the first time."""
    found = {}
    for function in functions:
        found.setdefault(function.partition(":")[0], function)
    return list(found.values())


def climbs(functions):
    """Return the calls that lead from a room to one above."""
    floors = [floor(function.split("/")[1].partition(".")[0]) for function in functions]
    return [(functions[i], functions[i + 1]) for i in range(len(floors) - 1) if floors[i + 1] < floors[i]]


def test_the_text_names_the_stops_in_the_order_of_their_calls(way):
    told = re.findall(r"^(\d)\. `(.+?)`", SECTION, flags=re.MULTILINE)
    assert [number for number, _ in told] == [str(i + 1) for i in range(len(told))]
    assert [stop for _, stop in told] == first_of_each_file(way["given"])
    assert len(told) <= 6


def test_the_text_says_who_makes_a_number_of_the_text(way):
    told = re.search(r"`(\w+)` has the text made into a number by `(.+?)`", SECTION)
    assert [(asked_by.partition(":")[2], by) for asked_by, by in way["converted"]] == [told.groups()]


def test_the_way_never_leads_up(way):
    assert climbs(way["calls"]) == []
    assert climbs(["dst/cli.py:main", "dst/run/build.py:build", "dst/launcher/sweep.py:x"]) == [
        ("dst/run/build.py:build", "dst/launcher/sweep.py:x")
    ]


def test_it_ends_at_masks_of_this_density(way):
    assert way["calls"][0] == "dst/cli.py:main"
    assert set(way["given"]) <= set(way["calls"])
    assert way["active"] == round(float(DENSITY) * way["size"]) > 1000


def test_a_job_comes_in_where_the_text_says(tmp_path, monkeypatch):
    """The third stop is called by the file that the text names, with the config that was frozen."""
    monkeypatch.chdir(tmp_path)
    room, function = re.search(r"^3\. `(.+?)\.py:(\w+)`", SECTION, flags=re.MULTILINE).groups()
    ((_, config),) = compose_cells(REPOSITORY / "conf", [f"sparsity.density={DENSITY}"], multirun=False)
    frozen, came = freeze(cells([complete(config)])[0], "a command"), []

    def third(cell, *_, **__):
        came.append((sys._getframe(1).f_code.co_filename, cell.config.sparsity.density))
        return SimpleNamespace(exit_code=0)

    monkeypatch.setattr(import_module(room.replace("/", ".")), function, third)
    assert node.main([frozen.folder, "--digest", frozen.digest]) == 0
    source = REPOSITORY / re.search(r"comes in at the third stop, from `(.+?)`", SECTION)[1]
    assert came == [(str(source), float(DENSITY))]
