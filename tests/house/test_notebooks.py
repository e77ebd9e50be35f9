"""Notebooks are stored without outputs, so that a difference is one of their code; the hook sees to it."""

import json
import subprocess
import sys

import nbformat
import pytest
import yaml

from tests.docs.pages import listed
from tests.processes import REPOSITORY

NOTEBOOKS = [file for file in listed() if file.endswith(".ipynb")]
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_no_outputs(name):
    notebook = nbformat.read(REPOSITORY / name, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


def entry(name):
    (hook,) = (hook for repo in HOOKS["repos"] for hook in repo["hooks"] if hook["id"] == name)
    return [sys.executable, "-m", *hook["entry"].split()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_hook_leaves_stored_notebooks_as_they_are(name, tmp_path):
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run([*entry("nbstripout"), str(copy)], check=True)
    assert json.loads(copy.read_text())["cells"] == json.loads((REPOSITORY / name).read_text())["cells"]


def test_the_hook_takes_outputs_out(tmp_path):
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="1")], execution_count=1)
    path = tmp_path / "new.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    subprocess.run([*entry("nbstripout"), str(path)], check=True)
    (stripped,) = nbformat.read(path, as_version=4).cells
    assert (stripped.source, stripped.outputs, stripped.execution_count) == ("1", [], None)


def test_hooks_are_programs_of_the_environment_and_name_no_host():
    requirements = (REPOSITORY / "requirements-dev.txt").read_text()
    assert [repo["repo"] for repo in HOOKS["repos"]] == ["local"]
    for hook in HOOKS["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert f"\n{hook['entry'].split()[0]}>=" in requirements
