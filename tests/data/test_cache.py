"""The cache: read again without the raw data, never trusted unverified, safe when two processes write it."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dst.data.cache import load
from dst.data.dataset import DataError, Dataset, Split


class Reader:
    """A made-up raw source that counts how often it is read."""

    def __init__(self, height: int = 4) -> None:
        self.reads, self.height = 0, height

    def __call__(self, root: Path, *, download: bool) -> tuple[Split, Split, int]:
        self.reads += 1
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (50, 2, self.height, 4), dtype=torch.uint8, generator=generator)
        labels = torch.arange(50) % 5
        return Split(images[:40], labels[:40]), Split(images[40:], labels[40:]), 5


def prepare(folder: Path, read, size: int | None = None, name: str = "made_up") -> Dataset:
    return load(name, read, root=str(folder / "raw"), cache=str(folder / "cache"), download=False, size=size)


def same(one: Dataset, other: Dataset) -> bool:
    return (one.name, one.classes, one.digest, one.shape) == (
        other.name,
        other.classes,
        other.digest,
        other.shape,
    ) and all(
        torch.equal(a, b)
        for a, b in [
            (one.train.images, other.train.images),
            (one.train.labels, other.train.labels),
            (one.test.images, other.test.images),
            (one.test.labels, other.test.labels),
        ]
    )


def test_decoded_once_then_read_from_one_file(tmp_path, caplog):
    read = Reader()
    first, second = prepare(tmp_path, read), prepare(tmp_path, read)
    assert read.reads == 1
    assert same(first, second)
    assert torch.equal(second.train.images, Reader()(tmp_path, download=False)[0].images)
    assert second.shape == (2, 4, 4)
    assert os.listdir(tmp_path / "cache") == ["made_up.bin"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_names_and_sizes_have_files_of_their_own(tmp_path):
    read = Reader()
    datasets = [prepare(tmp_path, read), prepare(tmp_path, read, size=3), prepare(tmp_path, read, name="other")]
    assert read.reads == 3
    assert sorted(os.listdir(tmp_path / "cache")) == ["made_up-3.bin", "made_up.bin", "other.bin"]
    assert datasets[0].digest == datasets[2].digest != datasets[1].digest  # the digest is of the content
    (tmp_path / "cache" / "made_up.bin").replace(tmp_path / "cache" / "made_up-3.bin")
    assert prepare(tmp_path, read, size=3).shape == (2, 3, 3)  # a file under a wrong name is noticed
    assert read.reads == 4


def test_every_single_damage_is_noticed_and_mended(tmp_path, caplog):
    read = Reader(height=1)
    good = prepare(tmp_path, read)
    path = tmp_path / "cache" / "made_up.bin"
    content = path.read_bytes()
    manifest = content.index(b"\n")
    damages = [content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :] for at in range(manifest + 1)]
    damages += [
        content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in range(manifest + 1, len(content), 37)
    ]
    damages += [content[:at] for at in range(0, len(content), 61)] + [content + b"x", b"[1]", b"null\n", b"{}\n"]
    for count, damaged in enumerate(damages, start=2):
        path.write_bytes(damaged)
        caplog.clear()
        assert same(prepare(tmp_path, read), good)
        assert read.reads == count
        (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert str(path) in record.getMessage()
        assert "\n" not in record.getMessage()
        assert path.read_bytes() == content


def test_damage_without_raw_data_is_an_error(tmp_path):
    prepare(tmp_path, Reader())
    (tmp_path / "cache" / "made_up.bin").write_bytes(b"")

    def gone(root: Path, *, download: bool):
        raise DataError(f"nothing in {root}")

    with pytest.raises(DataError, match="nothing in"):
        prepare(tmp_path, gone)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert prepare(tmp_path, Reader()).classes == 5
    assert "cache=FOLDER" in caplog.text


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(fd: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert prepare(tmp_path, Reader()).classes == 5
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("size", [2, 7])
def test_resizing_is_antialiased_bilinear(tmp_path, size):
    from torchvision.transforms.v2 import functional

    original, resized = prepare(tmp_path, Reader()), prepare(tmp_path, Reader(), size=size)
    assert resized.shape == (2, size, size)
    reference = functional.resize(original.train.images.double(), [size, size], antialias=True)
    assert (resized.train.images - reference).abs().max() <= 0.5 + 1e-4
    assert torch.equal(resized.train.labels, original.train.labels)


def test_resizing_to_the_size_it_has_changes_nothing(tmp_path):
    assert prepare(tmp_path, Reader()).digest == prepare(tmp_path, Reader(), size=4).digest


def test_a_size_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size=0: must be in \[1, 4096\]"):
        prepare(tmp_path, Reader(), size=0)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\[N, C, H, W\]"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "not empty"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "one for each image"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2), "int64"),
    ],
)
def test_a_split_is_checked(images, labels, message):
    with pytest.raises(DataError, match=message):
        Split(images, labels)


def test_the_parts_of_a_dataset_are_checked():
    train, test, _ = Reader()(Path(), download=False)
    with pytest.raises(DataError, match="labels run from 0 to 4"):
        Dataset("x", train, test, 4, "")
    with pytest.raises(DataError, match="test images"):
        Dataset("x", train, Split(test.images[:, :1], test.labels), 5, "")


RACER = """
import sys, time, torch
from pathlib import Path
from dst.data.dataset import Split
from dst.data.cache import load

def read(root, *, download):
    images = (torch.arange(20_000 * 64) % 251).to(torch.uint8).view(-1, 1, 8, 8)
    split = Split(images, torch.arange(20_000) % 10)
    return split, split, 10

Path(sys.argv[2] + sys.argv[3]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
for attempt in range(10):
    Path(sys.argv[1], "raced.bin").unlink(missing_ok=True)
    print(load("raced", read, root="", cache=sys.argv[1], download=False).digest)
"""


def test_processes_that_prepare_at_once_all_get_the_data(tmp_path):
    cache, go = tmp_path / "cache", tmp_path / "go"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(cache), str(go), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in "ab"
    ]
    while not all(Path(f"{go}{name}").exists() for name in "ab"):  # the start-up is not part of the race
        assert all(racer.poll() is None for racer in racers), "a racer died before the start"
        time.sleep(0.01)
    go.touch()
    outputs = [racer.communicate(timeout=120) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0], outputs
    assert [errors for _, errors in outputs] == ["", ""]  # no process saw half a file: that would have been a warning
    digests = [line for output, _ in outputs for line in output.split()]
    assert len(digests) == 20
    assert len(set(digests)) == 1
    assert os.listdir(cache) == ["raced.bin"]
