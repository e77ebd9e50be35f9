"""CITATION.cff is what those who read it expect: version 1.2 of the format, with the papers of the experiments."""

import re
import tomllib

import yaml

from tests.docs.pages import read
from tests.processes import REPOSITORY

CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())


def test_it_has_what_the_format_requires_and_says_what_the_package_says():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= CITATION.keys()
    assert CITATION["cff-version"] == "1.2.0"
    assert (CITATION["version"], CITATION["license"]) == (project["version"], project["license"])
    assert CITATION["title"].startswith(f"{project['name']}:")
    assert CITATION["authors"] == [{"name": "the dst developers"}]


def test_every_experiment_has_its_paper():
    folders = {path.name for path in (REPOSITORY / "experiments").iterdir() if path.is_dir()}
    notes = [reference["notes"] for reference in CITATION["references"]]
    named = [folder for note in notes for folder in re.findall(r"experiments/(\w+)", note)]
    assert sorted(named) == sorted(set(named))
    assert set(named) == folders - {"granet"}, "GraNet is the base of Sup-tickets, not a paper of its own here"
    for reference in CITATION["references"]:
        assert {"type", "title", "authors", "year"} <= reference.keys()
        assert all({"family-names", "given-names"} == author.keys() for author in reference["authors"])


def test_the_changelog_begins_with_the_version():
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    (newest, *_) = re.findall(r"^## (\S+)", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert newest == version
