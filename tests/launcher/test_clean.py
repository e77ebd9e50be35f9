"""What no run needs any more is named, and removed where that is asked for."""

import os
import time
from pathlib import Path

import pytest

from dst.launcher import clean
from dst.records.lock import locked
from dst.records.store import Record

DAY_S = 86_400


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An output root: a finished run and a failed one, each with its own code, logs and data."""
    monkeypatch.setattr(clean.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    root = tmp_path / "outputs"
    for name, state, data in (("over", "done", "mnist"), ("open", "failed", "digits")):
        about = {"name": name, "config": {"data.name": data}, "code": {"digest": f"begun-{name}"}}
        with Record.create(root / "group" / name, config_yaml="", run=about) as record:
            record.write_status(state, attempt=1, step=5)
            record.write_launch(
                {"cluster": "slurm", "job": None, "code": f"/x/.code/{name}", "logs": f"/x/.launch/{name}"}
            )
        for folder in (".code", ".launch"):
            (root / folder / name).mkdir(parents=True)
            (root / folder / name / "file").write_text("12345")
    (root / ".code" / "begun-open").mkdir()
    (root / ".cache").mkdir()
    for name in ("digits-ab.bin", ".digits-ef.bin.0a.tmp", "mnist-cd.bin", "mnist.verified"):
        (root / ".cache" / name).write_text("1234567")
    for name in ("dst-wandb-left", "dst-wandb-used", "dst-wandb-new", "another"):
        (tmp_path / "tmp" / name).mkdir(parents=True)
        if name != "dst-wandb-new":
            os.utime(tmp_path / "tmp" / name, (time.time() - DAY_S,) * 2)
    monkeypatch.setattr(clean, "_environments", lambda: [f"TMPDIR={tmp_path}/tmp/dst-wandb-used\0".encode()])
    return root


def below(root):
    return {str(path.relative_to(root.parent)) for path in root.parent.rglob("*")}


UNNEEDED = {
    *("outputs/.code/over", "outputs/.code/over/file", "outputs/.launch/over", "outputs/.launch/over/file"),
    *("outputs/.cache/mnist-cd.bin", "outputs/.cache/mnist.verified", "tmp/dst-wandb-left"),
}


def test_only_what_no_unfinished_run_needs_is_removed_and_only_if_asked_for(root, capsys):
    before = below(root)
    assert clean.main([str(root)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[4].removeprefix(f"{root.parent}/") for line in told[:-1]] == [
        *("outputs/.code/over", "outputs/.launch/over", "outputs/.cache/mnist-cd.bin", "outputs/.cache/mnist.verified"),
        "tmp/dst-wandb-left",
    ]
    assert told[-1].startswith("5 not needed, ")
    assert told[-1].endswith("; --remove removes them")
    assert below(root) == before
    assert clean.main([str(root), "--remove"]) == 0
    assert before - below(root) == UNNEEDED
    assert "removed         5 B  " in capsys.readouterr().out
    assert clean.main([str(root)]) == 0
    assert capsys.readouterr().out == "0 not needed, 0 B\n"


def test_what_somebody_else_has_just_removed_is_passed_over(root, monkeypatch, capsys):
    def gone(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(clean, "_remove", gone)
    assert clean.main([str(root), "--remove"]) == 0
    assert capsys.readouterr() == ("0 removed, 0 B\n", "")
    assert not clean._is_abandoned(root / "gone")


def test_nothing_is_removed_while_it_is_unknown_what_is_needed(root, capsys):
    before = below(root)
    with locked(root / ".launch"):
        pass
    (root / "group" / "open" / "launch.json").write_text("{")
    assert clean.main([str(root), "--remove"]) == 1
    assert "error: nothing is removed, since it is unknown what is needed: " in capsys.readouterr().err
    assert before <= below(root)
    assert clean.main([str(root / "nowhere")]) == 2


def test_nothing_is_removed_while_runs_are_submitted(root, capsys):
    with locked(root / ".launch"):
        assert clean.main([str(root), "--remove"]) == 1
    assert f"error: another command submits runs to {root} (host " in capsys.readouterr().err
    assert (root / ".code" / "over").exists()


def test_nothing_is_removed_while_a_link_leads_nowhere(root, capsys):
    """A group on a disk that is not mounted may hold runs that need what seems unneeded."""
    (root / "big").symlink_to(root.parent / "not mounted" / "big")
    before = below(root)
    assert clean.main([str(root), "--remove"]) == 1
    assert f"{root}/big leads nowhere now, and runs may lie there" in capsys.readouterr().err
    assert before <= below(root)
    (root / "big").unlink()
    (root / "group" / "moved").symlink_to(root.parent / "not mounted" / "moved")
    assert clean.main([str(root), "--remove"]) == 1


def test_what_goes_while_it_is_looked_at_ends_nothing(root, monkeypatch, capsys):
    """As a half-written file does, and the folder of a sender that ends."""
    real = Path.lstat

    def lstat(path):
        if path.name in ("file", "mnist-cd.bin"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert clean.main([str(root)]) == 0
    told = capsys.readouterr()
    assert told.out.endswith("4 not needed, 7 B; --remove removes them\n")
    assert not told.err


def test_the_folder_of_a_sender_on_another_host_is_left_alone(root):
    """No process here has it in its environment, but something in it has just been written."""
    (root.parent / "tmp" / "dst-wandb-left" / "run").mkdir()
    (root.parent / "tmp" / "dst-wandb-left" / "run" / "log").write_text("")
    os.utime(root.parent / "tmp" / "dst-wandb-left", (time.time() - DAY_S,) * 2)
    clean.main([str(root), "--remove"])
    assert (root.parent / "tmp" / "dst-wandb-left").exists()
