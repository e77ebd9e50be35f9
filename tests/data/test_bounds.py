"""Files of any size and what unpacks to any size: refused with their sizes, before memory is filled."""

import gzip
import os
import resource
import warnings
from contextlib import contextmanager
from io import BytesIO

import pytest
from PIL import Image
from torchvision.io import encode_jpeg

from dst.data import bounds, cache, decode, mnist, table_file
from dst.data.bounds import MOST_BYTES, check_memory, memory, read_bounded
from dst.data.cache import load
from dst.data.cifar import cifar10
from dst.data.dataset import DataError
from dst.data.folder import image_folder
from tests.data.pictures import picture, write_folder

HUGE = 1 << 40  # holes of this size take no space on the disk


@contextmanager
def little_memory(more=1 << 30):
    """Let this process take no more than so much memory beyond what it has: what fills it fails at once."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def huge(path, beginning=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(beginning)
        file.truncate(HUGE)
    return path


def test_a_file_of_a_published_set_has_a_largest_size(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    for name in (*mnist._TRAIN, *mnist._TEST):
        huge(raw / name)
    for number in range(1, 6):
        huge(tmp_path / "cifar-10-batches-py" / f"data_batch_{number}")
    for name in ("test_batch", "batches.meta"):
        huge(tmp_path / "cifar-10-batches-py" / name)
    told = r"/\S+ has 1.0 TiB, more than the 256.0 MiB that such a file may have"
    for read in (mnist.mnist, cifar10):
        with little_memory(), pytest.raises(DataError, match=told):
            read(tmp_path, download=False)


def test_so_has_what_a_packed_file_unpacks_to(tmp_path, monkeypatch):
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir(parents=True)
    bomb = gzip.compress(bytes(1 << 20), 1) * 300  # 300 MiB of zeros in 1.4 MB: parts of a gz are unpacked one by one
    path.write_bytes(bomb)
    monkeypatch.setattr(mnist, "_missing", lambda folder: [])
    with little_memory(), pytest.raises(DataError, match=r"ubyte.gz unpacks to more than the 256.0 MiB"):
        mnist.mnist(tmp_path, download=False)
    assert len(bomb) < MOST_BYTES // 100
    assert read_bounded(path, 300 << 20) == bytes(300 << 20)


def _png(height, width):
    from zlib import compress, crc32

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compress(bytes(100000), 9)) + chunk(b"IEND", b"")
    )


def _jpeg(height, width):
    data = bytearray(encode_jpeg(picture(0)).numpy().tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def _of_pillow(kind, height, width):
    """The size that a header says, of a small image."""
    file = BytesIO()
    Image.new("P" if kind == "GIF" else "RGB", (8, 8)).save(
        file, kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    data = bytearray(file.getvalue())
    if kind == "GIF":
        data[6:10] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    else:  # 14 bits each, less one
        at = data.index(b"VP8L") + 9
        data[at : at + 4] = ((width - 1) | (height - 1) << 14 | 1 << 28).to_bytes(4, "little")
    return bytes(data)


BOMBS = {
    "png": lambda: _png(60000, 50000),
    "jpeg": lambda: _jpeg(60000, 50000),
    "gif": lambda: _of_pillow("GIF", 60000, 50000),
    "webp": lambda: _of_pillow("WEBP", 16000, 15000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_an_image_has_a_largest_number_of_pixels(kind, tmp_path):
    (tmp_path / "image.jpg").write_bytes(BOMBS[kind]())
    decode.load_decoders()
    ours = r"its header says \d\d,000 x \d\d,000 pixels, more than 178,956,970; scale it down"
    told = rf"cannot decode \S+ \(({ours}|Image size .* exceeds limit of 178956970 pixels)"  # or in Pillow's words
    with little_memory(), pytest.raises(DataError, match=told):
        decode.decode(tmp_path / "image.jpg")


def test_an_image_of_a_large_camera_is_no_bomb_and_nothing_warns_of_it(tmp_path):
    """100 million pixels, of which Pillow warns; none of them is decoded here, and those of the PNG are not there."""
    size = (8736, 11648)
    others = {"gif": _of_pillow("GIF", *size), "webp": _of_pillow("WEBP", *size), "jpeg": _jpeg(*size)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for kind, data in {"png": _png(*size), **others}.items():
            (tmp_path / kind).write_bytes(data)
            assert decode.size_of(tmp_path / kind) == size
        for data in others.values():
            decode._check_size(data)
        with pytest.raises(DataError, match=r"png \(image file is truncated"):
            decode.decode(tmp_path / "png")


@pytest.mark.parametrize("data", [b"GIF89a", b"GIF8" * 9, b"RIFF\x10\0\0\0WEBP"])
def test_a_header_that_makes_no_sense_is_told_in_words(data, tmp_path):
    (tmp_path / "image.jpg").write_bytes(data)
    with pytest.raises(DataError, match=r"image.jpg \([a-z ]+\): replace it"):
        decode.decode(tmp_path / "image.jpg")


def test_an_animation_is_refused_before_its_images_are_decoded(tmp_path):
    frames = [Image.new("RGB", (8, 8), (color, 255 - color, 0)) for color in range(200)]
    frames[0].save(tmp_path / "image.jpg", "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="it is an animation of 200 images"):
        decode.decode(tmp_path / "image.jpg")


def test_an_image_file_has_a_largest_size(tmp_path):
    path = huge(tmp_path / "image.jpg", _jpeg(12, 12))
    with (
        little_memory(),
        pytest.raises(DataError, match=r"it has 1.0 TiB, more than the 256.0 MiB that an image may"),
    ):
        decode.decode(path)


@pytest.mark.parametrize("height", [1, 9, 300])
def test_images_as_they_are_are_decoded(height, tmp_path):
    image = picture(1, height, 17)
    (tmp_path / "image.jpg").write_bytes(encode_jpeg(image).numpy().tobytes())
    assert decode._jpeg_size((tmp_path / "image.jpg").read_bytes()) == (height, 17)
    assert decode.decode(tmp_path / "image.jpg").shape == (3, height, 17)


def test_a_table_has_a_largest_size(tmp_path):
    path = huge(tmp_path / "table.csv", b"a,b\n")
    told = r"path=\S+table.csv: it has 1.0 TiB, and a table that is read whole may have \S+ GiB here, a 4th of"
    with little_memory(), pytest.raises(DataError, match=told):
        table_file.read_table(path, "b", [])
    with little_memory(), pytest.raises(DataError, match=told):
        cache.table_digest(str(path))


def test_images_that_do_not_fit_into_memory_are_not_decoded_to_be_resident(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data", {"train": 4, "test": 2})
    options = {"root": str(root), "cache": str(tmp_path / "cache"), "size": 12, "download": False}
    monkeypatch.setattr(bounds, "memory", lambda: 1000)
    told = r"image_folder: all images decoded takes 5.1 KiB of memory, and 1000 B are here: storage=stream"
    with pytest.raises(DataError, match=told):
        load("image_folder", image_folder, storage="resident", **options)
    assert len(load("image_folder", image_folder, storage="stream", **options).train) == 8


def test_the_memory_is_that_of_the_machine_or_of_its_control_group(tmp_path, monkeypatch):
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for text, found in (("max\n", machine), ("1000000\n", 1000000), (f"{1 << 62}\n", machine)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(bounds, "_LIMITS", [str(tmp_path / "memory.max"), str(tmp_path / "none")])
        assert memory() == found
    check_memory("this", 999, "less")
    monkeypatch.setattr(bounds, "memory", lambda: 2048)
    with pytest.raises(DataError, match=r"this takes 3.0 KiB of memory, and 2.0 KiB are here: take less"):
        check_memory("this", 3072, "take less")
