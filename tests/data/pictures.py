"""Small folders of real JPEG and PNG files, made on the spot."""

from collections.abc import Mapping
from pathlib import Path

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
    """Write so many pictures for each class of each part: ``root``/part/class_0/0.jpg ..."""
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
