"""The benchmark of GPUs can be tried out without one; what fails, or is not here, is a row, and stops nothing else."""

import csv

import pytest

from tests.bench.gpu.__main__ import main
from tests.bench.gpu.loops import Loops
from tests.bench.gpu.table import Clock, Row, Table
from tests.bench.gpu.trainings import Images, Steps, training


def test_each_figure_is_a_row_and_one_that_fails_stops_no_other(tmp_path, monkeypatch):
    def fails(self, *, captured):
        raise ZeroDivisionError("no graph today\nmore of it")

    monkeypatch.setattr(Loops, "pure", fails)
    path = tmp_path / "new" / "gpu.csv"
    assert main(["--device", "cpu", "--quick", "--only", "speed", "--csv", str(path)]) == 1
    rows = list(csv.DictReader(path.open()))
    found = {row["variant"]: row for row in rows if row["precision"] == "fp32"}
    assert [*found] == ["eager", "captured", "pure compute, eager", "pure compute, captured", "plain loop, 0 workers"]
    assert len(rows) == 3 * len(found)
    assert {(row["card"], row["what"], row["section"]) for row in rows} == {("cpu", "lenet_300_100", "speed")}
    assert found["eager"]["ratio"] == "1.0"
    assert found["captured"]["value"] == ""
    assert found["captured"]["note"].startswith("hardware.capture=always: with hardware.device=cpu there are no CUDA")
    assert found["pure compute, eager"]["note"] == "ZeroDivisionError: no graph today"
    assert [row["failed"] for row in found.values()] == ["False", "False", "True", "True", "False"]
    plain = found["plain loop, 0 workers"]
    ratio = float(plain["value"]) / float(found["eager"]["value"])  # of one round, which is its own median
    assert float(plain["ratio"]) == pytest.approx(ratio)


def test_a_row_is_whole_in_the_file_at_once(tmp_path, capsys):
    with Table.open(tmp_path / "gpu.csv", "cpu") as table:
        table.add(Row("memory", "vgg_c", "fp32", "graphs hold", 12.5, "MB"))
        *_, last = (tmp_path / "gpu.csv").read_text().splitlines(keepends=True)
        assert last.endswith("memory,vgg_c,fp32,graphs hold,12.5,MB,,,,,False\n")
    assert capsys.readouterr().out.split() == ["vgg_c", "fp32", "graphs", "hold", "12.5", "MB"]


def test_the_real_loop_goes_on_from_round_to_round():
    run = training("cpu", Images(32, 1, 28), "model=lenet_300_100", "sparsity=static", "schedule.batch_size=8")
    steps = Steps(run, "cpu")
    assert min(steps.each(6)) > 0  # beyond the end of an epoch
    assert run.counters.step == 6 + 2  # one before, since a step is timed from the end of another, and one to stop
    assert steps.seconds(4) > 0
    assert run.counters.step == 8 + 4 + 2


def test_a_section_ends_before_a_piece_that_would_take_too_long(monkeypatch):
    now = 0.0
    monkeypatch.setattr("tests.bench.gpu.table.time.monotonic", lambda: now)
    clock = Clock(100)
    clock.begin(0.5)
    with clock.piece():
        now = 30.0
    assert clock.is_over  # another one would take it to 60
    clock.begin(0.25)
    assert not clock.is_over  # what is left over is added
    now = 75.0
    assert clock.is_over
