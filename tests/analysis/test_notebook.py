from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dst.records.catalog import find_runs
from dst.records.entries import Entry, entry_path, write_entry

REPOSITORY = Path(__file__).parents[2]
NOTEBOOK = REPOSITORY / "analysis" / "first_table.ipynb"


def test_the_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
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
