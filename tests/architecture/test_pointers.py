"""Files and modules that texts, docstrings and comments name are there; moves leave no pointer behind."""

import re
from pathlib import Path

from tests.architecture.rooms import REPOSITORY

TEXTS = [
    path
    for pattern in ("*.md", "docs/*.md", "conf/*/*.md", "experiments/*/*.md")
    for path in sorted(REPOSITORY.glob(pattern))
]
CONFIGS = [
    *(REPOSITORY / "pyproject.toml", REPOSITORY / "Makefile"),
    *sorted(path for folder in ("conf", "experiments") for path in (REPOSITORY / folder).rglob("*.yaml")),
]
SOURCES = [
    path
    for room in ("dst", "analysis", "tests")
    for pattern in ("*.py", "*.ipynb")
    for path in sorted((REPOSITORY / room).rglob(pattern))
    if path != Path(__file__)  # which says what is not there
]
TO_BE_MADE = {"conf/sparsity/movement.yaml", "dst/new.py", "dst.config.former"}
"""What pages have their readers write, and tests put into copies of the package."""


def gone(text):
    """Return what a text names by path or dotted name and the repository does not have."""
    paths = set(re.findall(r"(?<![\w./-])(?:dst|tests|analysis|conf|experiments|docs)/[\w./]*\w", text))
    names = set(re.findall(r"(?<![\w./])(?:dst|tests|analysis)(?:\.[a-zA-Z]\w+)+", text))
    bare = set(re.findall(r"`(\w+\.py)`", text))
    lost = {
        *(path for path in paths if not (REPOSITORY / path).exists()),
        *(name for name in names if not is_there(name.split("."))),
        *(name for name in bare if not [*REPOSITORY.glob(name), *(REPOSITORY / "dst").rglob(name)]),
    }
    return lost - TO_BE_MADE


def is_there(parts):
    """Say whether a dotted name is a module, or a name that the longest module in it knows."""
    for length in range(len(parts), 0, -1):
        place = REPOSITORY.joinpath(*parts[:length])
        source = next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.exists()), None)
        if source or place.is_dir():
            rest = parts[length : length + 1]
            return not rest or (source is not None and re.search(rf"\b{rest[0]}\b", source.read_text()) is not None)
    return False


def test_what_is_named_is_there():
    found = {path.relative_to(REPOSITORY): gone(path.read_text()) for path in (*TEXTS, *CONFIGS, *SOURCES)}
    assert {path: names for path, names in found.items() if names} == {}


def test_what_is_gone_is_found():
    assert not gone(
        "`dst/run/build.py`, dst.run.build.build, `python -m dst.launcher.status`; `plan.py`, conf/sparsity."
    )
    lost = {"dst/build.py", "dst.run.build.check_all", "dst.app.run", "schedule.py", "docs/none.md"}
    assert gone("see `dst/build.py`, dst.run.build.check_all and dst.app.run, `schedule.py`; docs/none.md.") == lost
