"""Decode image files: to three channels of eight bits, or to an error that names the file and its fault."""

import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dst.data.bounds import MOST_BYTES, check_pixels
from dst.data.dataset import DataError
from dst.files import size

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png")
"""Endings, in lower case, of the files that are decoded."""

AGAIN = "replace it with a whole copy, or delete it"
"""The remedy for an image file that cannot be used."""

_PNG = b"\x89PNG\r\n\x1a\n"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Kinds of a JPEG's segments that say its size."""

_BESIDE_DATA = 12  # bytes of a PNG chunk: length, kind and checksum, four each
CHANNELS = 3
"""Channels of a decoded image."""


def decode(path: Path) -> Tensor:
    """Return the image as uint8 [3, H, W]; ``DataError`` that names the file if it cannot be decoded."""
    try:
        return pixels(path)
    except ValueError as error:
        raise DataError(f"cannot decode {path} ({error}): {AGAIN}") from error


def pixels(path: Path) -> Tensor:
    """Return the image as uint8 [3, H, W]; ``ValueError`` that gives the reason, without the path, if it cannot.

    Grey is repeated, palettes and CMYK become RGB, transparency is dropped; of 16 bits the upper 8 are kept. The
    content of the file decides its kind, not its name.
    """
    try:
        data = _content(path)
        return _png(data) if data.startswith(_PNG[:4]) else _other(data)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if (found := os.fstat(file.fileno()).st_size) > MOST_BYTES:
            raise ValueError(
                f"it has {size(found)}, more than the {size(MOST_BYTES)} that an image may have; scale it down"
            )
        return file.read()


def size_of(path: Path) -> tuple[int, int]:
    """Return height and width of an image by its header; ``ValueError`` if that does not say them."""
    try:
        with _opened(path) as image:
            return image.height, image.width
    except Exception as error:
        raise ValueError(f"{path}: its header tells no size") from error


def load_decoders() -> None:
    """Import the decoders (1 s), so that processes forked from this one need not."""
    import PIL.PngImagePlugin  # noqa: F401
    import torchvision.io  # noqa: F401


@contextmanager
def _opened(source: Path | BytesIO, formats: list[str] | None = None) -> "Iterator[Image.Image]":
    """Open an image by Pillow, which would warn of half the size that an image may have here."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source, formats=formats)
    except UnidentifiedImageError as error:
        raise ValueError("its header makes no sense") from error
    with opened as image:
        yield image


def _png(data: bytes) -> Tensor:
    """Decode a PNG by Pillow, since a damaged one crashes torchvision's decoder."""
    _check_chunks(memoryview(data))
    check_pixels(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"))
    with _opened(BytesIO(data), ["PNG"]) as image:
        image.load()
        image.info.pop("transparency", None)  # else Pillow warns that it is dropped
        if image.mode.startswith("I"):  # 16 bits of grey; ``convert`` would clip at 255
            pixels = (np.asarray(image) >> 8).astype(np.uint8)[..., None].repeat(CHANNELS, axis=2)
        else:
            pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _check_chunks(data: memoryview) -> None:
    """Compare all checksums of a PNG: Pillow skips those of the pixels, and would return wrong pixels."""
    if data[: len(_PNG)] != _PNG:
        raise ValueError("its first bytes are damaged")
    start, kind = len(_PNG), b""
    while kind != b"IEND":
        end = start + _BESIDE_DATA + int.from_bytes(data[start : start + 4], "big")
        if len(data) < end:
            raise ValueError("it is truncated")
        kind = bytes(data[start + 4 : start + 8])
        if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"it is damaged between bytes {start} and {end}: the checksum differs")
        start = end


def _other(data: bytes) -> Tensor:
    """Decode a JPEG, or a WebP or GIF that is named like a JPEG, as many on the web are."""
    from torchvision.io import ImageReadMode, decode_image

    if not data:
        raise ValueError("it is empty")
    if not (data.startswith((b"\xff\xd8\xff", b"GIF8")) or (data.startswith(b"RIFF") and data[8:12] == b"WEBP")):
        raise ValueError(f"it is neither JPEG nor PNG but begins with {data[:8]!r}")
    _check_size(data)
    try:
        image: Tensor = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError as error:  # its message begins with a place in torchvision's source
        raise ValueError(str(error).splitlines()[0].rpartition(", ")[2]) from error
    return image


def _check_size(data: bytes) -> None:
    """Raise ValueError for an image that is too large, or an animation, before its pixels are decoded."""
    if data.startswith(b"\xff\xd8"):
        return check_pixels(*_jpeg_size(data))
    with _opened(BytesIO(data), ["GIF", "WEBP"]) as image:
        check_pixels(image.height, image.width)
        if (count := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"it is an animation of {count} images")
    return None


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Return height and width that a JPEG's header says; zeros if it says none, as decoding will tell."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _FRAMES:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        is_filling = kind == 0xFF
        at += 1 if is_filling else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0
