"""Every file is decoded before training: who fails is named, by a crash too, and nothing is done twice."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import ImageReadMode, decode_png

from dst.data import decode as decode_module
from dst.data import prepare as prepare_module
from dst.data.cache import load
from dst.data.children import in_children
from dst.data.dataset import DataError, Dataset
from dst.data.files import Files
from dst.data.folder import image_folder
from tests.data.pictures import picture, png, write, write_folder

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
STORAGES = pytest.mark.parametrize("storage", ["resident", "stream"])


def prepare(tmp_path: Path, storage: str, size: int | None = 8) -> Dataset:
    options = {"root": str(tmp_path / "set"), "cache": str(tmp_path / "cache"), "size": size, "storage": storage}
    return load("image_folder", image_folder, download=False, **options)


def refused(tmp_path: Path, storage: str) -> str:
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, storage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip_middle(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    return path


@pytest.fixture
def decoded(monkeypatch) -> list[list[int]]:
    """Return the numbers of the files that are decoded, a list for each time."""
    calls: list[list[int]] = []

    def watched(work, numbers):
        calls.append(list(numbers))
        yield from in_children(work, numbers)

    monkeypatch.setattr(prepare_module, "in_children", watched)
    return calls


# ---------------------------------------------------------------------------------------------------------------------
# Who fails


@STORAGES
def test_all_damaged_files_of_all_parts_are_named_at_once(tmp_path, storage):
    root = write_folder(tmp_path / "set", {"train": 8, "test": 3}, suffix=".png")
    damaged = [
        flip_middle(root / name) for name in ("test/class_1/2.png", "train/class_0/3.png", "train/class_1/7.png")
    ]
    cut = root / "train" / "class_1" / "0.png"
    cut.write_bytes(cut.read_bytes()[:-13])
    told = refused(tmp_path, storage)
    assert told.startswith(f"4 paths that should be images cannot be used: {damaged[1]} (it is damaged between bytes ")
    assert re.findall(r"(/\S+\.png) \(", told) == list(map(str, [damaged[1], cut, damaged[2], damaged[0]]))
    assert f"{cut} (it is truncated)" in told


@STORAGES
def test_of_very_many_damaged_files_the_first_are_named_and_all_counted(tmp_path, storage):
    root = write_folder(tmp_path / "set", {"train": 20, "test": 1}, suffix=".png")
    for path in (root / "train").glob("*/*.png"):
        path.write_bytes(b"no image")
    told = refused(tmp_path, storage)
    assert told.startswith("40 paths that should be images cannot be used: ")
    assert told.count(".png (it is neither JPEG nor PNG") == 20
    assert " and 20 more; for each: replace it" in told


@STORAGES
def test_a_crash_of_the_decoder_names_the_file_and_takes_nothing_along(tmp_path, storage, monkeypatch):
    """By torchvision's own decoder of PNGs, which really crashes at them."""

    def crashing(data: bytes) -> torch.Tensor:
        return decode_png(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)

    monkeypatch.setattr(decode_module, "_png", crashing)
    root = write_folder(tmp_path / "set", {"train": 40, "test": 3}, suffix=".png")
    paths = [root / name for name in ("train/class_0/7.png", "train/class_1/0.png", "test/class_1/2.png")]
    for path in paths:
        data = bytearray(png(np.random.default_rng(0).integers(0, 256, (24, 24, 3))))
        data[-30] ^= 0x55
        path.write_bytes(data)
    told = refused(tmp_path, storage)
    assert told.startswith("3 paths that should be images cannot be used: ")
    for path in paths:
        assert f"{path} (the decoder crashed: SIGSEGV)" in told


def test_a_jpeg_that_the_decoder_finds_fault_with_is_told(tmp_path, caplog):
    root = write_folder(tmp_path / "set", {"train": 3, "test": 1})
    path = root / "train" / "class_1" / "1.jpg"
    data = bytearray(path.read_bytes())
    data[11] ^= 0x55  # the revision of the format
    path.write_bytes(data)
    assert len(prepare(tmp_path, "stream").train) == 6
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "image_folder: verifying: the decoder finds fault with 1 of the images but can decode them; they are used: "
        f"{path} (Warning: unknown JFIF revision number 84.01)"
    )


def test_images_of_sixteen_bits_are_the_data_set_of_their_upper_eight(tmp_path):
    """The low bytes, which they were once, are nothing but noise."""
    made = []
    for bits in (8, 16):
        for part, count in (("train", 4), ("test", 2)):
            for number in range(2 * count):
                image = picture(number).permute(1, 2, 0).numpy().astype(np.int64)
                noise = np.random.default_rng(number).integers(0, 256, image.shape)
                path = tmp_path / str(bits) / "set" / part / f"class_{number % 2}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png(image * 256 + noise if bits == 16 else image, bits))
        made.append(prepare(tmp_path / str(bits), "resident", size=None))
    assert made[0].digest == made[1].digest
    assert torch.equal(made[1].train.images[0], picture(0))


# ---------------------------------------------------------------------------------------------------------------------
# What is not done twice


