"""What a set holds, as a digest: every change of a file is another content, and nothing is read twice for it."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dst.data import content, published
from dst.data.cache import content_digest, load
from dst.data.dataset import DataError, Split
from dst.data.digits import digits
from dst.data.files import Files
from dst.data.folder import image_folder
from dst.data.mnist import fashion_mnist, mnist
from dst.data.tiny_imagenet import tiny_imagenet
from tests.data.pictures import picture, write, write_folder, write_tiny_imagenet
from tests.data.test_sources import write_raw

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """Note which files are read to be digested, and take no file for one that may still be being written."""
    found: list[Path] = []
    read = content._sum
    monkeypatch.setattr(content, "_sum", lambda path: found.append(path) or read(path))
    monkeypatch.setattr(content, "_TICK_NS", 0)
    return found


def digest(root: Path, read=image_folder) -> str:
    return content_digest(read.__name__, read, root=str(root), cache=str(root.parent / "cache"), download=False)


# ---------------------------------------------------------------------------------------------------------------------
# Image files


def test_the_digest_is_that_of_names_labels_and_bytes(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 2, "val": 1})
    expected = hashlib.sha256()
    for part, count in (("train", 2), ("val", 1)):
        expected.update(f"{2 * count} files\n".encode())
        for label in range(2):
            for n in range(count):
                name = f"{part}/class_{label}/{n}.jpg"
                file = hashlib.sha256((root / name).read_bytes()).hexdigest()
                expected.update(f"{file} {label} {name}\0".encode())
    assert digest(root) == expected.hexdigest()


def change_a_byte(root: Path) -> None:
    path = root / "train" / "class_0" / "0.jpg"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def change_a_byte_and_set_the_time_back(root: Path) -> None:
    path = root / "train" / "class_0" / "0.jpg"
    before = path.stat()
    change_a_byte(root)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def exchange_two(root: Path) -> None:
    one, other = (root / "train" / f"class_{label}" / "0.jpg" for label in (0, 1))
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)


CHANGES = {
    "added": lambda root: write(root / "train" / "class_0" / "9.jpg", picture(99)),
    "removed": lambda root: (root / "test" / "class_1" / "0.jpg").unlink(),
    "renamed": lambda root: (root / "train" / "class_0" / "0.jpg").rename(root / "train" / "class_0" / "00.jpg"),
    "moved to another class": lambda root: (root / "train" / "class_0" / "0.jpg").rename(
        root / "train" / "class_1" / "7.jpg"
    ),
    "a byte": change_a_byte,
    "a byte, time set back": change_a_byte_and_set_the_time_back,
    "two exchanged": exchange_two,
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_another_content(tmp_path, reads, change):
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    first = digest(root)
    assert digest(root) == first
    assert len(reads) == 8
    CHANGES[change](root)
    assert digest(root) != first


def test_a_copy_has_the_same_digest_and_is_read_for_itself(tmp_path, reads):
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    copied = tmp_path / "copied"
    subprocess.run(["cp", "-a", root, copied], check=True)
    assert digest(root) == digest(copied)
    assert len(reads) == 16
    os.utime(root / "train" / "class_0" / "0.jpg")  # touched, not changed: read again, with the same outcome
    assert digest(root) == digest(copied)
    assert len(reads) == 24


def test_what_was_just_written_is_not_noted(tmp_path, reads, monkeypatch):
    """Within a tick of the clock a file can change again without its change time telling."""
    monkeypatch.setattr(content, "_TICK_NS", 3600 * 10**9)
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    assert digest(root) == digest(root)
    assert len(reads) == 8
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda text: "0" + text[1:], lambda _: ""])
def test_a_damaged_note_is_not_believed(tmp_path, reads, damage):
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    first = digest(root)
    (note,) = tmp_path.glob("cache/*.content")
    text = note.read_text()
    note.write_text(damage(text) if not text.startswith("0") else "1" + text[1:])
    assert digest(root) == first
    assert len(reads) == 8
    assert note.read_text() == text


def test_the_note_of_another_listing_is_not_believed(tmp_path, reads):
    root, other = (write_folder(tmp_path / name, {"train": 1, "test": count}) for name, count in (("a", 1), ("b", 2)))
    first = digest(root)
    (note,) = tmp_path.glob("cache/*.content")
    second = digest(other)
    (newer,) = set(tmp_path.glob("cache/*.content")) - {note}
    note.replace(newer)
    assert digest(other) == second != first


def test_an_unwritable_cache_costs_time_only(tmp_path, reads, caplog):
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert digest(root) == digest(root)
    assert len(reads) == 8
    assert "cannot note the digest" in caplog.text


def test_the_labels_of_tiny_imagenet_are_part_of_its_content(tmp_path):
    root = write_tiny_imagenet(tmp_path / "set")
    first = digest(root, tiny_imagenet)
    path = root / "val" / "val_annotations.txt"
    lines = path.read_text().splitlines()
    exchanged = [lines[1].replace("n01", "n02"), lines[2].replace("n02", "n01")]
    path.write_text("\n".join([lines[0], *exchanged, *lines[3:]]))
    assert digest(root, tiny_imagenet) != first


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_another_content_than_asked_for_is_refused_and_both_named(tmp_path, storage):
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    options = {"cache": str(tmp_path / "cache"), "download": False, "size": 8, "storage": storage}
    first = digest(root)
    change_a_byte(root)
    with pytest.raises(DataError, match=r"root=.*/set: .* another run") as caught:
        load("image_folder", image_folder, root=str(root), digest=first, **options)
    assert {first, digest(root)} <= set(re.findall("[0-9a-f]{64}", str(caught.value)))
    found = load("image_folder", image_folder, root=str(root), digest=digest(root), **options)
    assert isinstance(found.train, Files if storage == "stream" else Split)


def test_a_decoded_set_is_known_by_its_content(tmp_path, monkeypatch):
    """So it needs its files no more, two copies of a set share it, and two sets do not."""
    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    options = {"cache": str(tmp_path / "cache"), "download": False}
    first = digest(root)
    known = load("image_folder", image_folder, root=str(root), digest=first, **options)
    root.rename(tmp_path / "moved")
    again = load("image_folder", image_folder, root=str(root), digest=first, **options)
    assert torch.equal(again.train.images, known.train.images)
    change_a_byte(tmp_path / "moved")
    second = digest(tmp_path / "moved")
    load("image_folder", image_folder, root=str(tmp_path / "moved"), digest=second, **options)
    one, other = (next(tmp_path.glob(f"cache/image_folder-{name[:16]}.bin")) for name in (first, second))
    other.replace(one)  # a file under a wrong name is noticed
    with pytest.raises(DataError, match="there is no such folder"):
        load("image_folder", image_folder, root=str(root), digest=first, **options)


def test_files_that_change_while_they_are_decoded_are_refused(tmp_path, monkeypatch):
    from dst.data import cache

    root = write_folder(tmp_path / "set", {"train": 2, "test": 2})
    decode_all = cache.decode_all

    def meddle(files, title):
        found = decode_all(files, title)
        change_a_byte(root)
        return found

    monkeypatch.setattr(cache, "decode_all", meddle)
    with pytest.raises(DataError, match=r"class_0/0\.jpg changed while the set was read"):
        load("image_folder", image_folder, root=str(root), cache=str(tmp_path / "cache"), download=False)
    assert not list(tmp_path.glob("cache/*.bin"))


# ---------------------------------------------------------------------------------------------------------------------
# Known sets


@pytest.fixture(params=[mnist, fashion_mnist])
def known(request, tmp_path, monkeypatch):
    """Return a reader, its raw folder, and the digest of what lies there, which is taken for the published one."""
    read = request.param
    folder = write_raw(tmp_path, "MNIST" if read is mnist else "FashionMNIST")
    sums = {path.name: published.md5(path.read_bytes()) for path in folder.iterdir()}
    monkeypatch.setitem(published.SUMS, read.__name__, sums)
    monkeypatch.setattr(published, "digest", published.digest.__wrapped__)  # it remembers
    return read, folder, published.digest_of(sums)


def damage(path: Path, how: str) -> None:
    data, header = path.read_bytes(), 16 if "images" in path.name else 8
    body = {
        "zeros": bytes(len(data) - header),
        "shifted": bytes((value + 1) % 10 for value in data[header:]),
        "a byte": bytes([data[header] ^ 1]) + data[header + 1 :],
    }[how]
    path.write_bytes(data[:header] + body)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("train-images-idx3-ubyte", "zeros"),
        ("train-labels-idx1-ubyte", "shifted"),
        ("t10k-images-idx3-ubyte", "a byte"),
        ("t10k-labels-idx1-ubyte", "a byte"),
    ],
)
def test_another_content_of_a_known_set_is_refused_and_taken_on_purpose(known, tmp_path, name, how):
    read, folder, original = known
    assert len(read(tmp_path, download=False, digest=original)[0]) == 12
    good = published.md5((folder / name).read_bytes())
    damage(folder / name, how)
    bad = published.md5((folder / name).read_bytes())
    with pytest.raises(DataError) as caught:
        read(tmp_path, download=False, digest=original)
    message = str(caught.value)
    assert f"{folder}: damaged, or not the original: {name} (MD5 sum {bad}, published {good})" in message
    assert message.count("MD5 sum") == 1
    (variant,) = re.findall(r"digest=([0-9a-f]{64})", message)
    assert len(read(tmp_path, download=False, digest=variant)[0]) == 12


def test_the_original_is_no_variant(known, tmp_path):
    read, folder, _ = known
    with pytest.raises(DataError, match=r"it is the original, but digest=0{64}.*leave that out"):
        read(tmp_path, download=False, digest="0" * 64)
    damage(folder / "train-labels-idx1-ubyte", "shifted")
    with pytest.raises(DataError, match=r"its content has the digest [0-9a-f]{64}, but digest=0{64}"):
        read(tmp_path, download=False, digest="0" * 64)


def test_a_cache_is_of_one_content(known, tmp_path):
    """What lies in the raw folder once the set is cached makes no difference; another content has another file."""
    read, folder, original = known
    options = {"root": str(tmp_path), "cache": str(tmp_path / "cache"), "download": False}
    good = load(read.__name__, read, digest=original, **options)
    damage(folder / "train-labels-idx1-ubyte", "shifted")
    assert load(read.__name__, read, digest=original, **options).digest == good.digest
    sums = {path.name: published.md5(path.read_bytes()) for path in folder.iterdir()}
    variant = load(read.__name__, read, digest=published.digest_of(sums), **options)
    assert variant.digest != good.digest
    assert torch.equal(variant.train.labels, (good.train.labels + 1) % 10)
    one, other = (
        tmp_path / "cache" / f"{read.__name__}-{name[:16]}.bin" for name in (original, published.digest_of(sums))
    )
    other.replace(one)
    with pytest.raises(
        DataError, match="damaged, or not the original: train-labels"
    ):  # the file told that it was wrong
        load(read.__name__, read, digest=original, **options)


def test_the_digits_are_those_that_are_known(tmp_path, monkeypatch):
    assert len(digits(tmp_path, False, published.digest("digits"))[0]) == 1438
    with pytest.raises(DataError, match=r"digits\.csv\.gz: it is the original, but digest=0{64}"):
        digits(tmp_path, False, "0" * 64)


def test_a_set_of_ones_own_is_known_by_what_its_function_returns(tmp_path):
    def own(root: Path, download: bool):
        images = torch.full((4, 1, 2, 2), int((root / "value").read_text()), dtype=torch.uint8)
        return Split(images, torch.arange(4) % 2), Split(images[:2], torch.arange(2)), 2

    (tmp_path / "value").write_text("1")
    options = {"root": str(tmp_path), "cache": str(tmp_path / "cache"), "download": False}
    first = content_digest("own", own, **options)
    load("own", own, digest=first, size=1, **options)
    (tmp_path / "value").write_text("2")
    assert content_digest("own", own, **options) != first
    with pytest.raises(DataError, match=f"but digest={first}"):
        load("own", own, digest=first, **options)


def test_the_digest_of_a_folder_can_be_asked_for(tmp_path):
    root = write_folder(tmp_path / "set", {"train": 1, "test": 1})
    command = [sys.executable, "-m", "dst.run.sources", "image_folder", str(root), "--cache", str(tmp_path / "cache")]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == digest(root)
    told = subprocess.run([*command[:4], "nowhere"], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert "there is no such folder" in told.stderr
