"""A full disk is told by what is missing where: of checkpoints, records, caches and wandb's scratch."""

import errno
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from dst import files
from dst.data import cache
from dst.data.dataset import Split
from dst.files import replace_text, size, telling_space
from dst.records.store import Record
from dst.tracking import mirror, send
from dst.training.checkpoint import Checkpoints, save_network
from tests.limits import full_disk, largest_file

SPACE = r"no space left on (?P<disk>/.*): (?P<name>\S+) needs (?P<needed>\S+ \S+) or more, (?P<free>\S+ \S+) are free"
STATE = {"model": {"w": torch.zeros(1000, 100)}, "sparsifier": {"masks": {}}}


def told(error):
    """Return what a message says, by the names of the parts of ``SPACE``."""
    found = re.search(SPACE, str(error.value))
    assert found, error.value
    assert Path(found["disk"]).is_mount()
    return found["name"], found["needed"]


def test_a_checkpoint_is_not_refused_in_torchs_words(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, STATE)
    os.symlink("/dev/full", tmp_path / "step_000000002.pt.tmp")  # what is to become the file
    with pytest.raises(OSError, match=r"cannot write checkpoint .*step_000000002.pt .*earlier .* are intact") as error:
        checkpoints.save(2, STATE)
    assert told(error) == ("step_000000002.pt", "390.6 KiB")
    assert "unexpected pos" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000000001.json", "step_000000001.pt"]


def test_nor_is_a_network_that_is_kept(tmp_path):
    os.symlink("/dev/full", tmp_path / "ticket.pt.tmp")
    with pytest.raises(OSError, match="cannot write network") as error:
        save_network(tmp_path / "ticket.pt", STATE)
    assert told(error) == ("ticket.pt", "390.6 KiB")


def test_a_limit_of_size_is_told_in_the_systems_words(tmp_path):
    with largest_file(1000), pytest.raises(OSError, match="File too large") as error:
        Checkpoints(tmp_path).save(2, STATE)
    assert "unexpected pos" not in str(error.value)


def test_a_record(tmp_path):
    record = Record.create(tmp_path / "abc", config_yaml="seed: 0\n", run={"id": "abc"})
    with full_disk(), pytest.raises(OSError, match=SPACE) as error:
        record.write_status("running", attempt=1, step=1)
    assert told(error)[0] == "status.json"
    os.symlink("/dev/full", record.folder / "metrics.jsonl")
    with pytest.raises(OSError, match=SPACE) as error:
        record.log(step=1, epoch=0.1, attempt=1, values={"train/loss": 3.0})
    assert told(error) == ("metrics.jsonl", "59 B")


def test_a_cache_of_data(tmp_path, caplog):
    split = Split(torch.zeros(50, 1, 8, 8, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
    with full_disk():
        assert len(cache._stored(tmp_path / "set.bin", "set", split, split, 10, None).train) == 50
    assert re.search(rf"cannot write its cache .*{SPACE}", caplog.text)["needed"] == "7.0 KiB"


def test_a_used_up_quota_is_told_as_such_and_other_errors_as_they_are(tmp_path):
    quota = r"the quota is used up on /.*: x needs 2.0 MiB or more, .* are free"
    with pytest.raises(OSError, match=quota) as error, telling_space(tmp_path / "x", 2 << 20):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert error.value.errno == errno.EDQUOT
    with pytest.raises(PermissionError, match="Permission denied"), telling_space(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(OSError, match=r"no space left on /[^:]*$"), telling_space(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_was_there_stays(tmp_path):
    replace_text(tmp_path / "note", "old")
    with full_disk(), pytest.raises(OSError, match="no space left on"):
        replace_text(tmp_path / "note", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("note", "old")]


def test_wandbs_scratch(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=4096))
    assert send._no_room(tmp_path) == f"; there is no space left for wandb's scratch {tmp_path}: 4.0 KiB are free"
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
    assert send._no_room(tmp_path) == ""

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    mirror.WandbMirror(1.0).begin(tmp_path)  # the run goes on
    assert "warning: wandb: it could not be started: [Errno 28] no space left on /" in capsys.readouterr().err


def test_sizes():
    assert [size(count) for count in (0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40)] == [
        *("0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"),
    ]
