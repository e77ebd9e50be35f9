"""Small folders of real JPEG and PNG files, made on the spot."""

import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import encode_jpeg, encode_png


def picture(number: int, height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    """Smooth random colours: JPEG keeps them apart."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.randint(256, (1, channels, 3, 3), generator=generator).float()
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)


def write(path: Path, image: Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = encode_png(image) if path.suffix.lower() == ".png" else encode_jpeg(image, quality=95)
    path.write_bytes(encoded.numpy().tobytes())
    return path


def write_folder(
    root: Path, parts: Mapping[str, int], classes: int = 2, height: int = 12, width: int = 12, suffix: str = ".jpg"
) -> Path:
    """Write a number of pictures for each class of each part: ``root``/part/class_0/0.jpg ..."""
    number = 0
    for part, count in parts.items():
        for label in range(classes):
            for n in range(count):
                write(root / part / f"class_{label}" / f"{n}{suffix}", picture(number, height, width))
                number += 1
    return root


def write_tiny_imagenet(root: Path) -> Path:
    """Write 3 classes with 4 training and 2 validation pictures each, in the layout of the original."""
    names = ["n03", "n01", "n02"]
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(names))
    lines = []
    for label, name in enumerate(names):
        for n in range(4):
            write(root / "train" / name / "images" / f"{name}_{n}.JPEG", picture(10 * label + n))
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
        for n in range(2):
            number = 3 * n + label
            write(root / "val" / "images" / f"val_{number}.JPEG", picture(100 + number))
            lines.append(f"val_{number}.JPEG\t{name}\t0\t0\t9\t9")
    (root / "val" / "val_annotations.txt").write_text("\n".join(sorted(lines)) + "\n")
    return root


def png(samples: np.ndarray, bits: int = 8, kind: int | None = None) -> bytes:
    """Return a PNG of samples [H, W, C] of 1 to 16 bits, in the shortest form that the format's description allows.

    ``kind``: the colour type, if not what the number of channels says.
    """
    height, width, channels = samples.shape
    if bits < 8:
        assert width % 8 == 0
        each = np.unpackbits(samples.astype(np.uint8).reshape(height, -1, 1), axis=2)[..., 8 - bits :]
        rows = np.packbits(each.reshape(height, -1), axis=1)
    else:
        rows = samples.astype(">u2" if bits == 16 else np.uint8).reshape(height, -1).view(np.uint8)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if kind is None else kind
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    return png_of_chunks([(b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")])


def png_of_chunks(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of these chunks, (kind, data) each, with the right checksums whatever is in them."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
