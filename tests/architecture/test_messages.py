"""Parts know their own parameters and no config; ``dst.run.terms`` puts what they say into config terms."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dst.config.schema import Config, leaves
from tests.messages import malformed

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("sparsity", "data", "models", "procedures", "training", "metrics", "tracking", "records")
KEYS = [key for key, _, _ in leaves(Config()) if "." in key]
NODES = sorted({key.rpartition(".")[0] for key in KEYS})
OF_A_RECORD = {
    "dst/records/label.py": ["sparsity.label"],
    "dst/tracking/described.py": [
        *("data.name", "model.name", "output.group"),
        *("tracking.entity", "tracking.notes", "tracking.project", "tracking.tags"),
    ],
}
"""Keys that a file looks up in the config which a record holds, to label the run with their values."""

HOLE = "\0"
"""Stands for what an f-string fills in."""


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the strings of a module with their lines: f-strings whole, docstrings and bare strings left out."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else HOLE for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | notes:
            yield node.lineno, node.value


def named(text: str) -> list[str]:
    """Return the config keys in a text, and the beginnings of keys that it completes from a variable."""
    keys = "|".join(re.escape(key) for key in sorted((*KEYS, *NODES), key=len, reverse=True) if "." in key)
    begun = "|".join(re.escape(node) for node in NODES)
    return re.findall(rf"(?<![\w.])(?:(?:{begun})\.(?={HOLE})|(?:{keys})(?![\w.]*\w))", text)


def test_parts_name_no_config_key():
    found = [
        f"{file}:{line}: {key}"
        for room in ROOMS
        for path in sorted((REPOSITORY / "dst" / room).rglob("*.py"))
        for file in [path.relative_to(REPOSITORY).as_posix()]
        for line, text in texts(path.read_text())
        for key in named(text)
        if key not in OF_A_RECORD.get(file, [])
    ]
    assert found == []


def test_every_exception_is_needed():
    for file, keys in OF_A_RECORD.items():
        assert sorted({key for _, text in texts((REPOSITORY / file).read_text()) for key in named(text)}) == keys


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('raise ValueError(f"data.root={root}: no such folder")', ["data.root"]),
        ('raise ValueError("set " "sparsity.drop.quantile, or " f"{name}")', ["sparsity.drop.quantile"]),
        ('key = f"schedule.optimizer.{name}"', ["schedule.optimizer."]),
        ('"""Docstrings may say data.root."""', []),
        ('raise ValueError(f"root={root}: no such folder")', []),
        ('import_module("dst.data.cache")', []),
        ('open("model.names")', []),
    ],
)
def test_the_search_finds_keys_and_nothing_else(source, found):
    assert [key for _, text in texts(source) for key in named(text)] == found


ALIGNED = (
    *("dst/cli.py", "dst/launcher/clean.py", "dst/launcher/sync.py", "dst/run/report.py", "dst/tracking/progress.py"),
    "dst/data/published.py",
)
"""Files with text that is aligned: help, tables, a progress line, sums in a file."""


def test_messages_hold_no_two_spaces_no_empty_value_and_no_overrides_of_a_cell():
    found = {
        f"{file}:{number}: {malformed(line)}"
        for path in sorted([*(REPOSITORY / "dst").rglob("*.py"), *(REPOSITORY / "analysis").rglob("*.py")])
        for file in [path.relative_to(REPOSITORY).as_posix()]
        for number, text in texts(path.read_text())
        for line in text.replace(HOLE, "x").split("\n")
        if " " in line and malformed(line)
    }
    assert {entry.partition(":")[0] for entry in found} == set(ALIGNED), found


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("[seed=0 sparsity=static] seed=0: must be", "it begins with the overrides of a cell"),
        ("seed=0:  must be", "two spaces"),
        ("1 failed; see exit codes below", "it points to a place that is not there"),
        ("it is wrong: output.root= would be ignored", "an empty value"),
        ("it is wrong: model.hidden=, which", "an empty value"),
        ("output.root='': must be, e.g. output.root=...; a <= b, x == 1", None),
        ("  seed=0: must be", None),
    ],
)
def test_what_is_wrong_with_a_message_is_found(message, wrong):
    assert malformed(message) == wrong
