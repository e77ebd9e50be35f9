import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dst.records.catalog import find_runs
from dst.records.entries import Entry, entry_path, write_entry
from tests.e2e.test_command_line import SILENT
from tests.processes import run

REPOSITORY = Path(__file__).parents[2]
NOTEBOOK, TABULAR = (REPOSITORY / "analysis" / name for name in ("first_table.ipynb", "tabular.ipynb"))


@pytest.mark.parametrize("path", [NOTEBOOK, TABULAR], ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "read", "group"),
    [(REPOSITORY, "outputs", "sweep"), (REPOSITORY / "analysis", "outputs/paper", ".")],
    ids=["root", "analysis, of a group whose runs lie elsewhere"],
)
def test_the_notebook_makes_the_table_and_the_figures(tree, tmp_path, monkeypatch, folder, read, group):
    for found in find_runs(tree):
        entry = Entry(found.name, found.name, found, "python run.py")
        write_entry(entry_path(tree / "paper", found.name), entry, root=tree)
    monkeypatch.setenv("DST_OUTPUTS", str(tmp_path / read))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}

    def text(cell):
        return cells[cell].outputs[0].data["text/plain"]

    states = [line.split() for line in text("states").splitlines()[2:]]
    assert states == [[group, "done", "6"], ["failed", "1"], ["running", "1"]]
    rows = [line.split() for line in text("table").replace(" ± ", "±").splitlines()]
    flat = "\n".join(" ".join(row) for row in rows)
    for value in ("98.00±—", "96.00±1.41", "92.00±2.00"):
        assert value in flat
    assert cells["missing"].outputs[0].text == (
        "missing in digits mlp dense density=—: seed 1 running; seed 2 not run\n"
        "missing in digits mlp rigl density=0.1: seed 2 failed\n"
    )
    for figure in ("flops", "rs"):
        assert [output.output_type for output in cells[figure].outputs] == ["display_data"]
        assert "image/png" in cells[figure].outputs[0].data


SHORT = ("model.hidden=[16,16]", "schedule.epochs=4", "schedule.update_every=5", "data.path=wine", *SILENT)
OF_A_PROCEDURE = {"imp": ("procedure.level_epochs=1",)}


def commands():
    """Return the words of each command that the notebook about tables gives, without its seeds."""
    notebook = nbformat.read(TABULAR, as_version=4)
    (given,) = (cell.source for cell in notebook.cells if cell.id == "title")
    lines = [line for line in given.splitlines() if line.startswith("python run.py ")]
    return [[word for word in shlex.split(line)[2:] if not word.startswith("seed=")] for line in lines]


@pytest.mark.slow
def test_the_notebook_about_tables_shows_the_runs_of_its_commands(tmp_path, monkeypatch):
    methods, levels = set(), 0
    for words in commands():
        assert words[:2] == ["-m", "data=tabular"]
        procedure = next((word.partition("=")[2] for word in words if word.startswith("procedure=")), "")
        result = run(*words, "seed=0,1", *SHORT, *OF_A_PROCEDURE.get(procedure, ()), cwd=tmp_path)
        assert result.code == 0, result.output
        (sparsity,) = (word.partition("=")[2] for word in words if word.startswith("sparsity="))
        methods |= {f"{procedure} {name}".strip() for name in sparsity.split(",")}
        levels += procedure == "imp"
    assert methods == {"dense", "random_pruning", "rigl", "imp random_pruning"}
    monkeypatch.setenv("DST_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(TABULAR, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(REPOSITORY)}}).execute()
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}

    def text(cell):
        return cells[cell].outputs[0].data["text/plain"]

    assert [line.split() for line in text("states").splitlines()[2:]] == [["default", "done", str(2 * len(methods))]]
    rows = [line.split() for line in text("table").splitlines() if "mlp" in line]
    assert len(rows) == len(methods)
    assert cells["missing"].outputs[0].text == "\n"
    assert ("level 1" in text("networks")) == bool(levels)
    for figure in ("flops", "density"):
        assert "image/png" in cells[figure].outputs[0].data
