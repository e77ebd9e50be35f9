"""A sweep's group holds all its cells, whichever command began them and whichever process carries them out."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from analysis import tables
from dst.config.identity import run_id
from dst.config.launcher import LauncherSettings
from dst.config.schema import complete
from dst.launcher import status, sweep, sync
from dst.launcher import submit as submitting
from dst.records.catalog import catalog, find_runs
from dst.records.entries import entry_path, read_entry
from dst.run.cell import cells
from tests.composed import compose_cells
from tests.processes import REPOSITORY, Result, run

TINY = ("model.hidden=[8]", "schedule.epochs=1", "tracking=none")
SWEEP = ("-m", "sparsity=static,dense", "seed=0,1", "output.group=paper", *TINY)


def table(folder, capsys):
    """Return the cells of the printed table, and the lines below it."""
    assert tables.main([str(folder)]) == 0
    rows, _, notes = capsys.readouterr().out.partition("\n\n")
    return [line.split() for line in rows.splitlines()], notes.splitlines()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """One cell of a sweep begun by hand, one done under another group, then the sweep; return folder and output."""
    place = tmp_path_factory.mktemp("groups")
    assert run("sparsity=dense", "seed=1", *TINY, cwd=place, fault="kill:step:3").code < 0
    assert run("-m", "sparsity=static", "seed=0", "output.group=other/deep", *TINY, cwd=place).code == 0
    result = run(*SWEEP, cwd=place)
    assert result.code == 0, result.output
    return place, result


@pytest.fixture
def outputs(swept, tmp_path, monkeypatch):
    shutil.copytree(swept[0] / "outputs", tmp_path / "outputs")
    monkeypatch.chdir(tmp_path)
    return Path("outputs")


def test_the_table_of_a_group_is_that_of_its_sweep(swept, outputs, capsys):
    place, result = swept
    assert isinstance(result, Result)
    assert "4 runs: 1 finished already, 3 to train" in result.output
    entries = sorted(outputs.rglob("*.elsewhere.json"))
    assert sorted(read_entry(path).folder.parent for path in entries) == [outputs / "default", outputs / "other/deep"]
    assert {path.parent for path in entries} == {outputs / "paper"}
    assert len(find_runs(outputs / "paper")) == 2
    whole, notes = table(outputs, capsys)
    assert [row[-1] for row in whole[1:]] == ["2", "2"]
    assert notes == []
    for group in ("paper", "paper/."):
        assert table(outputs / group, capsys) == (whole, [])
    assert len(catalog(outputs)) == 4
    assert catalog(outputs / "paper")["group"].tolist() == ["."] * 4
    assert status.main([str(outputs / "paper")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "4 runs: 4 done"
    assert place != outputs


def test_a_cell_that_is_gone_is_listed_by_id_and_command(swept, outputs, capsys):
    (gone,) = (outputs / "other" / "deep").iterdir()
    shutil.rmtree(gone)
    _, (seed, note) = table(outputs / "paper", capsys)
    assert seed == "missing in digits mlp static density=0.1: seed 0 not run"
    assert note.startswith(f"not in the table: run {gone.name} (digits mlp static density=0.1 seed=0) is missing")
    assert f"again by: cd {swept[0]} && python run.py {' '.join(SWEEP[:4])}" in note
    assert status.main([str(outputs / "paper")]) == 0
    told = capsys.readouterr().out
    assert f"  {gone.name} missing: run {gone.name}" in told
    assert told.splitlines()[-1] == "4 runs: 3 done, 1 missing"
    assert sync.main([str(outputs / "paper"), "--dry-run"]) == 0
    assert f"run {gone.name}" in capsys.readouterr().err

    assert run(*SWEEP, cwd=outputs.resolve().parent).code == 0  # which now trains it in its own group
    assert table(outputs / "paper", capsys) == table(outputs, capsys)
    assert (outputs / "paper" / gone.name / "summary.json").exists()


def test_the_same_commands_again_change_nothing_and_a_single_run_is_held_too(outputs, capsys):
    here = outputs.resolve().parent
    entries = {path: path.stat().st_mtime_ns for path in outputs.rglob("*.elsewhere.json")}
    assert run(*SWEEP, cwd=here).code == 0
    assert {path: path.stat().st_mtime_ns for path in outputs.rglob("*.elsewhere.json")} == entries
    assert run(*SWEEP, "--forecast", "output.group=asked", cwd=here).code == 0
    assert not (outputs / "asked").exists()
    assert run("sparsity=dense", "seed=1", "output.group=single", *TINY, cwd=here).code == 0
    assert catalog(outputs / "single")["state"].tolist() == ["done"]
    assert len(catalog(outputs)) == 4
    anew = run("sparsity=dense", "seed=1", "output.group=anew", "output.resume=never", *TINY, cwd=here)
    assert anew.code == 0
    assert [path.name[-2:] for path in (outputs / "anew").iterdir()] == [".2"]
    (held,) = (outputs / "default").iterdir()
    refused = run("sparsity=dense", "seed=0", f"output.group=default/{held.name}", *TINY, cwd=here)
    assert (refused.code, "is a run, not a group of runs" in refused.output) == (2, True)


def test_submitted_sweeps_hold_what_lies_elsewhere(outputs, capsys):
    """Two at a time, of the same cells, into the same group and another one."""
    composed = compose_cells(REPOSITORY / "conf", [*SWEEP[1:3], *TINY], multirun=True)
    configs = [complete(config) for _, config in composed]

    def submit_to(group):
        for config in configs:
            config.output.group = group
        return submitting.submit(cells(configs), LauncherSettings("local"), sweep._command())

    for group in ("new/a", "new/a", "new/b"):
        assert submit_to(group).submitted == []
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: submit_to("new/c"), range(2)))
    for group in ("a", "b", "c"):
        folder = outputs / "new" / group
        assert {path.name for path in folder.iterdir()} == {entry_path(folder, run_id(c)).name for c in configs}
        assert catalog(folder)["state"].tolist() == ["done"] * 4
    assert table(outputs / "new", capsys) == table(outputs, capsys)
