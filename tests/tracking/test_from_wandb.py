"""A project of wandb gives the catalog that the records give, and the same table and curves."""

from pathlib import Path

import pandas as pd
import pytest

from analysis.figures import FIGURES, svg
from analysis.from_wandb import FetchError, fetch, frame, main
from analysis.tables import accuracy_table
from dst.records.catalog import catalog
from dst.records.read import read_metrics
from tests.processes import run
from tests.tracking.stub_server import stub_server

pytestmark = pytest.mark.slow

TINY = (
    "model.hidden=[16]",
    "schedule.epochs=2",
    "schedule.update_every=10",
    "tracking=wandb_online",
    "hardware.threads=1",
)
ELSEWHERE = ["folder", "created", "command", "group", "name"]
"""Columns of a catalog that tell where and when: wandb has them otherwise."""


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """The outputs of four runs, one of whose methods was changed, and the server that has them."""
    folder = tmp_path_factory.mktemp("sent")
    with stub_server() as stub:
        for words in (
            ("sparsity=rigl_itop,static", "seed=0"),
            ("sparsity=rigl_itop", "sparsity.grow.name=random", "seed=0,1"),
        ):
            result = run("-m", *words, *TINY, "tracking.progress=none", cwd=folder, env=stub.env)
            assert result.code == 0, result.output
        yield folder / "outputs", stub


@pytest.fixture
def server(sent, monkeypatch):
    for name, value in sent[1].env.items():
        monkeypatch.setenv(name, value)


def test_the_catalog_of_a_project_is_that_of_the_records(sent, server, tmp_path):
    ours = catalog(sent[0]).set_index("id").sort_index()
    theirs = frame("dst", tmp_path / "from").set_index("id").sort_index()
    assert len(ours) == 4
    columns = ours.columns.drop(ELSEWHERE)
    pd.testing.assert_frame_equal(theirs[columns], ours[columns], check_dtype=False, check_exact=True)
    without_command = ours.reset_index().assign(command=None)  # which wandb lacks: its groups are sweeps
    pd.testing.assert_frame_equal(accuracy_table(theirs.reset_index()), accuracy_table(without_command))
    for run_id in ours.index:
        pairs = [read_metrics(Path(one.loc[run_id, "folder"])) for one in (theirs, ours)]
        assert pairs[0] == pairs[1]
    assert svg(FIGURES["curves"](theirs.reset_index())) == svg(FIGURES["curves"](ours.reset_index()))


def test_the_command_makes_folders_and_says_how_many(sent, server, tmp_path, capsys):
    assert main(["dst", "--out", str(tmp_path / "from")]) == 0
    assert capsys.readouterr().out == f"4 runs in {tmp_path / 'from'}\n"


def test_a_run_of_other_code_is_left_out_with_a_note(sent, server, tmp_path):
    found = next(iter(sent[1].runs.values()))
    value = found.config["schedule"]["value"]
    epochs, value["epochs"] = value["epochs"], 3
    try:
        (note,) = fetch("dst", tmp_path / "from")
    finally:
        value["epochs"] = epochs
    assert "its config is that of run" in note


def test_a_project_that_cannot_be_read_is_an_error(sent, server, tmp_path, capsys, monkeypatch):
    with pytest.raises(FetchError):
        fetch("nothing", tmp_path / "from")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert main(["dst", "--out", str(tmp_path / "from")]) == 2
    assert capsys.readouterr().err.startswith("wandb project dst: ")
