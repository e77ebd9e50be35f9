"""Every room has its floor and imports only what is below it, and ``docs/architecture.md`` says so."""

import re
import sys

import pytest

from tests.architecture import rooms
from tests.architecture.rooms import DOC, below, contracts, floor, ground, imported, layers

ALL = [room for layer in layers() for room in sorted(layer)]


def test_the_contract_of_layers_holds_every_room_and_top_module():
    """A new folder, or file at the top, that is in no layer would not be checked."""
    assert rooms.folders() | rooms.top_modules() == set(ALL)


def test_only_the_command_line_and_the_ground_floor_lie_at_the_top():
    assert rooms.top_modules() == {"cli"} | ground()


@pytest.mark.parametrize("file", ["room/part.py", "loose.py", "room/deeper/part.py"])
def test_what_is_new_is_seen(tmp_path, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert rooms.folders(tmp_path) | rooms.top_modules(tmp_path) == {file.partition("/")[0].removesuffix(".py")}


def test_contracts_that_list_the_ground_floor_list_all_of_it():
    sources = [contract.get("source_modules", []) for contract in contracts()]
    about_the_ground = [modules for modules in sources if "dst.registry" in modules]
    assert about_the_ground
    for modules in about_the_ground:
        assert {module.removeprefix("dst.") for module in modules} == ground()


@pytest.mark.parametrize("room", sorted(ground()))
def test_the_ground_floor_imports_the_standard_library(room):
    """And what its row allows it of the package, as below."""
    assert {name.partition(".")[0] for name in imported(room)} <= {*sys.stdlib_module_names, "dst"}


# -- the table in the text ---------------------------------------------------------------------------------------------


def table():
    """Return the rows of the rooms: name -> what it holds, what it may import, what it takes from outside."""
    section = DOC[DOC.index("## Rooms") : DOC.index("\n## ", DOC.index("## Rooms") + 1)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {re.fullmatch(r"`(\w+)`", name)[1]: cells for name, *cells in rows[2:]}


def listed(room):
    """Return what the table allows a room to import of the package."""
    _, allowed, _ = table()[room]
    if allowed.startswith("all below"):
        return below(room)
    return {*re.findall(r"`(\w+)`", allowed), *(ground() if "ground" in allowed else ())}


def test_the_table_has_the_rooms_in_their_order_a_line_each():
    assert sorted(table()) == sorted(ALL)
    assert list(table()) == sorted(table(), key=floor)
    assert all(about and len(about) < 120 for about, _, _ in table().values())


@pytest.mark.parametrize("room", ALL)
def test_a_room_imports_what_its_row_allows_and_no_row_allows_what_is_not_below(room):
    theirs = {name.split(".")[1] for name in imported(room) if name.startswith("dst.")} - {room, "__path__"}
    assert theirs <= listed(room) <= below(room)


@pytest.mark.parametrize("room", ALL)
def test_a_row_names_all_that_a_room_takes_from_outside(room):
    packages = {name.partition(".")[0] for name in imported(room)} - set(sys.stdlib_module_names)
    assert set(re.findall(r"`(\w+)`", table()[room][2])) == packages - {"dst"}


def test_hydra_and_wandb_are_imported_by_few():
    """What the contracts forbid by lists of modules, which a new module is not in; nor is the launcher's plugin."""
    plugin = "launcher/plugin/hydra_plugins/dst_launcher.py"
    composition = {"config/compose.py", "config/overrides.py", "config/typed.py"}
    users = {
        "hydra": {"cli.py", *composition, plugin},
        "omegaconf": {*composition, *(f"config/{name}.py" for name in ("own_keys", "references", "search")), plugin},
        "wandb": {"tracking/send.py", "tracking/fetch.py"},
    }
    for package, known in users.items():
        assert rooms.importers(package) == known