def test_only_what_is_new_or_mended_is_verified_again(tmp_path, decoded):
    root = write_folder(tmp_path / "set", {"train": 5, "test": 2})
    damaged = root / "train" / "class_0" / "3.jpg"
    damaged.write_bytes(damaged.read_bytes()[:100])
    for _ in range(2):
        assert str(damaged) in refused(tmp_path, "stream")
    assert decoded == [list(range(14)), [3]]
    write(damaged, picture(3))
    added = write(root / "test" / "class_1" / "9.jpg", picture(9))
    prepare(tmp_path, "stream")
    prepare(tmp_path, "stream")
    assert decoded[2:] == [[3, 14]]
    added.unlink()
    (root / "train" / "class_1" / "0.jpg").rename(root / "train" / "class_0" / "8.jpg")
    prepare(tmp_path, "stream")
    assert decoded[3:] == [[5]]


def test_what_was_verified_before_an_interruption_is_not_lost(tmp_path, decoded, monkeypatch):
    write_folder(tmp_path / "set", {"train": 40, "test": 2})

    def interrupted(work, numbers):
        for count, answer in enumerate(in_children(work, numbers)):
            if count == 50:
                raise KeyboardInterrupt
            yield answer

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "in_children", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, "stream")
    prepare(tmp_path, "stream")
    assert decoded == [list(range(50, 84))]


def test_a_long_verification_is_remembered_on_the_way(tmp_path, monkeypatch):
    """It may be killed without a chance to say so."""
    monkeypatch.setattr(prepare_module, "_KEPT_EVERY_S", 0.0)
    write_folder(tmp_path / "set", {"train": 20, "test": 2})
    seen = []

    def watched(work, numbers):
        memory = tmp_path / "cache" / "image_folder.verified"
        for answer in in_children(work, numbers):
            seen.append(memory.stat().st_size if memory.exists() else 0)
            yield answer

    monkeypatch.setattr(prepare_module, "in_children", watched)
    prepare(tmp_path, "stream")
    assert seen == [8 * n for n in range(44)]


@pytest.mark.parametrize("damage", [b"", b"x", b"torn" * 5, bytes(80)])
def test_a_damaged_memory_costs_time_only(tmp_path, decoded, damage):
    write_folder(tmp_path / "set", {"train": 3, "test": 1})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "image_folder.verified").write_bytes(damage)
    for _ in range(2):
        prepare(tmp_path, "stream")
    assert decoded == [list(range(8))]


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path, decoded, caplog):
    write_folder(tmp_path / "set", {"train": 3, "test": 1})
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        prepare(tmp_path, "stream")
    assert decoded == [list(range(8))] * 2
    assert "cannot remember in" in caplog.text


def test_the_memory_does_not_grow_for_ever(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(prepare_module, "_MOST_REMEMBERED", 10)
    root = write_folder(tmp_path / "set", {"train": 3, "test": 1})
    memory = tmp_path / "cache" / "image_folder.verified"
    for number in range(5):
        write(root / "train" / "class_0" / f"new{number}.jpg", picture(number))
        prepare(tmp_path, "stream")
        assert memory.stat().st_size <= 80
    prepare(tmp_path, "stream")
    assert len(decoded) == 5  # the newest stay


def test_another_way_of_decoding_makes_caches_and_verifications_anew(tmp_path, decoded, monkeypatch):
    """A cache of images of 16 bits that holds their low bytes must not be taken for good."""
    write_folder(tmp_path / "set", {"train": 2, "test": 1})
    digests = {prepare(tmp_path, "stream").digest, prepare(tmp_path, "stream").digest}
    for _ in range(2):
        prepare(tmp_path, "resident")
    for module in ("files", "cache"):
        monkeypatch.setattr(f"dst.data.{module}.DECODING", 3)
    for _ in range(2):
        prepare(tmp_path, "resident")
        digests.add(prepare(tmp_path, "stream").digest)
    assert decoded == [list(range(6))] * 4
    assert len(digests) == 1  # what the set is remains


# ---------------------------------------------------------------------------------------------------------------------
# What is seen meanwhile


@pytest.mark.parametrize(("storage", "doing"), [("resident", "decoding"), ("stream", "verifying")])
def test_without_a_terminal_the_progress_is_a_line_now_and_then(tmp_path, storage, doing, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module, "_TOLD_EVERY_S", 0.0)
    write_folder(tmp_path / "set", {"train": 40, "test": 10})
    prepare(tmp_path, storage)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 100
    for count, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"image_folder: {doing}: {count} of 100 images, [\d,]+ images/s, \d+ min left", line), line


def test_files_joined_are_the_one_and_then_the_other(tmp_path):
    train, test, _ = image_folder(write_folder(tmp_path, {"train": 2, "test": 11}), False)
    both = train.joined(test)
    assert isinstance(both, Files)
    assert [both.path(n) for n in range(len(both))] == [
        *(train.path(n) for n in range(len(train))),
        *(test.path(n) for n in range(len(test))),
    ]
    assert both.stamps.tolist() == [*train.stamps.tolist(), *test.stamps.tolist()]
    assert both.labels.tolist() == [*train.labels.tolist(), *test.labels.tolist()]
