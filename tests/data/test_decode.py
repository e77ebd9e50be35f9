"""What image files become: exact values of every kind, and what is said of those that are damaged."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.io import ImageReadMode, decode_image, encode_jpeg

from dst.data.children import in_children
from dst.data.decode import pixels, size_of
from tests.data.pictures import picture, png, png_of_chunks, write

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("images") / "0.png"


def decoded(path: Path, data: bytes) -> np.ndarray:
    """Return the image [H, W, 3] that a file with these bytes becomes."""
    path.write_bytes(data)
    image = pixels(path)
    assert (image.dtype, image.dim()) == (torch.uint8, 3)
    assert size_of(path) == tuple(image.shape[1:])
    return image.permute(1, 2, 0).numpy()


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r".") as caught:
        pixels(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def samples(height: int, width: int, channels: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (height, width, channels))


# ---------------------------------------------------------------------------------------------------------------------
# Values


def test_of_sixteen_bits_the_upper_eight_are_kept(path):
    row = np.array([[[0], [1], [255], [256], [257], [511], [512], [32767], [32768], [65279], [65280], [65535]]])
    grey = decoded(path, png(row, 16))
    assert grey[0, :, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 127, 128, 254, 255, 255]
    for channels in (1, 2, 3, 4):  # grey, grey with transparency, colours, colours with transparency
        made = samples(5, 7, channels, 16)
        colours = made[..., :1] if channels < 3 else made[..., :3]
        assert (decoded(path, png(made, 16)) == (colours >> 8)).all()
    assert (decoded(path, png(made, 16)) == np.asarray(Image.open(path).convert("RGB"))).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_eight_bits_stored_as_sixteen_are_the_same_image(path, channels):
    eight = samples(6, 5, channels, 8)
    assert (decoded(path, png(eight * 257, 16)) == decoded(path, png(eight, 8))).all()
    assert (decoded(path, png(eight, 8)) == (eight[..., :1] if channels < 3 else eight[..., :3])).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_span_black_to_white(path, bits):
    made = samples(5, 16, 1, bits)
    assert (decoded(path, png(made, bits)) == made * 255 // ((1 << bits) - 1)).all()


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
def test_a_palette_with_transparency_becomes_its_colours(path, colours):
    image = Image.fromarray(samples(9, 12, 3, 8).astype(np.uint8)).quantize(colours)
    plain = np.asarray(image.convert("RGB"))
    for transparency in (1, bytes(range(colours))):  # one colour, or a share for each
        data = encoded(image, transparency=transparency, bits=(colours - 1).bit_length())
        assert (decoded(path, data) == plain).all()


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_any_colours_are_what_pillow_makes_of_them(path, mode):
    blocks = np.kron(samples(4, 5, 4, 8), np.ones((8, 8, 1))).astype(np.uint8)
    image = Image.fromarray(blocks[..., 0] if mode == "L" else blocks[..., : len(mode)], mode)
    for options in ({"quality": 95}, {"quality": 60, "progressive": True}):
        data = encoded(image, "JPEG", **options)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.abs(decoded(path, data).astype(int) - expected).max() <= 1


def test_the_content_counts_and_not_the_name(path):
    assert (decoded(path.with_suffix(".jpg"), png(samples(3, 3, 3, 8))) == samples(3, 3, 3, 8)).all()
    image = Image.fromarray(samples(6, 8, 3, 8).astype(np.uint8))
    webp = encoded(image, "WEBP", lossless=True)
    assert (decoded(path.with_suffix(".jpg"), webp) == np.asarray(image)).all()
    still = encoded(image.quantize(16), "GIF")
    assert (decoded(path.with_suffix(".jpg"), still) == np.asarray(image.quantize(16).convert("RGB"))).all()


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be decoded


def test_what_is_no_image_is_told_so(path, tmp_path):
    assert refused(path, b"<html>not found</html>") == "it is neither JPEG nor PNG but begins with b'<html>no'"
    assert refused(path, b"") == "it is empty"
    assert refused(path, png(samples(3, 3, 3, 8))[:40]) == "it is truncated"
    images = [Image.fromarray(samples(6, 8, 3, 8, seed).astype(np.uint8)) for seed in range(3)]
    animation = encoded(images[0], "GIF", save_all=True, append_images=images[1:])
    assert refused(path, animation) == "it is an animation of 3 images"
    for missing, reason in ((tmp_path / "gone.jpg", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match=f"^{reason}$"):
            pixels(missing)


def test_every_flipped_byte_of_a_png_is_found(path):
    """Pillow alone passes a third of them over, with other pixels; torchvision's decoder crashes at most of them."""
    good = write(path, picture(3, 24, 24)).read_bytes()
    decoded(path, good)

    def is_refused(number: int) -> bool:
        at, flip = divmod(number, 3)
        mine = path.with_name(f"{number}.png")
        mine.write_bytes(good[:at] + bytes([good[at] ^ (1, 0x55, 0xFF)[flip]]) + good[at + 1 :])
        try:
            pixels(mine)
        except ValueError:
            return True
        finally:
            mine.unlink()
        return False

    answers = list(in_children(is_refused, range(3 * len(good))))
    assert len(answers) == 3 * len(good) > 1000
    assert [answer for answer in answers if not answer.result] == []
    for length in range(len(good)):
        refused(path, good[:length])
    decoded(path, good + bytes(100))


def test_no_damage_to_a_jpeg_does_more_than_to_refuse_it(path):
    """It has no checksum: where it can be decoded it may be another image, but an image."""
    good = encode_jpeg(picture(3, 40, 40), quality=90).numpy().tobytes()

    def shape(number: int) -> tuple[int, ...] | None:
        mine = path.with_name(f"{number}.jpg")
        mine.write_bytes(good[:number] + bytes([good[number] ^ 0x55]) + good[number + 1 :])
        try:
            return pixels(mine).shape
        except ValueError:
            return None
        finally:
            mine.unlink()

    answers = list(in_children(shape, range(len(good))))
    assert [answer for answer in answers if answer.failure] == []
    kinds = {answer.result for answer in answers}
    assert None in kinds
    assert (3, 40, 40) in kinds
    assert any("Corrupt JPEG data" in answer.said for answer in answers if answer.result)
    for length in range(len(good) - 2):  # without its last two bytes it is whole all the same
        refused(path, good[:length])


kinds = st.sampled_from([b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"iCCP", b"zTXt", b"acTL", b"fcTL"])


@given(
    chunks=st.lists(st.tuples(kinds, st.binary()), max_size=5),
    raw=st.binary(max_size=60),
    header=st.binary(min_size=13, max_size=13),
)
def test_nonsense_with_right_checksums_is_an_image_or_refused(path, chunks, raw, header):
    small = bytes(3) + header[3:4] + bytes(3) + header[7:]  # sizes below 256
    for first in (small, b"\0\0\0\4\0\0\0\4\x08\2\0\0\0"):
        path.write_bytes(
            png_of_chunks([(b"IHDR", first), *chunks, (b"IDAT", raw), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")])
        )
        try:
            image = pixels(path)
        except ValueError:
            continue
        assert (image.dtype, image.dim(), image.shape[0]) == (torch.uint8, 3, 3)
        assert image.numel() > 0


def test_the_reference_decoder_agrees_on_ordinary_images(path):
    for number, suffix in enumerate((".png", ".jpg", ".jpeg")):
        made = write(path.with_suffix(suffix), picture(number, 17, 23))
        assert torch.equal(pixels(made), decode_image(str(made), mode=ImageReadMode.RGB))
