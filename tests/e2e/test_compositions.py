"""The composition table of conf/sparsity/README.md is that of the YAML files, cell by cell."""

import re
from dataclasses import fields

from dst.registry import members
from dst.sparsity.options import Update
from tests.composed import compose_cells
from tests.processes import REPOSITORY

FOLDER = REPOSITORY / "conf" / "sparsity"
SLOTS = ("distribution", "init", "pattern", "drop", "grow", "redistribute", "drop_fraction", "density_schedule")


def composed(method):
    ((_, config),) = compose_cells(REPOSITORY / "conf", [f"sparsity={method}"], multirun=False)
    return config.sparsity


def row(method):
    sparsity = composed(method)
    density = "" if sparsity.density is None else f"{sparsity.density:g}"
    slots = (slot(getattr(sparsity, name)) for name in SLOTS)
    return [density, *slots, update(sparsity.update), slot(sparsity.reparametrize)]


def slot(node):
    """A member with the options that the method sets."""
    if node.name == "none":
        return ""
    names = sorted((item.name for item in fields(node)), key=lambda name: name == "pool")  # last, as in the files
    given = {name: getattr(node, name) for name in names}
    told = {key: value for key, value in given.items() if key not in ("name", "every") and value is not None}
    options = [f"{key}={shown(value)}" for key, value in told.items()]
    is_default_pool = "pool" in given and node == type(node)(name=node.name)
    return f"{node.name}({', '.join(options)})" if options and not is_default_pool else node.name


def update(node):
    if node.every is None:
        return ""
    changed = {item.name: getattr(node, item.name) for item in fields(node) if item.name != "every"}
    return ", ".join(
        [
            node.order,
            *(
                f"{key}={shown(value)}"
                for key, value in changed.items()
                if value != getattr(Update(), key) and key != "order"
            ),
        ]
    )


def shown(value):
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_cell():
    text = (FOLDER / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)\|$", text, flags=re.MULTILINE))
    found = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows.items()}
    assert found == {path.stem: row(path.stem) for path in FOLDER.glob("*.yaml")}


def test_columns_are_the_slots():
    text = (FOLDER / "README.md").read_text()
    (header,) = re.findall(r"^\| method \|(.*)\|$", text, flags=re.MULTILINE)
    assert [cell.strip() for cell in header.split("|")] == ["density", *SLOTS, "update", "reparametrize"]


def test_every_member_is_mentioned():
    text = (FOLDER / "README.md").read_text()
    missing = [name for slot in (*SLOTS, "reparametrize") for name in members(slot) if f"`{name}`" not in text]
    assert missing == []


def test_every_file_names_its_paper():
    for path in FOLDER.glob("*.yaml"):
        head = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert path.stem in ("dense", "static") or re.search(r"\d{4}", " ".join(head[:2])), path.stem
