import json
import pickle
from pathlib import Path

import pytest
import torch

from dst.training.checkpoint import CheckpointError, Checkpoints


def test_newest_are_kept_and_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.load_newest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {"w": torch.full((3,), float(step)), "n": step})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        f"step_{step:09d}.{suffix}" for step in (10, 15) for suffix in ("json", "pt")
    ]
    state = Checkpoints(tmp_path / "c").load_newest()
    assert state["n"] == 15
    assert state["w"].tolist() == [15.0] * 3


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"n": 1})
    data = tmp_path / "c" / "step_000000001.pt"
    torch.save({"n": Hostile()}, data)
    manifest = json.loads(data.with_suffix(".json").read_text())
    import hashlib

    manifest |= {"bytes": data.stat().st_size, "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}
    data.with_suffix(".json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load_newest()
    assert not (tmp_path / "owned").exists()


def test_leftovers_of_a_broken_write_go_with_the_next_save(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for name in ("step_000000003.pt", "step_000000003.pt.tmp", "step_000000004.json.tmp"):
        (folder / name).write_text("x")
    Checkpoints(folder).save(5, {"n": 5})
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000005.json", "step_000000005.pt"]


def test_a_damaged_checkpoint_never_displaces_a_good_one(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(20, {"n": 20})
    data = tmp_path / "c" / "step_000000020.pt"
    data.write_bytes(data.read_bytes()[:-1])
    assert checkpoints.load_newest() is None
    assert "passing over checkpoint step_000000020" in capsys.readouterr().err
    checkpoints.save(10, {"n": 10})
    assert Checkpoints(tmp_path / "c").load_newest()["n"] == 10


def test_another_format_is_neither_read_nor_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, {"n": 1})
    manifest = tmp_path / "c" / "step_000000001.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99, this code reads 1"):
        checkpoints.load_newest()
    assert manifest.exists()
