"""Whatever is imported is listed: a package that another one happens to bring may be gone with its next version."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, version

import pytest
from packaging.requirements import Requirement

from tests.processes import REPOSITORY

OURS = {"dst", "analysis", "tests", "run"}
WITH_TORCH = {"triton"}
"""torch brings exactly the version that it is built for, and only where there are GPUs."""
RIVALS = {"sparselab", "blksprs"}
"""Benchmarks measure them too where somebody has installed them."""


def listed(name):
    """Return the requirements of a file and of those that it includes, by normalised name."""
    found = {}
    for line in (REPOSITORY / name).read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text.startswith("-r "):
            found |= listed(text[3:].strip())
        elif text:
            requirement = Requirement(text)
            found[normalised(requirement.name)] = requirement
    return found


def normalised(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(*places):
    """Return the packages that files import, and one of the files that does; relative imports are ours."""
    found = {}
    for place in places:
        path = REPOSITORY / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module]
                found |= {name.partition(".")[0]: file.relative_to(REPOSITORY) for name in names}
    return {
        name: file for name, file in found.items() if name not in OURS | WITH_TORCH | RIVALS | sys.stdlib_module_names
    }


def unlisted(packages, requirements):
    """Return the packages that no requirement brings by itself, each with a file that imports it."""
    known = packages_distributions()
    brought = {name: {normalised(each) for each in known.get(name, [name])} for name in packages}
    return [f"{file}: import {name}" for name, file in packages.items() if not brought[name] & requirements.keys()]


@pytest.mark.parametrize(
    ("requirements", "places"),
    [("requirements.txt", ["run.py", "dst", "analysis"]), ("requirements-dev.txt", ["tests"])],
)
def test_what_is_imported_is_listed(requirements, places):
    packages = imported(*places)
    assert {"torch", "numpy", "yaml"} <= packages.keys()
    assert unlisted(packages, listed(requirements)) == []


def test_what_runs_is_listed_with_versions_that_are_installed():
    assert {name: version(name) for name, one in listed("requirements.txt").items() if not one.specifier} == {}
    wrong = {
        name: version(name) for name, one in listed("requirements.txt").items() if version(name) not in one.specifier
    }
    assert wrong == {}
